"""Gradients of a classifier's score with respect to its input, summed over noisy copies and nothing more.

Only input gradients are computed, and only their running sum is kept. Where the network begins with one convolution
(a *stem*), the gradients are summed at its output and taken through it once: a sum and a linear map may be exchanged.

Shapes: B images, n copies of each, N points of one chunk, K classes, h w pixels of the classifier's input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

Score = Literal["probability", "logit"]


class Stem(NamedTuple):
    """The first convolution of a network, fed by nothing but the input (`seg_models.folding.find_stem`)."""

    module: nn.Module
    """As it stands in the network."""
    precise: nn.Module
    """The same in at least float32."""


class Piece(NamedTuple):
    """Some copies of some images that go through the network together."""

    images: slice
    copies: slice


def pieces(*, num_images: int, num_copies: int, chunk: int) -> Iterator[Piece]:
    """Cut B x n points: copies of one image, at least `chunk` and fewer than twice as many, or all copies of several.

    Pieces of one image are of nearly equal size, because a short last one would be slow.
    """
    if chunk < num_copies:
        count = num_copies // chunk
        edges = [round(num_copies * part / count) for part in range(count + 1)]
        for image in range(num_images):
            for start, stop in pairwise(edges):
                yield Piece(slice(image, image + 1), slice(start, stop))
        return
    step = chunk // num_copies
    for start in range(0, num_images, step):
        yield Piece(slice(start, min(start + step, num_images)), slice(0, num_copies))


def mean_gradients(
    model: nn.Module,
    points_of: Callable[[Piece], Tensor],
    *,
    targets: Sequence[int],
    num_copies: int,
    score: Score,
    chunk: int,
) -> Tensor:
    """Signed mean over the copies of each image of the gradient of its target's score, (B, 3, h, w) float64.

    Args:
        model: frozen, normalised images (N, 3, h, w) to logits (N, K). One whose `stem` is a `Stem` is differentiated
            at the stem's output.
        points_of: the copies (b, s, 3, h, w) of a piece.
        targets: class of each image.
        num_copies: n.
        chunk: copies that go through the model at once, see `pieces`.
    """
    found = getattr(model, "stem", None)
    stem = found if isinstance(found, Stem) else None  # many networks have a module of that name
    total: Tensor | None = None
    held = torch.empty(0)
    for piece in pieces(num_images=len(targets), num_copies=num_copies, chunk=chunk):
        held = points_of(piece)
        part = _summed(model, held, targets=targets[piece.images], score=score, stem=stem)
        if total is None:
            total = part.new_zeros((len(targets), *part.shape[1:]), dtype=torch.float64)
        total[piece.images] += part
    assert total is not None, "there is at least one image"
    mean = total / num_copies
    return mean if stem is None else _through_stem(stem.precise, mean, like=held[0, :1])


def _summed(model: nn.Module, points: Tensor, *, targets: Sequence[int], score: Score, stem: Stem | None) -> Tensor:
    """Sum over the copies (b, s, 3, h, w) of the score's gradient, per image (b, ...), at the input or the stem."""
    num_images, num_copies = points.shape[:2]
    flat = points.flatten(0, 1).detach()
    with torch.enable_grad():
        if stem is None:
            leaf = flat.requires_grad_(True)
            logits = model(leaf)
        else:
            with _leaf_behind(stem.module) as leaves:
                logits = model(flat)
            (leaf,) = leaves
    target = torch.tensor(targets, device=logits.device).repeat_interleave(num_copies)
    direction = _logit_gradient(logits.detach().double(), target=target, score=score)
    factor = direction.abs().reshape(num_images, -1).amax(1)
    scaled = direction / torch.where(factor > 0, factor, 1).repeat_interleave(num_copies)[:, None]
    (gradient,) = torch.autograd.grad(logits, leaf, grad_outputs=scaled.to(logits.dtype))
    wide = torch.float64 if gradient.dtype == torch.float64 else torch.float32
    summed = gradient.unflatten(0, (num_images, num_copies)).sum(1, dtype=wide)
    total: Tensor = summed.double() * factor[:, None, None, None]
    return total


@contextmanager
def _leaf_behind(stem: nn.Module) -> Iterator[list[Tensor]]:
    """While it lasts, autograd begins at the output of `stem`; the outputs are collected."""
    leaves: list[Tensor] = []

    def cut(_module: nn.Module, _args: object, output: Tensor) -> Tensor:
        leaves.append(output.detach().requires_grad_(True))
        return leaves[-1].clone()  # what follows may write into it, and a leaf must not be written into

    hook = stem.register_forward_hook(cut)
    try:
        yield leaves
    finally:
        hook.remove()


def _through_stem(stem: nn.Module, gradient: Tensor, *, like: Tensor) -> Tensor:
    """The gradient (B, C, h', w') at the stem's output, taken to its input: (B, 3, h, w) float64.

    Args:
        like: one input (1, 3, h, w); a convolution's derivative is the same everywhere.
    """
    kind = next(stem.parameters()).dtype
    image = like.to(kind).expand(len(gradient), *like.shape[1:]).detach().requires_grad_(True)
    scale = gradient.abs().amax(dim=(1, 2, 3), keepdim=True)
    unit = gradient / torch.where(scale > 0, scale, 1)
    with torch.enable_grad():
        output = stem(image)
    (back,) = torch.autograd.grad(output, image, grad_outputs=unit.to(kind))
    pulled: Tensor = back.double() * scale
    return pulled


def _logit_gradient(logits: Tensor, *, target: Tensor, score: Score) -> Tensor:
    """Gradient of the targets' scores with respect to the logits (N, K), in float64.

    For p = softmax(z): dp_t/dz_t = p_t * (sum of the other p), dp_t/dz_k = -p_t * p_k. Callers scale it, so that the
    network's backward pass sees numbers near one and a nearly saturated softmax loses nothing to underflow; it is zero
    only where the softmax is saturated beyond float64.
    """
    rows = torch.arange(len(logits), device=logits.device)
    if score == "logit":
        direction = torch.zeros_like(logits)
        direction[rows, target] = 1
        return direction
    probability = torch.softmax(logits, dim=1)
    true = probability[rows, target].clone()
    probability[rows, target] = 0
    gradient = -true[:, None] * probability
    gradient[rows, target] = true * probability.sum(dim=1)
    return gradient
