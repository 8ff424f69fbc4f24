"""Hard pixels only: which pixels are kept, and what a loss makes of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from seg_models.outputs import SemanticOutput, SemanticTarget
from seg_models.parts.losses import (
    cross_entropies,
    true_class_probabilities,
    upsampled_cross_entropy,
    without_easy_pixels,
)
from seg_models.parts.mining import HardPixels
from tests.largest_tensor import LargestTensor

VOID = 99


def scored(n: int = 2, k: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    logits = 4 * torch.randn(n, k, 5, 6, generator=generator)
    labels = torch.randint(0, k + 1, (n, 19, 23), generator=generator)
    return logits.requires_grad_(), labels.where(labels < k, VOID)


def whole_probabilities(logits: Tensor, labels: Tensor) -> Tensor:
    scores = functional.interpolate(logits, size=labels.shape[1:], mode="bilinear", align_corners=False)
    return scores.softmax(dim=1).gather(1, labels.where(labels != VOID, 0)[:, None])[:, 0].detach()


@pytest.mark.parametrize("max_elements", [1, 300, None])
def test_probabilities_by_strips_are_those_of_the_whole_map(max_elements: int | None) -> None:
    logits, labels = scored()
    found = true_class_probabilities(logits, labels, void=VOID, max_elements=max_elements)
    assert not found.requires_grad
    assert bool((found[labels == VOID] == math.inf).all())
    valid = labels != VOID
    torch.testing.assert_close(found[valid], whole_probabilities(logits, labels)[valid], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("threshold", "min_kept"), [(0.7, 0), (0.1, 400), (0.7, 10), (0.3, 10**6), (1.0, 0)])
def test_hard_pixels_are_those_of_sorting_all_of_them(threshold: float, min_kept: int) -> None:
    logits, labels = scored()
    probabilities = whole_probabilities(logits, labels).numpy()
    valid = labels.numpy() != VOID
    ranked = np.sort(probabilities[valid])
    limit = max(threshold, ranked[min(min_kept, len(ranked)) - 1] if min_kept else 0)
    found = without_easy_pixels(logits, labels, void=VOID, threshold=threshold, min_kept=min_kept)
    kept = (found != VOID).numpy()
    assert np.array_equal(kept, valid & (probabilities <= limit + 1e-6))
    assert kept.sum() >= min(min_kept, len(ranked))
    assert torch.equal(found[kept], labels[kept])


def test_the_threshold_can_be_sought_in_every_nth_pixel() -> None:
    logits, labels = scored()
    sampled = np.sort(whole_probabilities(logits, labels)[:, ::2, ::2][labels[:, ::2, ::2] != VOID])
    found = without_easy_pixels(logits, labels, void=VOID, threshold=0.01, min_kept=400, sample_every=2)
    expected = (whole_probabilities(logits, labels) <= sampled[99] + 1e-6) & (labels != VOID)
    assert torch.equal(found != VOID, expected)


def test_hard_pixel_mining_never_holds_the_enlarged_scores() -> None:
    logits, labels = torch.randn(1, 50, 8, 8, requires_grad=True), torch.randint(0, 50, (1, 64, 64))
    with LargestTensor() as largest:
        hard = without_easy_pixels(logits, labels, void=VOID, threshold=0.5, min_kept=100, max_elements=50 * 64 * 4)
        torch.autograd.backward(upsampled_cross_entropy(logits, hard, void=VOID, max_elements=50 * 64 * 4))
    assert 0 < largest.elements <= 50 * 64 * 4


def sorted_cross_entropy(logits: Tensor, labels: Tensor, *, threshold: float, min_kept: int) -> float:
    """OHEM as HRNet's code does it: sort all pixels by probability, keep those below the larger of two limits."""
    scores = functional.interpolate(logits, size=labels.shape[1:], mode="bilinear", align_corners=False)
    losses = functional.cross_entropy(scores, labels, ignore_index=VOID, reduction="none").detach()
    valid = labels != VOID
    probabilities, order = whole_probabilities(logits, labels)[valid].sort()
    limit = max(float(probabilities[min(min_kept, len(probabilities)) - 1]), threshold)
    return float(losses[valid][order][probabilities <= limit].mean())


@pytest.mark.parametrize("auxiliary", [False, True])
@pytest.mark.parametrize(("threshold", "min_kept"), [(0.4, 10), (0.01, 300), (0.01, 10**5)])
def test_main_scores_learn_from_hard_pixels_and_auxiliary_ones_where_asked(
    threshold: float, min_kept: int, auxiliary: bool
) -> None:
    logits, labels = scored()
    aux_logits = logits.flip(1)
    mining = HardPixels(threshold=threshold, min_kept=min_kept, auxiliary=auxiliary)
    found = cross_entropies(SemanticOutput(logits, aux=(aux_logits,)), SemanticTarget(labels, VOID, mining=mining))
    of_batch = min_kept * len(labels)
    assert mining.was_used
    expected = sorted_cross_entropy(logits, labels, threshold=threshold, min_kept=of_batch)
    assert found["ce"].item() == pytest.approx(expected, rel=1e-5)
    hard = sorted_cross_entropy(aux_logits, labels, threshold=threshold, min_kept=of_batch)
    usual = upsampled_cross_entropy(aux_logits, labels, void=VOID).item()
    assert found["aux_ce"].item() == pytest.approx(hard if auxiliary else usual, rel=1e-5)


def test_a_batch_without_a_hard_pixel_has_no_loss() -> None:
    logits = torch.zeros(1, 2, 4, 4)
    logits[:, 0] = 20
    logits.requires_grad_()
    target = SemanticTarget(
        torch.zeros(1, 16, 16, dtype=torch.int64), VOID, mining=HardPixels(threshold=0.5, min_kept=0)
    )
    loss = cross_entropies(SemanticOutput(logits), target)["ce"]
    torch.autograd.backward(loss)
    assert loss.item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()
