"""Training augmentation of one image and its label map.

H W pixels of the stored image, h w pixels of the training crop.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torchvision.transforms.v2.functional as tv  # type: ignore[import-untyped]
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms import InterpolationMode

from seg_models.recipes.recipe import AugmentSpec

# Outside the image: the mean ImageNet colour, so that padding is close to zero once the backbone has normalised it.
PAD_COLOR = (124, 116, 104)


class Draws(NamedTuple):
    """The random numbers of one sample; always all of them, so that no setting shifts the others."""

    scale: float
    top: float
    left: float
    flip: float
    brightness: float
    contrast: float
    saturation: float


def augment(
    image: NDArray[np.uint8],
    label: NDArray[Any],
    *,
    spec: AugmentSpec,
    void: int,
    rng: np.random.Generator,
    mirrored: Sequence[int] = (),
) -> tuple[Tensor, Tensor]:
    """Resize, cut a random crop, change its colours, pad and flip.

    Args:
        image: (H, W, 3) uint8.
        label: (H, W) unsigned class indices, `void` where unknown.
        spec: The settings; padding goes below and to the right.
        void: Label of the padding.
        rng: Source of all randomness; the same state gives the same crop.
        mirrored: What each class index is in a mirrored image; default: what it was.

    Returns:
        image (3, h, w) uint8 and label (h, w) int64. Images are resized bilinearly with antialiasing, labels to the
        nearest pixel, so no new label value appears.

    Raises:
        ValueError: image and label differ in size.
    """
    if image.shape[:2] != label.shape:
        raise ValueError(f"image is {image.shape[:2]} (height, width), its label map {label.shape}")
    draws = Draws(*rng.random(len(Draws._fields)).tolist())
    size = target_size(image.shape[:2], spec=spec, draw=draws.scale)
    rows = _cut(size[0], spec.crop[0], draws.top)
    columns = _cut(size[1], spec.crop[1], draws.left)
    pixels = _resize(_planes(image), size)[:, rows, columns]
    pixels = _jitter(pixels.contiguous(), spec=spec, draws=draws)
    classes = _nearest(label, size=size, rows=rows, columns=columns)
    pixels, classes = _pad(pixels, classes, crop=spec.crop, void=void)
    if draws.flip < spec.flip:
        pixels, classes = pixels.flip(-1), _renamed(classes.flip(-1), mirrored)
    return pixels.contiguous(), classes.contiguous()


def _renamed(classes: Tensor, mirrored: Sequence[int]) -> Tensor:
    """Other indices for some classes; void, which is none of them, stays."""
    renamed = classes.clone()
    for before, after in enumerate(mirrored):
        if before != after:
            renamed[classes == before] = after
    return renamed


def target_size(size: tuple[int, ...], *, spec: AugmentSpec, draw: float) -> tuple[int, int]:
    """Height and width after `short_side` and the random scale; `draw` in [0, 1) picks the scale from its range."""
    height, width = size[0], size[1]
    low, high = spec.scale
    factor = low + (high - low) * draw
    if spec.short_side is not None:
        factor *= spec.short_side / min(height, width)
    return max(1, round(height * factor)), max(1, round(width * factor))


def _cut(length_px: int, crop_px: int, draw: float) -> slice:
    """A random stretch of at most `crop_px` pixels; all of it where the image is smaller than the crop."""
    free = max(0, length_px - crop_px)
    start = min(free, int(draw * (free + 1)))
    return slice(start, min(length_px, start + crop_px))


def _planes(image: NDArray[np.uint8]) -> Tensor:
    """(3, H, W) view; decoders may hand out read-only arrays, which torch does not take."""
    return torch.from_numpy(image if image.flags.writeable else image.copy()).permute(2, 0, 1)


def _resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(image.shape[1:]) == size:
        return image
    resized: Tensor = tv.resize(image, list(size), interpolation=InterpolationMode.BILINEAR, antialias=True)
    return resized


def _nearest(label: NDArray[Any], *, size: tuple[int, int], rows: slice, columns: slice) -> Tensor:
    """The crop of the resized label map: each pixel takes the label at its centre."""
    y = _sources(label.shape[0], size[0])[rows]
    x = _sources(label.shape[1], size[1])[columns]
    return torch.from_numpy(label[y[:, None], x[None, :]].astype(np.int64))


def _sources(length_px: int, target_px: int) -> NDArray[np.int64]:
    """For each target pixel the source pixel under its centre."""
    centres = (np.arange(target_px, dtype=np.int64) * 2 + 1) * length_px // (2 * target_px)
    return np.minimum(centres, length_px - 1)


def _jitter(image: Tensor, *, spec: AugmentSpec, draws: Draws) -> Tensor:
    """Brightness, contrast and saturation, in this order, each by a factor in [max(0, 1 - s), 1 + s]."""
    if spec.brightness:
        image = tv.adjust_brightness(image, _factor(spec.brightness, draws.brightness))
    if spec.contrast:
        image = tv.adjust_contrast(image, _factor(spec.contrast, draws.contrast))
    if spec.saturation:
        image = tv.adjust_saturation(image, _factor(spec.saturation, draws.saturation))
    return image


def _factor(strength: float, draw: float) -> float:
    low = max(0.0, 1.0 - strength)
    return low + (1.0 + strength - low) * draw


def _pad(image: Tensor, label: Tensor, *, crop: tuple[int, int], void: int) -> tuple[Tensor, Tensor]:
    height, width = label.shape
    if (height, width) == crop:
        return image, label
    color = torch.tensor(PAD_COLOR, dtype=image.dtype)[:, None, None]
    pixels = color.expand(3, *crop).clone()
    classes = torch.full(crop, void, dtype=label.dtype)
    pixels[:, :height, :width] = image
    classes[:height, :width] = label
    return pixels, classes
