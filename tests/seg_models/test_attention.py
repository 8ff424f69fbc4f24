"""Position attention in blocks against loops written from its formula, and against torch's own attention."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from seg_models.parts.attention import position_attention, without_autocast
from tests.largest_tensor import LargestTensor


def make_tokens(
    *, n: int = 1, d: int = 3, c: int = 5, q: int = 7, p: int = 7, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n + 10 * q + 100 * p)
    shapes = ((n, d, q), (n, d, p), (n, c, p))
    queries, keys, values = (torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes)
    return queries, keys, values


def loops(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """out_i = Σ_j exp(q_i · k_j) v_j / Σ_j exp(q_i · k_j), number by number."""
    out = torch.zeros(*values.shape[:2], queries.shape[2], dtype=values.dtype)
    for n in range(queries.shape[0]):
        for i in range(queries.shape[2]):
            terms = [
                math.exp(float(queries[n, :, i] @ keys[n, :, j].detach())) * values[n, :, j].detach()
                for j in range(keys.shape[2])
            ]
            total = sum(math.exp(float(queries[n, :, i] @ keys[n, :, j].detach())) for j in range(keys.shape[2]))
            out[n, :, i] = torch.stack(terms).sum(dim=0) / total
    return out


def all_pairs(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """The published formulation: softmax over the rows of Qᵀ·K, then V times its transpose."""
    weights = torch.softmax(torch.bmm(queries.transpose(1, 2), keys), dim=-1)
    return torch.bmm(values, weights.transpose(1, 2))


def gradients(attended: Tensor, tokens: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Gradients of a sum in which every number has a weight of its own."""
    weights = torch.linspace(-1, 2, attended.numel(), dtype=attended.dtype).view_as(attended)
    return torch.autograd.grad((attended * weights).sum(), tokens)


@pytest.mark.parametrize("max_elements", [1, 15, None])
def test_it_equals_the_formula_number_by_number(max_elements: int | None) -> None:
    tokens = make_tokens(n=2, q=5, p=6)
    with torch.no_grad():
        torch.testing.assert_close(position_attention(*tokens, max_elements=max_elements), loops(*tokens))


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(1, 2),
    d=st.integers(1, 4),
    c=st.integers(1, 6),
    q=st.integers(1, 9),
    p=st.integers(1, 9),
    max_elements=st.sampled_from([1, 20, None]),
)
def test_values_and_gradients_equal_those_of_all_pairs(
    n: int, d: int, c: int, q: int, p: int, max_elements: int | None
) -> None:
    tokens = make_tokens(n=n, d=d, c=c, q=q, p=p)
    found, expected = position_attention(*tokens, max_elements=max_elements), all_pairs(*tokens)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradients(found, tokens), gradients(expected, tokens))


def test_its_gradient_is_that_of_finite_differences() -> None:
    tokens = make_tokens(n=1, d=2, c=3, q=4, p=3)
    assert torch.autograd.gradcheck(lambda *given: position_attention(*given, max_elements=6), tokens)


def test_it_equals_torchs_attention_with_scale_one() -> None:
    queries, keys, values = make_tokens(n=2, d=8, c=8, q=30, p=30, dtype=torch.float32)
    q, k, v = (tensor.transpose(1, 2).contiguous() for tensor in (queries, keys, values))
    with torch.no_grad():
        expected = functional.scaled_dot_product_attention(q, k, v, scale=1.0).transpose(1, 2)
        torch.testing.assert_close(position_attention(queries, keys, values, max_elements=70), expected)


def test_every_query_weighs_all_values_to_one() -> None:
    queries, keys, _ = make_tokens(q=9, p=4)
    attended = position_attention(queries, keys, torch.ones(1, 2, 4, dtype=torch.float64))
    torch.testing.assert_close(attended, torch.ones_like(attended))


def test_the_softmax_runs_over_keys_and_not_over_queries() -> None:
    queries, keys, values = make_tokens(q=6, p=6)
    weights = torch.softmax(torch.bmm(queries.transpose(1, 2), keys), dim=1)
    transposed = torch.bmm(values, weights.transpose(1, 2))
    assert not torch.allclose(position_attention(queries, keys, values), transposed, atol=0.1)


@pytest.mark.parametrize("factor", [1e2, 1e4])
def test_large_energies_stay_finite_and_pick_the_nearest_key(factor: float) -> None:
    queries, keys, values = (tensor.float().detach() for tensor in make_tokens(q=20, p=20))
    queries.mul_(factor).requires_grad_()
    found = position_attention(queries, keys, values, max_elements=60)
    torch.testing.assert_close(found, all_pairs(queries, keys, values), rtol=1e-3, atol=1e-3)
    (gradient,) = torch.autograd.grad(found.sum(), queries)
    assert torch.isfinite(gradient).all()


def test_the_order_of_memory_changes_nothing() -> None:
    tokens = make_tokens(n=2, q=8, p=8)
    turned = tuple(tensor.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_() for tensor in tokens)
    found, expected = position_attention(*turned, max_elements=20), position_attention(*tokens, max_elements=20)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradients(found, turned), gradients(expected, tokens))


def test_under_autocast_only_the_products_with_values_are_narrow() -> None:
    queries, keys, values = make_tokens(n=2, q=40, p=40, dtype=torch.bfloat16)
    wide = tuple(tensor.detach().float().requires_grad_() for tensor in (queries, keys, values))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = position_attention(queries, keys, values, max_elements=100)
    expected = all_pairs(*wide)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, rtol=0.02, atol=0.02)
    for own, other in zip(gradients(found, (queries, keys, values)), gradients(expected, wide), strict=True):
        assert own.dtype == torch.bfloat16
        torch.testing.assert_close(own.float(), other, rtol=0.05, atol=0.02 * float(other.abs().max()))


def test_energies_in_bfloat16_would_be_too_coarse() -> None:
    """What the test above cannot see: at energies near 100 a bfloat16 has steps of 0.5."""
    queries, keys, values = make_tokens(q=30, p=30, dtype=torch.float32)
    queries, keys = (tensor.detach() * 6 for tensor in (queries, keys))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = position_attention(queries, keys, values)
    torch.testing.assert_close(found, all_pairs(queries, keys, values), rtol=1e-4, atol=1e-4)


def test_weights_of_all_pairs_are_never_held_neither_forward_nor_backward() -> None:
    tokens = make_tokens(d=2, c=3, q=200, p=200, dtype=torch.float32)
    with LargestTensor() as largest:
        torch.autograd.backward(position_attention(*tokens, max_elements=2_000).sum())
    assert 600 <= largest.elements <= 2_000 < 200 * 200


def test_shapes_that_do_not_belong_together_are_refused() -> None:
    queries, keys, values = make_tokens(q=4, p=5)
    for wrong in ((queries, keys[:, 1:], values), (queries, keys, values[..., 1:]), (queries[0], keys[0], values[0])):
        with pytest.raises(
            ValueError, match=r"queries must be \(N, D, q\), keys \(N, D, p\) and values \(N, C, p\), f"
        ):
            position_attention(*wrong)


def test_the_meta_device_which_has_no_autocast_is_welcome() -> None:
    tokens = [torch.empty(1, 4, 50, device="meta") for _ in range(3)]
    assert position_attention(*tokens).shape == (1, 4, 50)


def test_autocast_is_left_only_where_it_is_on() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with without_autocast(torch.device("cpu")):
            assert not torch.is_autocast_enabled("cpu")
        assert torch.is_autocast_enabled("cpu")
    with without_autocast(torch.device("cpu")):
        assert not torch.is_autocast_enabled("cpu")
