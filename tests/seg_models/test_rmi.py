"""Region mutual information against determinants computed directly, and the binary loss against torch's."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from seg_models.parts.rmi import (
    ALPHA,
    half_log_determinants,
    neighbourhoods,
    region_mutual_information,
    upsampled_binary_cross_entropy,
)

VOID = 99
ABSENT = 0.5 * math.log(ALPHA)


def make_batch(n: int = 2, k: int = 3, *, cells: tuple[int, int] = (6, 8), scale: int = 4) -> tuple[Tensor, Tensor]:
    """Scores in float64 and labels in blobs, some of them void."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(n, k, *cells, generator=generator, dtype=torch.float64)
    coarse = torch.randint(0, k + 1, (n, 1, *cells), generator=generator).float()
    labels = functional.interpolate(coarse, scale_factor=scale, mode="nearest")[:, 0].long()
    return logits.requires_grad_(), labels.where(labels < k, VOID)


def enlarged(logits: Tensor, labels: Tensor) -> Tensor:
    return functional.interpolate(logits, size=labels.shape[1:], mode="bilinear", align_corners=False)


def slow_rmi(logits: Tensor, labels: Tensor, *, pool: int = 4) -> Tensor:
    """The published formula, one image, class and shift at a time, with inverses and determinants in float64."""
    valid = (labels != VOID)[:, None]
    one_hot = torch.stack([labels == k for k in range(logits.shape[1])], dim=1).double()
    probabilities = enlarged(logits.double(), labels).sigmoid() * valid + 1e-6
    truth, guess = (
        functional.avg_pool2d(one, pool, stride=pool, padding=pool // 2) for one in (one_hot, probabilities)
    )
    height, width = truth.shape[-2] - 2, truth.shape[-1] - 2
    total = torch.zeros((), dtype=torch.float64)
    for n in range(logits.shape[0]):
        for k in range(logits.shape[1]):
            vectors = []
            for maps in (truth[n, k], guess[n, k]):
                rows = [maps[y : y + height, x : x + width].reshape(-1) for y in range(3) for x in range(3)]
                vectors.append(torch.stack([row - row.mean() for row in rows]))
            y, p = vectors
            noise = ALPHA * torch.eye(9, dtype=torch.float64)
            conditional = y @ y.t() - (y @ p.t()) @ torch.linalg.inv(p @ p.t() + noise) @ (y @ p.t()).t() + noise
            total = total + 0.5 * torch.linalg.det(conditional).log() / 9
    return total / logits.shape[0]


def slow_bce(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    scores, total, amount = enlarged(logits, labels), torch.zeros((), dtype=torch.float64), 1.0
    for n, y, x in (labels != VOID).nonzero().tolist():
        truth = functional.one_hot(labels[n, y, x], logits.shape[1]).double()
        loss = functional.binary_cross_entropy_with_logits(scores[n, :, y, x], truth, reduction="sum")
        total = total + weights[labels[n, y, x]] * loss
        amount += float(weights[labels[n, y, x]])
    return total / amount


def with_gradient(loss: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    (gradient,) = torch.autograd.grad(loss, logits)
    return loss.detach(), gradient


@pytest.mark.parametrize("pool", [3, 4])
@pytest.mark.parametrize("max_elements", [1, 3 * 32 * 9, None])
@pytest.mark.parametrize("cut", [0, 1, 2, 3])
def test_the_loss_and_its_gradient_equal_the_direct_determinants(pool: int, max_elements: int | None, cut: int) -> None:
    logits, labels = make_batch()
    labels = labels[:, : labels.shape[1] - cut, : labels.shape[2] - cut]
    expected = with_gradient(slow_rmi(logits, labels, pool=pool), logits)
    loss = region_mutual_information(logits, labels, void=VOID, pool=pool, max_elements=max_elements)
    tolerance = 1e-9 if cut == 0 else 2e-6  # interpolation weights are float32: exact for whole cells only
    torch.testing.assert_close(with_gradient(loss, logits), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("max_elements", [1, None])
def test_the_binary_loss_and_its_gradient_equal_a_loop_over_pixels(max_elements: int | None) -> None:
    logits, labels = make_batch(n=1, cells=(3, 4), scale=2)
    weights = torch.tensor([0.1, 1.0, 2.0], dtype=torch.float64)
    expected = with_gradient(slow_bce(logits, labels, weights), logits)
    loss = upsampled_binary_cross_entropy(logits, labels, void=VOID, class_weights=weights, max_elements=max_elements)
    torch.testing.assert_close(with_gradient(loss, logits), expected)
    plain = upsampled_binary_cross_entropy(logits, labels, void=VOID)
    torch.testing.assert_close(plain, slow_bce(logits, labels, torch.ones(3, dtype=torch.float64)))


def test_single_precision_comes_close_and_gives_a_float32_loss() -> None:
    logits, labels = make_batch()
    single = logits.detach().float().requires_grad_()
    found = region_mutual_information(single, labels, void=VOID)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), slow_rmi(logits, labels), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("loss", [region_mutual_information, upsampled_binary_cross_entropy])
def test_bfloat16_under_autocast_is_computed_in_full_precision(
    loss: object,
) -> None:
    assert callable(loss)
    logits, labels = make_batch()
    half = logits.detach().bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = loss(half, labels, void=VOID)
    expected = loss(half.detach().float(), labels, void=VOID)
    torch.testing.assert_close(found.detach(), expected)
    (gradient,) = torch.autograd.grad(found, half)
    assert gradient.dtype == torch.bfloat16
    assert gradient.isfinite().all()


def test_a_class_that_is_nowhere_gives_the_logarithm_of_alpha() -> None:
    labels = torch.zeros(1, 24, 24, dtype=torch.int64)
    sure = torch.tensor([40.0, -40.0, -40.0]).view(1, 3, 1, 1).expand(1, 3, 6, 6)
    assert float(region_mutual_information(sure, labels, void=VOID)) < 2 * ABSENT + 1
    only_absent = region_mutual_information(sure[:, 1:], torch.full_like(labels, 0).fill_(5), void=VOID)
    assert float(only_absent) == pytest.approx(2 * ABSENT, rel=1e-4)


def test_void_pixels_have_no_gradient_and_void_images_take_no_part() -> None:
    logits, labels = make_batch()
    labels[0, :, 16:] = VOID
    labels[1] = VOID
    for loss in (region_mutual_information, upsampled_binary_cross_entropy):
        value, gradient = with_gradient(loss(logits, labels, void=VOID), logits)
        assert torch.count_nonzero(gradient[1]) == 0
        assert torch.count_nonzero(gradient[0, ..., 5:]) == 0
        assert torch.count_nonzero(gradient[0, ..., :4]) > 0
        torch.testing.assert_close(value, loss(logits[:1], labels[:1], void=VOID).detach())


@pytest.mark.parametrize("loss", [region_mutual_information, upsampled_binary_cross_entropy])
def test_a_batch_of_only_void_has_loss_and_gradient_zero(loss: object) -> None:
    assert callable(loss)
    logits, labels = make_batch()
    value, gradient = with_gradient(loss(logits, labels.fill_(VOID), void=VOID), logits)
    assert float(value) == 0
    assert torch.count_nonzero(gradient) == 0


def worst_cases() -> dict[str, tuple[Tensor, Tensor]]:
    """What makes covariances singular: constants, certainty, labels and probabilities that agree to the last digit."""
    _, labels = make_batch(k=2, cells=(12, 12))
    labels = labels.where(labels != VOID, 0)
    truth = functional.one_hot(labels, 2).permute(0, 3, 1, 2).float()
    halves = torch.zeros_like(labels)
    halves[:, 24:] = 1
    return {
        "certain and right": (2e4 * (truth - 0.5), labels),
        "certain and wrong": (-2e4 * (truth - 0.5), labels),
        "constant": (torch.zeros_like(truth), labels),
        "all one class": (1e4 * torch.ones_like(truth), torch.zeros_like(labels)),
        "two halves": (1e4 * (functional.one_hot(halves, 2).permute(0, 3, 1, 2).float() - 0.5), halves),
        "nearly constant": (1e-7 * truth, labels),
    }


@pytest.mark.parametrize("case", worst_cases())
def test_no_scores_and_labels_can_fail_the_factorisation(case: str) -> None:
    scores, labels = worst_cases()[case]
    scores = scores.requires_grad_()
    value, gradient = with_gradient(region_mutual_information(scores, labels, void=VOID), scores)
    assert value.isfinite()
    assert gradient.isfinite().all()
    assert float(value) > 2 * ABSENT - 1e-3


def test_knowing_the_labels_is_better_than_guessing_them() -> None:
    cases = worst_cases()
    right, constant = (
        float(region_mutual_information(*cases[name], void=VOID)) for name in ("certain and right", "constant")
    )
    assert right < constant - 1


def test_a_large_image_of_certain_scores_keeps_its_conditional_covariance_positive() -> None:
    """Σ is 10⁸ times α here: what two large matrices leave when they are subtracted."""
    generator = torch.Generator().manual_seed(0)
    maps = (torch.rand(1, 512, 512, generator=generator) > 0.5).double()
    pairs = torch.cat([neighbourhoods(maps, radius=3), neighbourhoods(maps + 1e-9, radius=3)], dim=1)
    centred = pairs - pairs.mean(dim=2, keepdim=True)
    joint = centred @ centred.transpose(1, 2) + ALPHA * torch.eye(18, dtype=torch.float64)
    (found,) = half_log_determinants(joint, 9)
    # Where both agree, Σ − Σ(Σ + α)⁻¹Σ + α = α·(I + Σ(Σ + α)⁻¹), which is nearly 2α·I.
    assert float(found) == pytest.approx(4.5 * math.log(2 * ALPHA), rel=1e-3)


@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf")])
def test_a_matrix_without_a_factor_counts_nothing_and_raises_nothing(bad: float) -> None:
    joint = torch.eye(4, dtype=torch.float64).repeat(2, 1, 1) * 3
    joint[0, 3, 3] = bad
    good, found = 0.5 * math.log(9), half_log_determinants(joint.requires_grad_(), 2)
    assert found.tolist() == pytest.approx([0.0, good])
    (gradient,) = torch.autograd.grad(found.sum(), joint)
    assert torch.count_nonzero(gradient[0]) == 0
    assert torch.count_nonzero(gradient[1]) > 0


def test_images_without_room_for_a_neighbourhood_are_refused() -> None:
    with pytest.raises(ValueError, match=r"images of \(4, 40\) pixels are too small for the RMI loss"):
        region_mutual_information(torch.zeros(1, 2, 1, 10), torch.zeros(1, 4, 40, dtype=torch.int64), void=VOID)


def test_the_gradient_passes_a_numerical_check() -> None:
    logits, labels = make_batch(n=1, k=2, cells=(3, 3))
    torch.autograd.gradcheck(lambda scores: region_mutual_information(scores, labels, void=VOID), (logits,))
