"""The strip-wise cross-entropy against torch's, which holds the whole map."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from seg_models.parts.losses import upsampled_cross_entropy
from tests.largest_tensor import LargestTensor

VOID = 99


def make_batch(
    *, n: int, k: int, cells: tuple[int, int], pixels: tuple[int, int], seed: int = 0
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(n, k, *cells, generator=generator)
    labels = torch.randint(0, k + 1, (n, *pixels), generator=generator)
    return logits.requires_grad_(), labels.where(labels < k, VOID)


def slow_cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    scores = functional.interpolate(logits.float(), size=labels.shape[1:], mode="bilinear", align_corners=False)
    return functional.cross_entropy(scores, labels, weight=weights, ignore_index=VOID)


def with_gradient(loss: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    (gradient,) = torch.autograd.grad(loss, logits)
    return loss.detach(), gradient


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(1, 3),
    k=st.integers(2, 6),
    h=st.integers(1, 7),
    w=st.integers(1, 7),
    height=st.integers(1, 30),
    width=st.integers(1, 30),
    max_elements=st.sampled_from([1, 200, None]),
)
def test_loss_and_gradient_equal_the_whole_map(
    n: int, k: int, h: int, w: int, height: int, width: int, max_elements: int | None
) -> None:
    logits, labels = make_batch(n=n, k=k, cells=(h, w), pixels=(height, width))
    labels[0, 0, 0] = 0
    weights = torch.linspace(0.1, 1.0, k)
    expected = with_gradient(slow_cross_entropy(logits, labels, weights), logits)
    loss = upsampled_cross_entropy(logits, labels, void=VOID, class_weights=weights, max_elements=max_elements)
    torch.testing.assert_close(with_gradient(loss, logits), expected, atol=3e-5, rtol=1e-4)


def test_the_mean_divides_by_the_sum_of_the_weights() -> None:
    logits = torch.tensor([[0.0, 1.0], [2.0, 0.5]]).t().reshape(1, 2, 1, 2)
    labels = torch.tensor([[[0, 1]]])
    nll = -torch.log_softmax(logits, dim=1)
    expected = (0.1 * nll[0, 0, 0, 0] + 1.0 * nll[0, 1, 0, 1]) / 1.1
    found = upsampled_cross_entropy(logits, labels, void=VOID, class_weights=torch.tensor([0.1, 1.0]))
    assert float(found) == pytest.approx(float(expected))


def test_cells_that_touch_only_void_have_zero_gradient() -> None:
    logits, labels = make_batch(n=2, k=3, cells=(8, 8), pixels=(32, 32))
    labels[:, :, 16:] = VOID
    _, gradient = with_gradient(upsampled_cross_entropy(logits, labels, void=VOID), logits)
    assert torch.count_nonzero(gradient[..., 5:]) == 0
    assert torch.count_nonzero(gradient[..., :4]) > 0


def test_void_pixels_do_not_change_the_loss() -> None:
    logits, labels = make_batch(n=1, k=3, cells=(1, 1), pixels=(2, 2))
    labels[0] = torch.tensor([[1, VOID], [VOID, VOID]])
    alone = upsampled_cross_entropy(logits, labels[:, :1, :1], void=VOID)
    assert upsampled_cross_entropy(logits, labels, void=VOID).item() == pytest.approx(alone.item())


def test_a_batch_of_only_void_has_loss_and_gradient_zero() -> None:
    logits, labels = make_batch(n=2, k=3, cells=(2, 2), pixels=(8, 8))
    loss, gradient = with_gradient(upsampled_cross_entropy(logits, labels.fill_(VOID), void=VOID), logits)
    assert float(loss) == 0
    assert torch.count_nonzero(gradient) == 0


def test_bfloat16_scores_give_a_float32_loss_and_a_bfloat16_gradient() -> None:
    logits, labels = make_batch(n=1, k=4, cells=(4, 4), pixels=(16, 16))
    half = logits.detach().bfloat16().requires_grad_()
    loss, gradient = with_gradient(upsampled_cross_entropy(half, labels, void=VOID), half)
    expected = with_gradient(slow_cross_entropy(half, labels), half)
    assert loss.dtype == torch.float32
    assert gradient.dtype == torch.bfloat16
    torch.testing.assert_close((loss, gradient), expected, atol=1e-4, rtol=1e-2)


def test_the_scale_of_a_loss_saves_what_is_too_small_for_float16() -> None:
    logits, labels = make_batch(n=1, k=4, cells=(4, 4), pixels=(16, 16))
    weights, scale = torch.tensor([1e7, 1.0, 1.0, 1.0]), 2.0**20
    labels[:, 2:] = 1
    labels[:, :2] = 0  # most of the mean belongs to these, so the others have gradients of about 1e-8
    half = logits.detach().half().requires_grad_()
    _, found = with_gradient(upsampled_cross_entropy(half, labels, void=VOID, class_weights=weights) * scale, half)
    wide = half.detach().float().requires_grad_()
    _, expected = with_gradient(upsampled_cross_entropy(wide, labels, void=VOID, class_weights=weights) * scale, wide)
    small = expected.abs()[:, :, 1:].median()
    assert small / scale < 6e-8, "below the smallest number of float16"
    torch.testing.assert_close(found[:, :, 1:].float(), expected[:, :, 1:], rtol=1e-2, atol=float(small) / 100)


def test_a_loss_inside_a_sum_scales_its_gradient() -> None:
    logits, labels = make_batch(n=1, k=4, cells=(4, 4), pixels=(16, 16))
    _, once = with_gradient(upsampled_cross_entropy(logits, labels, void=VOID), logits)
    _, scaled = with_gradient(0.4 * upsampled_cross_entropy(logits, labels, void=VOID), logits)
    torch.testing.assert_close(scaled, 0.4 * once)


def test_no_tensor_as_large_as_the_enlarged_scores_is_ever_made() -> None:
    logits, labels = make_batch(n=2, k=50, cells=(8, 8), pixels=(64, 64))
    with LargestTensor() as largest:
        loss = upsampled_cross_entropy(logits, labels, void=VOID, max_elements=50 * 64 * 4)
        torch.autograd.backward(loss)
    assert 0 < largest.elements <= 50 * 64 * 4
    assert largest.elements < 50 * 64 * 64


def test_a_loss_without_gradient_is_the_same_number() -> None:
    logits, labels = make_batch(n=1, k=4, cells=(4, 4), pixels=(16, 16))
    expected = upsampled_cross_entropy(logits, labels, void=VOID).item()
    assert upsampled_cross_entropy(logits.detach(), labels, void=VOID).item() == expected


@pytest.mark.parametrize(
    ("labels", "weights", "message"),
    [
        (torch.zeros(2, 4, 4, dtype=torch.int64), None, r"logits must be \(N, K, h, w\)"),
        (torch.zeros(1, 4, dtype=torch.int64), None, r"labels \(N, H, W\), found"),
        (torch.zeros(1, 4, 4, dtype=torch.int64), torch.ones(2), "2 class weights for 3 classes"),
    ],
)
def test_shapes_that_do_not_belong_together_are_refused(labels: Tensor, weights: Tensor | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        upsampled_cross_entropy(torch.zeros(1, 3, 2, 2), labels, void=VOID, class_weights=weights)
