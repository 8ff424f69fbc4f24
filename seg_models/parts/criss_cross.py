"""Attention of every position to the lines that cross it, one axis at a time.

Huang et al.: CCNet, ICCV 2019, section 3.2 and TPAMI 2020, arXiv 1811.11721. The scores of each axis are small products
over views of one tensor. They are never concatenated: a position's sum over all its lines is merged by log-sum-exp from
those of its axes, and each axis then adds its share to the output in place. The backward pass computes the scores anew,
so that queries, keys, values and one number a position are all that is kept.

Shapes: N batch, S a grid of two or three axes (h, w or h, w, d), C channels, D channels of queries and keys,
B lines side by side, L cells of a line.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def criss_cross(
    tokens: Tensor, projected: Tensor, gamma: Tensor, *, key_channels: int, masked_axes: tuple[int, ...]
) -> Tensor:
    """tokens + gamma * attention, where each position sees the positions that differ from it along one axis only.

    Args:
        tokens: (N, *S, C), contiguous.
        projected: (N, *S, 2·D + C), contiguous: queries, keys and values behind each other.
        gamma: one number, the weight of the attention.
        key_channels: D.
        masked_axes: axes of S along which a position does not see itself. All but the last, and it is seen once.

    Returns:
        (N, *S, C), contiguous.
    """
    with _own_types(tokens.device):
        if torch.compiler.is_exporting():  # a program holds plain operations
            return _attend(tokens, projected, gamma, key_channels, masked_axes)[0]
        out: Tensor = _CrissCross.apply(  # type: ignore[no-untyped-call]
            tokens, projected, gamma, key_channels, masked_axes
        )
    return out


def _own_types(device: torch.device) -> AbstractContextManager[object]:
    """A context in which autocast changes no types; an empty one where it is off."""
    if torch.amp.autocast_mode.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


class _CrissCross(torch.autograd.Function):
    """The attention with a backward pass that holds no more than one score map an axis."""

    @staticmethod
    def forward(
        ctx: Any, tokens: Tensor, projected: Tensor, gamma: Tensor, key_channels: int, masked_axes: tuple[int, ...]
    ) -> Tensor:
        out, total = _attend(tokens, projected, gamma, key_channels, masked_axes)
        ctx.save_for_backward(projected, gamma, total)
        ctx.key_channels, ctx.masked_axes = key_channels, masked_axes
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        projected, gamma, total = ctx.saved_tensors
        with _own_types(grad_out.device):
            grad_projected, grad_gamma = _gradients(
                grad_out.contiguous(), projected, gamma, total, ctx.key_channels, ctx.masked_axes
            )
        return grad_out, grad_projected, grad_gamma, None, None


def _attend(
    tokens: Tensor, projected: Tensor, gamma: Tensor, key_channels: int, masked_axes: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """The output, and the logarithm (N, *S, 1) of each position's sum of exponentials over all its lines."""
    queries, keys, values = _split(projected, key_channels)
    axes = _axes(tokens)
    scores = {axis: list(_scores(queries, keys, axis=axis, masked=axis in masked_axes)) for axis in axes}
    total = tokens.new_empty((*tokens.shape[:-1], 1), dtype=scores[axes[0]][0].dtype)
    for axis in axes:
        for sums, piece in zip(lines(total, axis), scores[axis], strict=True):
            own = piece.logsumexp(dim=-1, keepdim=True)
            sums.copy_(own if axis == axes[0] else torch.logaddexp(sums, own))
    out = tokens.clone()
    for axis in axes:
        parts = zip(lines(out, axis), scores[axis], lines(total, axis), lines(values, axis), strict=True)
        for target, piece, sums, seen in parts:
            shares = piece.sub_(sums).exp_().mul_(gamma)
            torch.baddbmm(target, shares.to(seen.dtype), seen, out=target)
    return out, total


def _gradients(
    grad_out: Tensor, projected: Tensor, gamma: Tensor, total: Tensor, key_channels: int, masked_axes: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """Gradients of `projected` and `gamma`.

    With shares p and their slopes s = g·vᵀ, softmax gives γ·p·(s - Σ p·s), the sum over all lines of a position; that
    sum is also the position's part of the gradient of γ, so that the attention itself need not be kept.
    """
    queries, keys, values = _split(projected, key_channels)
    axes = _axes(projected)
    sums = torch.zeros_like(total)
    found: dict[int, list[tuple[Tensor, Tensor]]] = {axis: [] for axis in axes}
    for axis in axes:
        pieces = _scores(queries, keys, axis=axis, masked=axis in masked_axes)
        grids = (total, sums, grad_out, values)
        for piece, logs, sum_, grads, seen in zip(pieces, *(lines(grid, axis) for grid in grids), strict=True):
            shares = piece.sub_(logs).exp_()
            slopes = torch.bmm(grads, seen.mT).to(shares.dtype)
            sum_ += (shares * slopes).sum(dim=-1, keepdim=True)
            found[axis].append((shares, slopes))
    grad_projected = torch.zeros_like(projected)
    for axis in axes:
        parts = (queries, keys, grad_out, *_split(grad_projected, key_channels))
        views = zip(*(lines(grid, axis) for grid in parts), strict=True)
        for (shares, slopes), sum_, some in zip(found.pop(axis), lines(sums, axis), views, strict=True):
            _add_gradients(shares, slopes.sub_(sum_).mul_(shares).mul_(gamma), gamma, some)
    return grad_projected, sums.sum().reshape(gamma.shape).to(gamma.dtype)


def _add_gradients(shares: Tensor, slopes: Tensor, gamma: Tensor, views: Sequence[Tensor]) -> None:
    """Add what the scores of some lines give to the gradients of their queries, keys and values."""
    queries, keys, grads, grad_queries, grad_keys, grad_values = views
    slopes, weights = slopes.to(keys.dtype), shares.mul_(gamma).to(grads.dtype)
    grad_queries.baddbmm_(slopes, keys)
    grad_keys.baddbmm_(slopes.mT, queries)
    grad_values.baddbmm_(weights.mT, grads)


def _axes(grid: Tensor) -> tuple[int, ...]:
    """Axes of the grid, last first: along the last a position sees itself, so that its sum is never empty."""
    return tuple(reversed(range(grid.dim() - 2)))


def _split(projected: Tensor, key_channels: int) -> tuple[Tensor, Tensor, Tensor]:
    queries, keys, values = projected.split(
        (key_channels, key_channels, projected.shape[-1] - 2 * key_channels), dim=-1
    )
    return queries, keys, values


def _scores(queries: Tensor, keys: Tensor, *, axis: int, masked: bool) -> Iterator[Tensor]:
    """Scores (B, L, L) of the lines along an axis, in float32 or wider; -inf for the own position where masked."""
    for from_, to in zip(lines(queries, axis), lines(keys, axis), strict=True):
        scores = torch.bmm(from_, to.mT)
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        if masked:
            own = torch.eye(scores.shape[-1], dtype=torch.bool, device=scores.device)
            scores = scores.masked_fill_(own, -torch.inf)
        yield scores


def lines(grid: Tensor, axis: int) -> tuple[Tensor, ...]:
    """The lines of (N, *S, C) along an axis of S, as few views (B, L, C) as hold all of them without a copy."""
    return _views(grid.transpose(axis + 1, -2))


def _views(turned: Tensor) -> tuple[Tensor, ...]:
    """(..., L, C) as views (B, L, C): the axes before become one where their strides allow it, else one by one."""
    batch = [pair for pair in zip(turned.shape[:-2], turned.stride()[:-2], strict=True) if pair[0] != 1]
    if all(outer == size * inner for (_, outer), (size, inner) in itertools.pairwise(batch)):
        return (turned.view(-1, *turned.shape[-2:]),)
    return tuple(view for part in turned.unbind(0) for view in _views(part))
