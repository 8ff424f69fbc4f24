"""Smooth a score map before it is ranked: by a Gaussian, or along the edges of the image.

Shapes: H W pixels of the map, which covers the same field of view as the guide.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from seg_models.spec import Spec

REACH = 4
"""Standard deviations after which a Gaussian is cut off."""


class NoSmoothing(Spec):
    """Leave the map as it is."""

    kind: Literal["none"] = "none"


class GaussianSpec(Spec):
    """Smoothing that is the same everywhere."""

    kind: Literal["gaussian"] = "gaussian"
    sigma: float = Field(0.02, gt=0, le=0.5)
    """Standard deviation, as a share of the map's short side."""


class GuidedSpec(Spec):
    """Guided filter (He, Sun, Tang, TPAMI 2013): smooth where the image is smooth, and sharp at its edges."""

    kind: Literal["guided"] = "guided"
    radius: float = Field(0.2, gt=0, le=0.5)
    """Radius of the window, as a share of the map's short side."""
    eps: float = Field(3e-4, gt=0)
    """Variance of the image, in squared intensities of 0..1, below which it counts as smooth."""


AnySmoothing = Annotated[NoSmoothing | GaussianSpec | GuidedSpec, Field(discriminator="kind")]


def smooth_map(scores: Tensor, *, guide: Tensor, spec: AnySmoothing) -> Tensor:
    """A smoothed map (H, W).

    Args:
        guide: the image (3, H, W), intensities 0..1.
        spec: how.
    """
    if isinstance(spec, NoSmoothing):
        return scores
    short_side = min(scores.shape)
    if isinstance(spec, GaussianSpec):
        return gaussian(scores, sigma_px=spec.sigma * short_side)
    return guided_filter(scores, guide=guide, radius_px=max(1, round(spec.radius * short_side)), eps=spec.eps)


def gaussian(scores: Tensor, *, sigma_px: float) -> Tensor:
    """Gaussian smoothing of a map (H, W); beyond the border its edge goes on."""
    radius = math.ceil(REACH * sigma_px)
    offsets = torch.arange(-radius, radius + 1, dtype=scores.dtype, device=scores.device)
    kernel = torch.exp(-0.5 * (offsets / sigma_px) ** 2)
    kernel = kernel / kernel.sum()
    padded = functional.pad(scores[None, None], (radius,) * 4, mode="replicate")
    return functional.conv2d(functional.conv2d(padded, kernel[None, None, None]), kernel[None, None, :, None])[0, 0]


def guided_filter(scores: Tensor, *, guide: Tensor, radius_px: int, eps: float) -> Tensor:
    """Guided filter with a colour guide (eq. 18-20): in every window the map is a linear function of the colour.

    Args:
        scores: (H, W).
        guide: (3, H, W).
        radius_px: of the square window.
        eps: how flat the linear function is kept.
    """
    image = guide.to(scores)
    cross = [image[i] * image[j] for i, j in _PAIRS]
    means = box_mean(torch.stack([scores, *image, *(scores * image), *cross]), radius_px=radius_px)
    mean, mean_image, with_image, products = means[0], means[1:4], means[4:7], means[7:]
    variance = {(i, j): products[k] - mean_image[i] * mean_image[j] for k, (i, j) in enumerate(_PAIRS)}
    for i in range(3):
        variance[i, i] = variance[i, i] + eps
    slope = _solve(variance, with_image - mean * mean_image)
    offset = mean - (slope * mean_image).sum(0)
    smooth = box_mean(torch.cat([slope, offset[None]]), radius_px=radius_px)
    return (smooth[:3] * image).sum(0) + smooth[3]


_PAIRS = ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))


def _solve(matrix: dict[tuple[int, int], Tensor], right: Tensor) -> Tensor:
    """Solution (3, H, W) of a symmetric 3x3 system at every pixel, by its adjugate."""
    a, b, c, d, e, f = (matrix[pair] for pair in _PAIRS)
    adjugate = (d * f - e * e, c * e - b * f, b * e - c * d, a * f - c * c, b * c - a * e, a * d - b * b)
    p, q, r, s, t, u = adjugate
    determinant = a * p + b * q + c * r
    x, y, z = right
    return torch.stack([p * x + q * y + r * z, q * x + s * y + t * z, r * x + t * y + u * z]) / determinant


def box_mean(maps: Tensor, *, radius_px: int) -> Tensor:
    """Mean of maps (N, H, W) over the square window around each pixel, as far as it lies inside the map."""
    for dim in (1, 2):
        maps = _window_sum(maps, radius_px, dim) / _window_count(maps.shape[dim], radius_px, maps, dim)
    return maps


def _window_sum(maps: Tensor, radius_px: int, dim: int) -> Tensor:
    size = maps.shape[dim]
    sums = torch.cumsum(maps, dim)
    sums = torch.cat([torch.zeros_like(sums.narrow(dim, 0, 1)), sums], dim)
    first, last = _window(size, radius_px, maps.device)
    return sums.index_select(dim, last) - sums.index_select(dim, first)


def _window_count(size: int, radius_px: int, like: Tensor, dim: int) -> Tensor:
    first, last = _window(size, radius_px, like.device)
    count = (last - first).to(like)
    return count[:, None] if dim == 1 else count


def _window(size: int, radius_px: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """First pixel of the window around each pixel, and the one after its last."""
    place = torch.arange(size, device=device)
    return (place - radius_px).clamp_min(0), (place + radius_px + 1).clamp_max(size)
