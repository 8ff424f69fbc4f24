"""Focal and dice loss of one mask per class, without the upsampled scores.

Every class that an image holds is compared with the binary map of its pixels. The published form upsamples the scores
of all classes at several scales to the size of the label; here only the classes that are present are upsampled, strip
by strip, and the gradient at the size of the cells is made in the same pass.

Focal: Lin et al., arXiv 1708.02002, equation 5 (α = 0.25, γ = 2). Dice: Milletari et al., arXiv 1606.04797, with one
added above and below. Both are averaged over the masks of the batch (specs: CFT section 2).

Shapes: N batch, K classes, G classes present in an image, h w cells, H W pixels of the label, r rows of a strip.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from pydantic import Field
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from seg_models.outputs import SemanticTarget
from seg_models.parts.resample import bilinear_matrix, near_inputs, resample, rows_per_strip, strips
from seg_models.spec import Spec

ALPHA = 0.25
"""Weight of a mask's own pixels in the focal loss; 1 - ALPHA is that of the others."""


class MaskLossSpec(Spec):
    """The loss of category masks as CFT weighs it (Tang et al., arXiv 2308.05581), for any network with such masks."""

    focal_weight: float = Field(5.0, ge=0)
    """Weight of the focal loss."""
    dice_weight: float = Field(2.0, ge=0)
    """Weight of the Dice loss."""
    count_void_as_negative: bool = False
    """Count void pixels as pixels of other classes (authors' code)."""


class MaskLosses(NamedTuple):
    """The two losses, float32 scalars."""

    focal: Tensor
    dice: Tensor


def weighted_mask_losses(scores: Sequence[Tensor], target: SemanticTarget, settings: MaskLossSpec) -> dict[str, Tensor]:
    """`focal_masks` and `dice_masks` of `mask_losses`, times their weights."""
    found = mask_losses(scores, target.labels, void=target.void, count_void_as_negative=settings.count_void_as_negative)
    return {"focal_masks": settings.focal_weight * found.focal, "dice_masks": settings.dice_weight * found.dice}


def mask_losses(
    scores: Sequence[Tensor],
    labels: Tensor,
    *,
    void: int,
    count_void_as_negative: bool = False,
    max_elements: int | None = None,
) -> MaskLosses:
    """Focal and dice loss of the sum of bilinearly upsampled scores (align_corners=False).

    With z the summed scores of class g and t = (label == g), for every image and every class it holds:
    focal = mean of α_t·(1 − p_t)²·BCE(z, t) over the pixels, dice = 1 − (2Σpt + 1) / (Σp + Σt + 1), p = σ(z); sums over
    images and classes are divided by the number of masks, averaged over the workers of a data-parallel training.
    Classes that an image does not hold, and images of only void, have no gradient.

    Args:
        scores: one (N, K, h, w) per scale, of any float type.
        labels: (N, H, W) int64 class indices, or `void`.
        void: the label of pixels that take part in nothing.
        count_void_as_negative: take void pixels for pixels of other classes (the authors' code).
        max_elements: largest G·r·W of a strip; default by device.

    Raises:
        ValueError: shapes that do not belong together.
    """
    if not scores or any(level.shape[:2] != scores[0].shape[:2] or level.dim() != 4 for level in scores):
        raise ValueError(f"scores must be (N, K, h, w) each, found {[tuple(level.shape) for level in scores]}")
    if labels.dim() != 3 or labels.shape[0] != scores[0].shape[0]:
        raise ValueError(f"labels must be (N, H, W) with N = {scores[0].shape[0]}, found {tuple(labels.shape)}")
    with torch.autocast(labels.device.type, enabled=False):
        focal, dice = _MaskLosses.apply(  # type: ignore[no-untyped-call]
            labels, void, count_void_as_negative, max_elements, *scores
        )
    return MaskLosses(focal, dice)


class _MaskLosses(torch.autograd.Function):
    """Losses and their gradients in one pass over images and strips."""

    @staticmethod
    def forward(
        ctx: Any, labels: Tensor, void: int, count_void: bool, max_elements: int | None, *scores: Tensor
    ) -> tuple[Tensor, Tensor]:
        present = [_classes(image, void=void) for image in labels]
        scale = 1 / _mean_over_workers(sum(classes.numel() for classes in present), device=labels.device).clamp_min(1)
        sums = torch.zeros(2, device=labels.device)
        gradients = [torch.zeros(2, *level.shape, device=level.device) for level in scores]
        for n, classes in enumerate(present):
            if classes.numel() == 0:
                continue
            part = _image_losses(
                [level[n, classes].float() for level in scores],
                targets=labels[n] == classes[:, None, None],
                counted=torch.ones_like(labels[n], dtype=torch.bool) if count_void else labels[n] != void,
                max_elements=max_elements,
            )
            sums += part.losses
            for gradient, image_gradient in zip(gradients, part.gradients, strict=True):
                gradient[:, n, classes] = image_gradient
        ctx.save_for_backward(*(gradient * scale for gradient in gradients))
        ctx.dtypes = [level.dtype for level in scores]
        return sums[0] * scale, sums[1] * scale

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_focal: Tensor, grad_dice: Tensor) -> tuple[Tensor | None, ...]:
        gradients = (
            (grad_focal * focal + grad_dice * dice).to(dtype)
            for (focal, dice), dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )
        return None, None, None, None, *gradients


def _classes(labels: Tensor, *, void: int) -> Tensor:
    """(G,) the classes of an image."""
    classes: Tensor = labels.unique()
    return classes[classes != void]


def _mean_over_workers(count: int, *, device: torch.device) -> Tensor:
    """The number of masks, as every worker must see it: else images of few classes would weigh more."""
    total = torch.tensor(float(count), device=device)
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(total)
        total /= dist.get_world_size()
    return total


class _ImagePart(NamedTuple):
    losses: Tensor
    """(2,) focal and dice, summed over the classes."""
    gradients: list[Tensor]
    """One (2, G, h, w) per scale: of focal and of dice."""


def _image_losses(cells: Sequence[Tensor], *, targets: Tensor, counted: Tensor, max_elements: int | None) -> _ImagePart:
    """Losses of one image and their gradients.

    Args:
        cells: one (G, h, w) per scale.
        targets: (G, H, W) whether a pixel is of the class.
        counted: (H, W) whether a pixel takes part.
        max_elements: largest strip.
    """
    num_masks, height, width = targets.shape
    scales = [_Scale.between(level, height, width) for level in cells]
    sums = torch.zeros(4, num_masks, device=targets.device)
    slopes = [torch.zeros(3, *level.shape, device=level.device) for level in cells]
    num_rows = rows_per_strip(num_masks, width, device=targets.device, max_elements=max_elements)
    for strip in strips(height, rows=num_rows):
        near = [scale.near(strip) for scale in scales]
        parts = [
            resample(level[:, rows], rows=scale.rows[strip, rows], columns=scale.columns)
            for level, scale, rows in zip(cells, scales, near, strict=True)
        ]
        pixels = _pixel_terms(torch.stack(parts).sum(0), targets[:, strip].float(), counted[strip].float())
        sums += pixels.sums
        for slope, scale, rows in zip(slopes, scales, near, strict=True):
            slope[:, :, rows] += resample(
                pixels.slopes, rows=scale.rows[strip, rows].t(), columns=scale.columns.t()
            )  # neighbouring strips share cells
    return _combine(sums, slopes, num_pixels=counted.sum())


class _Scale(NamedTuple):
    """How one scale is upsampled."""

    rows: Tensor
    columns: Tensor

    @classmethod
    def between(cls, cells: Tensor, height: int, width: int) -> _Scale:
        h, w = cells.shape[-2:]
        return cls(
            bilinear_matrix(h, height, device=cells.device),
            bilinear_matrix(w, width, device=cells.device),
        )

    def near(self, strip: slice) -> slice:
        height, h = self.rows.shape
        return near_inputs(strip, num_in=h, ratio=h / height)


class _Pixels(NamedTuple):
    sums: Tensor
    """(4, G) Σ focal, Σ pt, Σ p, Σ t."""
    slopes: Tensor
    """(3, G, r, W) derivatives of focal, of pt and of p."""


def _pixel_terms(z: Tensor, t: Tensor, counted: Tensor) -> _Pixels:
    """What a strip adds to the sums, and the derivatives by its scores.

    focal(z, 1) = α(1−p)²·softplus(−z) and focal(z, 0) = (1−α)p²·softplus(z); dp/dz = p(1−p).

    Args:
        z: (G, r, W) scores.
        t: (G, r, W) 1 in the mask, 0 outside.
        counted: (r, W) 1 where the pixel takes part.
    """
    sign = 2 * t - 1
    weight = (ALPHA * t + (1 - ALPHA) * (1 - t)) * counted
    miss = torch.sigmoid(-sign * z)  # 1 − p_t
    entropy = functional.softplus(-sign * z)
    focal = weight * miss.square() * entropy
    focal_slope = -sign * weight * miss.square() * (2 * (1 - miss) * entropy + miss)
    p = torch.where(t > 0, 1 - miss, miss) * counted
    slope = miss * (1 - miss) * counted
    sums = torch.stack([focal, p * t, p, t * counted]).sum(dim=(2, 3))
    return _Pixels(sums, torch.stack([focal_slope, slope * t, slope]))


def _combine(sums: Tensor, slopes: Sequence[Tensor], *, num_pixels: Tensor) -> _ImagePart:
    """Losses from the sums over all pixels, and gradients from the derivatives at the cells."""
    focal, overlap, size, target_size = sums
    numerator, denominator = 2 * overlap + 1, size + target_size + 1
    losses = torch.stack([(focal / num_pixels).sum(), (1 - numerator / denominator).sum()])
    by_overlap = (-2 / denominator)[:, None, None]
    by_size = (numerator / denominator.square())[:, None, None]
    gradients = [
        torch.stack([by_focal / num_pixels, by_overlap * by_pt + by_size * by_p]) for by_focal, by_pt, by_p in slopes
    ]
    return _ImagePart(losses, gradients)
