"""Focal and dice loss of masks against the formula on upsampled scores."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from seg_models.parts.mask_losses import mask_losses

VOID = 255


def by_formula(scores: list[Tensor], labels: Tensor, *, count_void: bool = False) -> tuple[Tensor, Tensor]:
    """Every class of every image by itself, on upsampled and summed scores, in float64."""
    size = labels.shape[1:]
    total = sum(functional.interpolate(level.double(), size=size, mode="bilinear") for level in scores)
    assert isinstance(total, Tensor)
    focal, dice, masks = total.new_zeros(()), total.new_zeros(()), 0
    for image, label in zip(total, labels, strict=True):
        for g in sorted(set(label.flatten().tolist()) - {VOID}):
            counted = torch.ones_like(label, dtype=torch.bool) if count_void else label != VOID
            z, t = image[g][counted], (label[counted] == g).double()
            p = torch.sigmoid(z)
            p_t = p * t + (1 - p) * (1 - t)
            alpha = 0.25 * t + 0.75 * (1 - t)
            focal = focal + (alpha * (1 - p_t) ** 2 * functional.binary_cross_entropy(p, t, reduction="none")).mean()
            dice = dice + 1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1)
            masks += 1
    return focal / max(masks, 1), dice / max(masks, 1)


def random_case() -> tuple[list[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(0)
    scores = [torch.randn(3, 6, *size, generator=generator, requires_grad=True) for size in ((3, 2), (5, 4), (9, 8))]
    labels = torch.randint(0, 4, (3, 17, 15), generator=generator)
    labels[:, :4, 3:9] = VOID
    labels[1] = labels[1].where(labels[1] == VOID, 2)
    labels[2] = VOID
    return scores, labels


@pytest.mark.parametrize("count_void", [False, True])
@pytest.mark.parametrize("max_elements", [None, 1, 200])
def test_losses_and_gradients_equal_the_formula(count_void: bool, max_elements: int | None) -> None:
    scores, labels = random_case()
    found = mask_losses(scores, labels, void=VOID, count_void_as_negative=count_void, max_elements=max_elements)
    expected = by_formula(scores, labels, count_void=count_void)
    for own, other in zip(found, expected, strict=True):
        torch.testing.assert_close(own, other.float())
        own_gradients = torch.autograd.grad(own, scores, retain_graph=True)
        other_gradients = torch.autograd.grad(other, scores, retain_graph=True)
        for gradient, wanted in zip(own_gradients, other_gradients, strict=True):
            torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-7)


def test_weights_of_the_two_losses_reach_the_gradient() -> None:
    scores, labels = random_case()
    found, expected = mask_losses(scores, labels, void=VOID), by_formula(scores, labels)
    own = torch.autograd.grad(5 * found.focal + 2 * found.dice, scores)
    other = torch.autograd.grad(5 * expected[0] + 2 * expected[1], scores)
    for gradient, wanted in zip(own, other, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-6)


def test_classes_that_an_image_does_not_hold_and_void_images_have_no_gradient() -> None:
    scores, labels = random_case()
    (gradient,) = torch.autograd.grad(torch.stack(mask_losses(scores[2:], labels, void=VOID)).sum(), scores[2:])
    absent = [[4, 5], [0, 1, 3, 4, 5], [0, 1, 2, 3, 4, 5]]
    for image, classes in zip(gradient, absent, strict=True):
        for k in range(6):
            assert bool(image[k].any()) == (k not in classes)


def test_a_batch_of_only_void_has_no_loss() -> None:
    scores, labels = random_case()
    found = mask_losses(scores, torch.full_like(labels, VOID), void=VOID)
    assert [loss.item() for loss in found] == [0, 0]
    assert not any(gradient.any() for gradient in torch.autograd.grad(torch.stack(found).sum(), scores))


def test_right_masks_of_large_margin_cost_next_to_nothing() -> None:
    labels = torch.arange(3).repeat_interleave(64).view(1, 12, 16)
    scores = 20.0 * (2 * functional.one_hot(labels, 4).permute(0, 3, 1, 2).float() - 1)
    found = mask_losses([scores], labels, void=VOID)
    assert found.focal.item() < 1e-3
    assert found.dice.item() < 1e-2
    wrong = mask_losses([-scores], labels, void=VOID)
    assert wrong.focal.item() > 5
    assert wrong.dice.item() > 0.9


def test_the_number_of_masks_is_averaged_over_the_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two workers, the other with eleven masks beside our five: both divide by eight."""
    scores, labels = random_case()
    alone = mask_losses(scores, labels, void=VOID)

    def add_the_other(total: Tensor, *args: Any) -> None:
        total += 11

    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    monkeypatch.setattr("torch.distributed.all_reduce", add_the_other)
    together = mask_losses(scores, labels, void=VOID)
    for own, shared in zip(alone, together, strict=True):
        torch.testing.assert_close(shared, own * 5 / 8)


@pytest.mark.parametrize(
    ("shapes", "labels", "message"),
    [
        ([], (2, 8, 8), r"scores must be \(N, K, h, w\) each"),
        ([(2, 3, 4, 4), (2, 4, 2, 2)], (2, 8, 8), r"scores must be \(N, K, h, w\) each"),
        ([(2, 3, 4, 4)], (1, 8, 8), r"labels must be \(N, H, W\) with N = 2"),
    ],
)
def test_shapes_that_do_not_belong_together_are_refused(
    shapes: list[tuple[int, ...]], labels: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        mask_losses([torch.zeros(shape) for shape in shapes], torch.zeros(labels, dtype=torch.int64), void=VOID)
