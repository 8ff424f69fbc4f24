"""Losses between scores and boundaries, against their formulas on whole maps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.ndimage import correlate1d
from torch import Tensor
from torch.nn import functional

from seg_models.parts.dual_task import (
    MARGIN,
    TRIANGLE,
    _gumbel_noise,
    _mirrored,
    balanced_edge_loss,
    image_class_weights,
    image_cross_entropies,
    semantic_to_boundary_loss,
)

K, VOID = 3, 255
Maps = NDArray[np.float64]


def make(n: int = 2, height: int = 17, width: int = 14) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    logits = 2 * torch.randn(n, K, 6, 5, generator=generator)
    labels = torch.randint(0, K, (n, height // 4 + 1, width // 4 + 1), generator=generator)
    labels = labels.repeat_interleave(4, 1).repeat_interleave(4, 2)[:, :height, :width].contiguous()
    labels[0, 3:6, 2:9] = VOID
    return logits, labels


def strengths(maps: Maps) -> Maps:
    """Triangle smoothing and central differences along the last two axes, mirrored beyond the sides."""
    for axis in (-1, -2):
        maps = correlate1d(maps, np.array(TRIANGLE) / 25, axis=axis, mode="reflect")
    dx, dy = (correlate1d(maps, [-0.5, 0, 0.5], axis=axis, mode="reflect") for axis in (-1, -2))
    return np.asarray(np.sqrt(dx**2 + dy**2 + 1e-6))


def whole_maps(logits: Tensor, labels: Tensor, *, temperature: float) -> float:
    """The paper's loss with maps (N, K, H, W) in float64."""
    known = (labels != VOID).numpy()[:, None]
    scores = functional.interpolate(logits.double(), size=labels.shape[1:], mode="bilinear")
    soft = torch.softmax(scores / temperature, dim=1).numpy() * known
    true = np.eye(K + 1)[labels.where(labels != VOID, K).numpy()].transpose(0, 3, 1, 2)[:, :K]
    predicted, expected = strengths(soft), strengths(true)
    difference = np.abs(predicted / predicted.max() - expected / expected.max()) * known
    return float(difference.sum() / (K * known.sum()))


@pytest.mark.parametrize("max_rows", [None, 1, 5, 16])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_the_boundary_loss_is_the_papers_on_whole_maps(max_rows: int | None, temperature: float) -> None:
    logits, labels = make()
    found = semantic_to_boundary_loss(
        logits, labels, void=VOID, temperature=temperature, noisy=False, max_rows=max_rows
    )
    assert found.item() == pytest.approx(whole_maps(logits, labels, temperature=temperature), rel=1e-4)


def test_strips_have_the_gradient_of_the_whole() -> None:
    gradients = []
    for max_rows in (3, 1000):
        logits, labels = make()
        logits.requires_grad_()
        semantic_to_boundary_loss(logits, labels, void=VOID, noisy=False, max_rows=max_rows).backward()
        assert logits.grad is not None
        gradients.append(logits.grad)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-7)


def test_the_gradient_is_the_slope_of_the_formula() -> None:
    logits, labels = make()
    direction = torch.randn(logits.shape, generator=torch.Generator().manual_seed(5))
    step = 1e-4
    ahead, behind = (whole_maps(logits.double() + sign * step * direction, labels, temperature=1.0) for sign in (1, -1))
    logits.requires_grad_()
    (gradient,) = torch.autograd.grad(semantic_to_boundary_loss(logits, labels, void=VOID, noisy=False), logits)
    assert float((gradient * direction).sum()) == pytest.approx((ahead - behind) / (2 * step), rel=2e-2)


def test_the_released_loss_compares_the_maps_themselves() -> None:
    logits, labels = make()
    void = (labels == VOID)[:, None]
    scores = functional.interpolate(logits, size=labels.shape[1:], mode="bilinear").masked_fill(void, 0)
    soft = torch.softmax(scores / 0.5, dim=1)
    true = torch.eye(K)[labels.where(labels != VOID, 0)].permute(0, 3, 1, 2)
    predicted, expected = ((2 * maps**2 + 1e-6).sqrt() for maps in (soft, true))
    loss = (predicted / predicted.max() - expected / expected.max()).abs().mean()
    found = semantic_to_boundary_loss(logits, labels, void=VOID, temperature=0.5, noisy=False, released=True)
    torch.testing.assert_close(found, loss)


def test_the_true_map_has_no_loss_and_a_moved_one_has() -> None:
    labels = torch.zeros(1, 20, 20, dtype=torch.int64)
    labels[:, :, 10:] = 1
    logits = 60 * torch.eye(K)[labels].permute(0, 3, 1, 2)
    assert semantic_to_boundary_loss(logits, labels, void=VOID, noisy=False).item() < 1e-6
    assert semantic_to_boundary_loss(logits, labels.roll(4, 2), void=VOID, noisy=False).item() > 0.01


def test_noise_follows_the_seed_and_is_gumbels() -> None:
    logits, labels = make()
    losses = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        losses.append(semantic_to_boundary_loss(logits, labels, void=VOID).item())
    assert losses[0] == losses[1] != losses[2]
    indices = torch.arange(200)
    noise = _gumbel_noise(4, (indices, indices), seed=9, device=torch.device("cpu"))
    assert noise.mean().item() == pytest.approx(0.5772, abs=0.02)
    assert noise.var().item() == pytest.approx(torch.pi**2 / 6, abs=0.05)


def test_mirrored_pixels_have_the_noise_of_their_originals() -> None:
    rows = _mirrored(slice(0, 3), num=3)
    assert rows.tolist() == [1, 2, 2, 1, 0, 0, 1, 2, 2, 1, 0, 0, 1]
    assert len(rows) == 3 + 2 * MARGIN
    noise = _gumbel_noise(2, (rows, rows), seed=0, device=torch.device("cpu"))
    assert torch.equal(noise[:, 0], noise[:, 3])


def test_void_takes_no_part_in_the_boundary_loss() -> None:
    logits, labels = make()
    labels[1] = VOID
    logits.requires_grad_()
    (gradient,) = torch.autograd.grad(semantic_to_boundary_loss(logits, labels, void=VOID), logits)
    assert not gradient[1].any()
    assert gradient[0].any()
    nothing = semantic_to_boundary_loss(logits, torch.full_like(labels, VOID), void=VOID)
    assert nothing.item() == 0


def test_rare_classes_of_an_image_weigh_up_to_twice() -> None:
    labels = torch.tensor([[0, 0, 0, 2], [VOID, VOID, 0, 2]])
    weights = image_class_weights(labels, num_classes=4, void=VOID)
    torch.testing.assert_close(weights, torch.tensor([1 + 1 - 4 / 6, 1.0, 1 + 1 - 2 / 6, 1.0]))
    assert image_class_weights(torch.full((2, 2), VOID), num_classes=2, void=VOID).tolist() == [1, 1]


def test_each_image_has_a_weighted_cross_entropy_of_its_own() -> None:
    logits, labels = make()
    given = torch.tensor([1.0, 2.0, 0.5])
    found = image_cross_entropies(logits, labels, void=VOID, class_weights=given)
    scores = functional.interpolate(logits, size=labels.shape[1:], mode="bilinear")
    for n in range(2):
        weights = image_class_weights(labels[n], num_classes=K, void=VOID) * given
        expected = functional.cross_entropy(scores[n : n + 1], labels[n : n + 1], weights, ignore_index=VOID)
        torch.testing.assert_close(found[n], expected)


def test_the_edge_loss_balances_both_sides_pixel_by_pixel() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(2, 5, 6, generator=generator)
    edges = torch.rand(2, 5, 6, generator=generator) < 0.2
    valid = torch.rand(2, 5, 6, generator=generator) < 0.8
    positive, negative = int((edges & valid).sum()), int((~edges & valid).sum())
    total = 0.0
    for score, edge, known in zip(scores.flatten(), edges.flatten(), valid.flatten(), strict=True):
        probability = 1 / (1 + float((-score).exp()))
        if known and edge:
            total -= negative / (positive + negative) * float(np.log(probability))
        elif known:
            total -= positive / (positive + negative) * float(np.log(1 - probability))
    found = balanced_edge_loss(scores, edges, valid=valid)
    assert found.item() == pytest.approx(total / (positive + negative), rel=1e-5)


def test_an_image_without_edges_has_a_finite_loss() -> None:
    scores = torch.randn(1, 4, 4, requires_grad=True)
    nothing = torch.zeros(1, 4, 4, dtype=torch.bool)
    for valid in (nothing, ~nothing):
        loss = balanced_edge_loss(scores, nothing, valid=valid)
        (gradient,) = torch.autograd.grad(loss, scores)
        assert loss.item() == 0
        assert not gradient.any()
