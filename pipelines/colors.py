"""Random colours and sharpness of a training crop."""

from __future__ import annotations

import math
from typing import NamedTuple

import torchvision.transforms.v2.functional as tv  # type: ignore[import-untyped]
from torch import Tensor
from torch.nn import functional

from seg_models.recipes.recipe import AugmentSpec

REACH = 4.0  # the blur's kernel ends at this many sigmas


class ColorDraws(NamedTuple):
    """Numbers in [0, 1) that pick a value from each setting's range."""

    brightness: float
    contrast: float
    saturation: float
    hue: float
    blur: float
    sigma: float


def jitter(image: Tensor, *, spec: AugmentSpec, draws: ColorDraws) -> Tensor:
    """Brightness, contrast and saturation by a factor in [max(0, 1 - s), 1 + s], hue by a turn in [-s, s], then blur.

    Args:
        image: (3, h, w) uint8.

    Returns:
        The same shape and type.
    """
    if spec.brightness:
        image = tv.adjust_brightness(image, _factor(spec.brightness, draws.brightness))
    if spec.contrast:
        image = tv.adjust_contrast(image, _factor(spec.contrast, draws.contrast))
    if spec.saturation:
        image = tv.adjust_saturation(image, _factor(spec.saturation, draws.saturation))
    if spec.hue:
        image = tv.adjust_hue(image, spec.hue * (2 * draws.hue - 1))
    if spec.blur is not None and draws.blur < spec.blur_share:
        low, high = spec.blur
        image = _blurred(image, low + (high - low) * draws.sigma)
    return image


def _factor(strength: float, draw: float) -> float:
    low = max(0.0, 1.0 - strength)
    return low + (1.0 + strength - low) * draw


def _blurred(image: Tensor, sigma_px: float) -> Tensor:
    """Gaussian blur, one axis after the other: a fifth of the time of torchvision's, which takes both at once.

    The border is mirrored, so a kernel reaches at most as far as the image is large.
    """
    radius = min(round(REACH * sigma_px), image.shape[-1] - 1, image.shape[-2] - 1)
    if radius == 0:
        return image
    weights = [math.exp(-0.5 * (tap / sigma_px) ** 2) for tap in range(radius + 1)]
    total = 2 * sum(weights) - weights[0]
    blurred = functional.pad(image[None].float(), (radius,) * 4, mode="reflect")[0]
    for axis in (-2, -1):
        blurred = _weighted_sum(blurred, [weight / total for weight in weights], axis=axis)
    return blurred.round_().to(image.dtype)


def _weighted_sum(image: Tensor, weights: list[float], *, axis: int) -> Tensor:
    """Each pixel and its neighbours on one axis, by weights of their distance; what has too few neighbours is cut."""
    radius, length = len(weights) - 1, image.shape[axis] - 2 * (len(weights) - 1)
    total = image.narrow(axis, radius, length) * weights[0]
    for tap in range(1, radius + 1):
        pair = image.narrow(axis, radius - tap, length) + image.narrow(axis, radius + tap, length)
        total.add_(pair, alpha=weights[tap])
    return total
