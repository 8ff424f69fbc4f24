"""Losses between class scores and boundaries: what trains Gated-SCNN's two streams (arXiv 1907.05740, section 3.3).

Each has the form of the paper; a named argument gives what the released code does (specs: Gated-SCNN section 3).
Maps of K channels at the size of the labels are only ever held for a strip of rows, with the rows around it, and are
made again in the backward pass.

Shapes: N batch, K classes, h w cells, H W pixels of the label, r rows of a strip, p rows or columns around it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from seg_models.parts.losses import upsampled_cross_entropy
from seg_models.parts.resample import bilinear_matrix, resample, rows_per_strip, strips

TRIANGLE = (1, 2, 3, 4, 5, 4, 3, 2, 1)
"""The smoothing filter along one axis, before division by its sum."""
MARGIN = len(TRIANGLE) // 2 + 1
"""Pixels around a strip that its smoothed central differences look at."""
MIN_STRIP_ROWS = 32
"""Fewer rows would cost more in what strips share than they save."""
TINY = 1e-10


def image_cross_entropies(logits: Tensor, labels: Tensor, *, void: int, class_weights: Tensor | None = None) -> Tensor:
    """Cross-entropy of each image, rare classes of the image weighted up to twice.

    The weight of class c is 1 + (1 − its share of the image's known pixels) where it occurs, else 1.

    Args:
        logits: (N, K, h, w) scores.
        labels: (N, H, W) class indices, or `void`.
        void: the label that takes part in nothing.
        class_weights: (K,) further factors.

    Returns:
        (N,) losses; 0 for an image of only void.
    """
    losses = []
    for scores, label in zip(logits.split(1), labels.split(1), strict=True):
        weights = image_class_weights(label, num_classes=logits.shape[1], void=void)
        if class_weights is not None:
            weights = weights * class_weights.to(weights.device)
        losses.append(upsampled_cross_entropy(scores, label, void=void, class_weights=weights))
    return torch.stack(losses)


def image_class_weights(labels: Tensor, *, num_classes: int, void: int) -> Tensor:
    """(K,) float32 weights in 1..2 from the classes' shares of the pixels that are not void."""
    known = labels.where(labels != void, num_classes).flatten()
    counts = torch.bincount(known, minlength=num_classes + 1)[:num_classes].float()
    return 1 + (counts > 0) * (1 - counts / counts.sum().clamp_min(1))


def balanced_edge_loss(scores: Tensor, edges: Tensor, *, valid: Tensor) -> Tensor:
    """Binary cross-entropy where each side weighs as much as the other has pixels; the mean over valid pixels.

    Under data-parallel training pixels are counted per rank.

    Args:
        scores: (N, H, W) logits of an edge.
        edges: (N, H, W) bool.
        valid: (N, H, W) bool, the pixels that take part.
    """
    positive, total = (edges & valid).sum(), valid.sum().clamp_min(1)
    negative = (~edges & valid).sum()
    weights = torch.where(edges, negative, positive) * valid / total
    losses = functional.binary_cross_entropy_with_logits(scores.float(), edges.float(), reduction="none")
    return (losses * weights).sum() / total


def semantic_to_boundary_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    void: int,
    temperature: float = 1.0,
    noisy: bool = True,
    released: bool = False,
    max_rows: int | None = None,
) -> Tensor:
    """Mean difference between the boundaries of predicted and of true class maps (paper equations 5 and 6).

    Classes are drawn by a Gumbel softmax g of the upsampled scores; a boundary G is the gradient's magnitude of a
    smoothed map, divided by the largest one of the batch. L = mean |G(g)/max G(g) − G(y)/max G(y)| over classes and
    pixels. The two thresholded means of the released code are this one: no magnitude is below its threshold of 1e-8.

    Args:
        logits: (N, K, h, w) scores.
        labels: (N, H, W) class indices, or `void`, whose pixels are no class in either map and are not compared.
        void: the label that takes part in nothing.
        temperature: of the softmax.
        noisy: draw; else the softmax of the scores alone, for losses that can be compared.
        released: as the released code computes it: maps are compared themselves, for its smoothing and its gradient
            return their input; void pixels have score 0 for all classes, the label 0, and are compared.
        max_rows: rows of a strip; default by device.
    """
    with torch.autocast(logits.device.type, enabled=False):
        cells = logits.float()
        parts = list(_strips(cells, labels, void=void, noisy=noisy, released=released, max_rows=max_rows))
        maps = _Maps(temperature, strength=value_strength if released else gradient_strength)
        predicted_top, true_top = _tops(maps, cells, parts)
        sums = [_again(maps.difference, cells[part.image], part, predicted_top, true_top) for part in parts]
        compared = labels.numel() if released else (labels != void).sum().clamp_min(1)
        return torch.stack(sums).sum() / (compared * logits.shape[1])


def _tops(maps: _Maps, cells: Tensor, parts: Sequence[_Strip]) -> tuple[Tensor, Tensor]:
    """Largest strengths of the predicted and of the true maps of a batch; one strip alone is differentiated."""
    with torch.no_grad():
        predicted, true = torch.stack([maps.tops(cells[part.image], part) for part in parts]).unbind(dim=1)
    first = parts[int(predicted.argmax())]
    return _again(maps.predicted_top, cells[first.image], first), true.amax()


def gradient_strength(maps: Tensor) -> Tensor:
    """Gradient magnitudes √(∂x² + ∂y² + 1e-6) of smoothed maps, by central differences.

    The classes are the channels of one image: as many images of one channel take a CPU 20 to 40 times as long.

    Args:
        maps: (K, r + 2p, W + 2p) with p = MARGIN.

    Returns:
        (K, r, W).
    """
    num_classes = len(maps)
    filter_ = torch.tensor(TRIANGLE, dtype=maps.dtype, device=maps.device) / sum(TRIANGLE)
    smooth = functional.conv2d(maps[None], filter_.view(1, 1, -1, 1).repeat(num_classes, 1, 1, 1), groups=num_classes)
    smooth = functional.conv2d(smooth, filter_.view(1, 1, 1, -1).repeat(num_classes, 1, 1, 1), groups=num_classes)[0]
    dx = (smooth[:, 1:-1, 2:] - smooth[:, 1:-1, :-2]) / 2
    dy = (smooth[:, 2:, 1:-1] - smooth[:, :-2, 1:-1]) / 2
    return (dx.square() + dy.square() + 1e-6).sqrt()


def value_strength(maps: Tensor) -> Tensor:
    """√(x² + x² + 1e-6) of maps (K, r + 2p, W + 2p): both derivatives are the map itself in the released code."""
    inside = maps[:, MARGIN:-MARGIN, MARGIN:-MARGIN]
    return (2 * inside.square() + 1e-6).sqrt()


@dataclass(frozen=True)
class _Strip:
    """Rows of one image with what surrounds them; beyond the image's sides it continues mirrored."""

    image: int
    rows: Tensor
    """(r + 2p, h) interpolation."""
    columns: Tensor
    """(W + 2p, w) interpolation."""
    classes: Tensor
    """(r + 2p, W + 2p) labels, 0 for void."""
    valid: Tensor
    """(r + 2p, W + 2p) 0 for void, else 1."""
    compared: Tensor
    """(r + 2p, W + 2p) 1 for pixels that are in the maps, else 0."""
    mirrored: tuple[Tensor, Tensor]
    """Row and column, counted from the first, that each one is or mirrors; on the CPU."""
    seed: int | None
    """Of the noise; None for none."""


@dataclass(frozen=True)
class _Maps:
    """Maps of boundaries of a strip."""

    temperature: float
    strength: Callable[[Tensor], Tensor]

    def tops(self, cells: Tensor, part: _Strip) -> Tensor:
        """(2,) largest strength of the predicted and of the true maps."""
        return torch.stack([self._predicted(cells, part).max(), self._true(cells, part).max()])

    def predicted_top(self, cells: Tensor, part: _Strip) -> Tensor:
        """() largest strength of the predicted maps."""
        return self._predicted(cells, part).max()

    def difference(self, cells: Tensor, part: _Strip, predicted_top: Tensor, true_top: Tensor) -> Tensor:
        """Σ |G(g)/max − G(y)/max| over the classes and the compared pixels."""
        difference = self._predicted(cells, part) / predicted_top - self._true(cells, part) / true_top
        return (difference.abs() * part.compared[MARGIN:-MARGIN, MARGIN:-MARGIN]).sum()

    def _predicted(self, cells: Tensor, part: _Strip) -> Tensor:
        scores = resample(cells, rows=part.rows, columns=part.columns) * part.valid
        if part.seed is not None:
            scores = scores + _gumbel_noise(len(cells), part.mirrored, seed=part.seed, device=cells.device)
        drawn = torch.softmax(scores / self.temperature, dim=0)
        return self.strength(drawn * part.compared)

    def _true(self, cells: Tensor, part: _Strip) -> Tensor:
        one_hot = functional.one_hot(part.classes, len(cells)).movedim(-1, 0).to(cells.dtype)
        return self.strength(one_hot * part.compared)


def _gumbel_noise(num_classes: int, mirrored: tuple[Tensor, Tensor], *, seed: int, device: torch.device) -> Tensor:
    """(K, r + 2p, W + 2p) Gumbel(0, 1) noise, equal for equal seeds; mirrored pixels have that of their originals."""
    rows, columns = mirrored
    shape = (num_classes, int(rows.max()) + 1, int(columns.max()) + 1)
    uniform = torch.rand(shape, generator=torch.Generator(device).manual_seed(seed), device=device)
    noise = -torch.log(TINY - torch.log(uniform + TINY))
    return noise[:, rows.to(device)][:, :, columns.to(device)]


def _strips(
    cells: Tensor, labels: Tensor, *, void: int, noisy: bool, released: bool, max_rows: int | None
) -> Iterator[_Strip]:
    """Every image cut into strips of rows."""
    (_, num_classes, h, w), (height, width), device = cells.shape, labels.shape[1:], cells.device
    rows, columns = bilinear_matrix(h, height, device=device), bilinear_matrix(w, width, device=device)
    limit = max_rows or max(MIN_STRIP_ROWS, rows_per_strip(num_classes, width, device=device))
    across = _mirrored(slice(0, width), num=width)
    for image, label in enumerate(labels):
        for strip in strips(height, rows=limit):
            down = _mirrored(strip, num=height)
            part = label[down][:, across]
            valid = (part != void).to(cells.dtype)
            yield _Strip(
                image,
                rows=rows[down],
                columns=columns[across],
                classes=part.where(part != void, 0),
                valid=valid,
                compared=torch.ones_like(valid) if released else valid,
                mirrored=(down - down.min(), across),
                seed=int(torch.randint(1 << 62, ())) if noisy else None,
            )


def _mirrored(part: slice, *, num: int) -> Tensor:
    """Indices of a slice with MARGIN more on either side; beyond the first and last of `num` they run back."""
    wanted = torch.arange(part.start - MARGIN, part.stop + MARGIN) % (2 * num)
    return torch.minimum(wanted, 2 * num - 1 - wanted)


def _again(function: Callable[..., Tensor], *arguments: object) -> Tensor:
    """Call a function whose maps are made again in the backward pass instead of being kept."""
    result: Tensor = checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)
    return result
