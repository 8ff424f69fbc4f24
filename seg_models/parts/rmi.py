"""Region mutual information: pixels are compared together with their neighbours; and the binary loss beside it.

Zhao, Wang, Cheng, Lin, Wang: Region Mutual Information Loss for Semantic Segmentation, NeurIPS 2019, arXiv
1910.12037 (section 3), in the form of NVIDIA's semantic-segmentation (specs: HMSA section 5).

Scores are upsampled, squashed and averaged strip by strip and once more in the backward pass: no map of K channels at
the size of the pixels is ever kept. Statistics are float64.

A run cannot fail here. The published form subtracts two large matrices and inverts a third, which loses positive
definiteness to rounding. Here one matrix is factorised: the covariance J of [P; Y] stacked, plus α·I. It is
positive semi-definite as a product with its transpose, so every eigenvalue is at least α, many orders above the
rounding of float64; and the lower right block of its Cholesky factor is the factor of the wanted conditional
covariance A = Σ_Y − Σ_YP (Σ_P + αI)⁻¹ Σ_YPᵀ + αI (Schur complement), so log det A is read off its diagonal.

Shapes: N batch, K classes, h w cells, H W pixels, r rows of a strip, h' w' pooled pixels, d = radius² neighbours,
M = (h' − radius + 1)(w' − radius + 1) places.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from seg_models.parts.resample import bilinear_matrix, near_inputs, resample, rows_per_strip, strips

ALPHA = 5e-4
"""What is added to the diagonal of covariances (sums over places, not means)."""
LEAST_PROBABILITY = 1e-6
"""Added to every probability, as published."""
CHUNK_ELEMENTS = 1 << 22
"""Largest number of float64 elements of the neighbourhoods that are held at a time."""


def upsampled_binary_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    void: int,
    class_weights: Tensor | None = None,
    max_elements: int | None = None,
) -> Tensor:
    """Sigmoid cross-entropy of bilinearly upsampled scores against one-hot labels (specs: HMSA section 5.1).

    L = Σ w[label]·Σ_k bce(score_k, label = k) / (1 + Σ w[label]) over the pixels that are not void: summed over the
    classes, not averaged.

    Args:
        logits: (N, K, h, w) scores of any float type.
        labels: (N, H, W) int64 class indices, or `void`.
        void: the label that takes part in nothing.
        class_weights: (K,) weights w, default 1.
        max_elements: largest K·r·W of a strip; default by device.
    """
    valid = labels != void
    classes = labels.where(valid, 0)
    weights = valid.to(_precision(logits))
    if class_weights is not None:
        weights = weights * class_weights.to(weights)[classes]
    with torch.autocast(logits.device.type, enabled=False):
        parts = [
            _recomputed(_strip_bce, cells, rows, columns, classes[n, strip], weights[n, strip])
            for n in range(logits.shape[0])
            for strip, cells, rows, columns in _score_strips(logits[n], labels.shape[1:], max_elements)
        ]
        return torch.stack(parts).sum() / (weights.sum() + 1)


def region_mutual_information(
    logits: Tensor,
    labels: Tensor,
    *,
    void: int,
    pool: int = 4,
    radius: int = 3,
    max_elements: int | None = None,
) -> Tensor:
    """How uncertain neighbourhoods of labels stay when those of the probabilities are known.

    Σ_k mean_n ½·log det A / d (specs: HMSA section 5.2). Smaller is better; it can be negative: a class that is not
    in the image gives ½·log α. Images without any label take no part.

    Args:
        logits: (N, K, h, w) scores of any float type; float64 stays float64.
        labels: (N, H, W) int64 class indices, or `void`.
        void: the label that takes part in nothing; its pixels count as labels and probabilities of zero.
        pool: side and stride of the averages that come before, padded by half a side.
        radius: side of a neighbourhood.
        max_elements: largest K·r·W of a strip; default by device.

    Raises:
        ValueError: the image is smaller than a neighbourhood.
    """
    pooled = [(side + 2 * (pool // 2) - pool) // pool + 1 for side in labels.shape[1:]]
    if min(pooled) < radius:
        raise ValueError(f"images of {tuple(labels.shape[1:])} pixels are too small for the RMI loss (pool {pool})")
    valid = labels != void
    labelled = valid.flatten(1).any(dim=1).double()
    with torch.autocast(logits.device.type, enabled=False):
        terms = [
            _image_terms(logits[n], labels[n], valid[n], pool=pool, radius=radius, max_elements=max_elements)
            for n in range(logits.shape[0])
        ]
        mean = (torch.stack(terms) * labelled).sum() / labelled.sum().clamp_min(1)
    return (mean / radius**2).to(_precision(logits))


def half_log_determinants(joint: Tensor, size: int) -> Tensor:
    """½·log det of the Schur complement of the first `size` rows and columns.

    Where the matrix is not positive definite (not finite: see above) the result is 0, without gradient.

    Args:
        joint: (..., 2·size, 2·size) symmetric positive definite, float64.
        size: rows of each of the two blocks.

    Returns:
        (...)
    """
    with torch.no_grad():
        failed = torch.linalg.cholesky_ex(joint).info != 0
        failed |= ~joint.isfinite().all(dim=-1).all(dim=-1)
    identity = torch.eye(joint.shape[-1], dtype=joint.dtype, device=joint.device)
    factor = torch.linalg.cholesky_ex(torch.where(failed[..., None, None], identity, joint)).L
    diagonal: Tensor = factor.diagonal(dim1=-2, dim2=-1)[..., size:]
    return diagonal.log().sum(dim=-1)


def _image_terms(
    scores: Tensor, labels: Tensor, valid: Tensor, *, pool: int, radius: int, max_elements: int | None
) -> Tensor:
    """Σ_k ½·log det A of one image, float64."""
    probabilities, one_hot = _pooled_pair(scores, labels, valid, pool=pool, max_elements=max_elements)
    elements = 2 * radius**2 * probabilities[0].numel()
    size = max(1, CHUNK_ELEMENTS // elements)
    terms = [
        _recomputed(_class_terms, probabilities[chunk], one_hot[chunk], radius)
        for chunk in strips(scores.shape[0], rows=size)
    ]
    return torch.cat(terms).sum()


def _class_terms(probabilities: Tensor, one_hot: Tensor, radius: int) -> Tensor:
    """(k, h', w') twice to ½·log det A of each class (k,), float64."""
    pairs = torch.cat([neighbourhoods(one.double(), radius=radius) for one in (probabilities, one_hot)], dim=1)
    centred = pairs - pairs.mean(dim=2, keepdim=True)
    joint = centred @ centred.transpose(1, 2)
    joint = joint + ALPHA * torch.eye(joint.shape[-1], dtype=joint.dtype, device=joint.device)
    return half_log_determinants(joint, radius**2)


def neighbourhoods(maps: Tensor, *, radius: int) -> Tensor:
    """(k, h', w') to (k, radius², M): what lies at each of the shifts, row by row, at every place that has all."""
    height, width = (side - radius + 1 for side in maps.shape[-2:])
    shifts = [
        maps[:, down : down + height, right : right + width].flatten(1)
        for down in range(radius)
        for right in range(radius)
    ]
    return torch.stack(shifts, dim=1)


def _pooled_pair(
    scores: Tensor, labels: Tensor, valid: Tensor, *, pool: int, max_elements: int | None
) -> tuple[Tensor, Tensor]:
    """Averaged probabilities and one-hot labels of one image: (K, h', w') twice."""
    num_classes, (height, width) = scores.shape[0], labels.shape
    numbers = torch.arange(num_classes, device=labels.device)[:, None, None]
    probabilities, one_hot = [], []
    whole = rows_per_strip(num_classes, width, device=scores.device, max_elements=max_elements)
    for strip, padding in _pooled_strips(height, pool=pool, rows=max(1, whole // pool)):
        near, rows, columns = _interpolation(strip, scores, (height, width))
        arguments = (scores[:, near], rows, columns, valid[strip], pool, padding)
        probabilities.append(_recomputed(_strip_probabilities, *arguments))
        known = (labels[strip] == numbers) & valid[strip]
        one_hot.append(_average(known.to(_precision(scores)), pool, padding))
    return torch.cat(probabilities, dim=1), torch.cat(one_hot, dim=1)


def _pooled_strips(height: int, *, pool: int, rows: int) -> Iterator[tuple[slice, tuple[int, int]]]:
    """Pixels of `rows` pooled rows at a time, and how many rows of zeros lie above and below them."""
    pad = pool // 2
    for strip in strips((height + 2 * pad - pool) // pool + 1, rows=rows):
        first, last = strip.start * pool - pad, strip.stop * pool - pad
        yield slice(max(0, first), min(height, last)), (max(0, -first), max(0, last - height))


def _strip_probabilities(
    cells: Tensor, rows: Tensor, columns: Tensor, valid: Tensor, pool: int, padding: tuple[int, int]
) -> Tensor:
    scores = resample(cells.to(rows), rows=rows, columns=columns)
    return _average(scores.sigmoid() * valid + LEAST_PROBABILITY, pool, padding)


def _average(maps: Tensor, pool: int, padding: tuple[int, int]) -> Tensor:
    """(K, r, W) to (K, r / pool, w'): zeros outside the image count."""
    pad = pool // 2
    return functional.avg_pool2d(functional.pad(maps, (pad, pad, *padding))[None], pool)[0]


def _strip_bce(cells: Tensor, rows: Tensor, columns: Tensor, classes: Tensor, weights: Tensor) -> Tensor:
    """Σ w·Σ_k bce of a strip: Σ_k bce = Σ_k softplus(score_k) − score_label."""
    scores = resample(cells.to(rows), rows=rows, columns=columns)
    losses = functional.softplus(scores).sum(dim=0) - scores.gather(0, classes[None])[0]
    return (losses * weights).sum()


def _score_strips(
    scores: Tensor, size: torch.Size, max_elements: int | None
) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
    """Rows of pixels, the cells they need, and the interpolation of rows and columns."""
    num_rows = rows_per_strip(scores.shape[0], size[1], device=scores.device, max_elements=max_elements)
    for strip in strips(size[0], rows=num_rows):
        near, rows, columns = _interpolation(strip, scores, (size[0], size[1]))
        yield strip, scores[:, near], rows, columns


def _interpolation(strip: slice, scores: Tensor, size: tuple[int, int]) -> tuple[slice, Tensor, Tensor]:
    (height, width), (h, w) = size, scores.shape[-2:]
    near = near_inputs(strip, num_in=h, ratio=h / height)
    rows = bilinear_matrix(h, height, device=scores.device)[strip, near]
    columns = bilinear_matrix(w, width, device=scores.device)
    return near, rows.to(_precision(scores)), columns.to(_precision(scores))


def _precision(scores: Tensor) -> torch.dtype:
    return torch.float64 if scores.dtype == torch.float64 else torch.float32


def _recomputed(function: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """The function's value; what lies between is computed once more in the backward pass instead of kept."""
    value: Tensor = checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)
    return value
