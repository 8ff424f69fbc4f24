"""Random colours and sharpness of a training crop."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torchvision.transforms.v2.functional as tv  # type: ignore[import-untyped]
from torch import Tensor
from torch.nn import functional

from seg_models.recipes.recipe import AugmentSpec

GREY = (0.2989, 0.587, 0.114)
"""Shares of red, green and blue in the brightness of a pixel, as torchvision has them (ITU-R 601-2)."""
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
    if spec.brightness or spec.contrast or spec.saturation:
        image = _adjusted(image, spec=spec, draws=draws)
    if spec.hue:
        image = tv.adjust_hue(image, spec.hue * (2 * draws.hue - 1))
    if spec.blur is not None and draws.blur < spec.blur_share:
        low, high = spec.blur
        image = _blurred(image, low + (high - low) * draws.sigma)
    return image


def _adjusted(image: Tensor, *, spec: AugmentSpec, draws: ColorDraws) -> Tensor:
    """What torchvision's `adjust_brightness`, `adjust_contrast` and `adjust_saturation` give one after the other.

    To the bit, in under half the time: whole numbers are kept in float32 between the three, converted once.
    """
    pixels = image.to(torch.float32)
    if spec.brightness:
        _whole(pixels.mul_(_factor(spec.brightness, draws.brightness)))
    if spec.contrast:
        _blend(pixels, _grey(pixels).mean(), _factor(spec.contrast, draws.contrast))
    if spec.saturation:
        _blend(pixels, _grey(pixels), _factor(spec.saturation, draws.saturation))
    return pixels.to(torch.int16).to(torch.uint8)  # in two steps torch uses vector instructions


def _blend(pixels: Tensor, other: Tensor, factor: float) -> None:
    _whole(pixels.mul_(factor).add_(other, alpha=1.0 - factor))


def _whole(pixels: Tensor) -> None:
    """What a conversion to uint8 keeps."""
    pixels.clamp_(0, 255).floor_()


def _grey(pixels: Tensor) -> Tensor:
    """(h, w) of whole numbers."""
    red, green, blue = pixels
    grey: Tensor = red.mul(GREY[0]).add_(green, alpha=GREY[1]).add_(blue, alpha=GREY[2]).floor_()
    return grey


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
