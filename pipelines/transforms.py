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

from pipelines.colors import ColorDraws, jitter
from pipelines.crops import CROP_TRIES, Crop, Point, cut, is_filled, nearest, pixel_of_class, scaled_point
from seg_models.recipes.recipe import AugmentSpec

# Outside the image: the mean ImageNet colour, so that padding is close to zero once the backbone has normalised it.
PAD_COLOR = (124, 116, 104)


class Draws(NamedTuple):
    """The random numbers of one sample; always all of them, so that no setting shifts the others."""

    scale: float
    flip: float
    colors: ColorDraws
    around: float
    corners: tuple[tuple[float, float], ...]
    """Top and left of every crop that may be tried."""

    @classmethod
    def taken(cls, rng: np.random.Generator) -> Draws:
        """All numbers of a sample, in this order: scale, corner, flip, colours, and what came to be later."""
        scale, top, left, flip, brightness, contrast, saturation = rng.random(7).tolist()
        hue, blur, sigma, around, *more = rng.random(4 + 2 * (CROP_TRIES - 1)).tolist()
        colors = ColorDraws(brightness, contrast, saturation, hue, blur, sigma)
        return cls(scale, flip, colors, around, ((top, left), *zip(more[::2], more[1::2], strict=True)))


def augment(
    image: NDArray[np.uint8],
    label: NDArray[Any],
    *,
    spec: AugmentSpec,
    void: int,
    rng: np.random.Generator,
    mirrored: Sequence[int] = (),
    centroid: Point | None = None,
    around: Sequence[int] = (),
) -> tuple[Tensor, Tensor]:
    """Resize, cut a crop, change its colours, pad and flip.

    Args:
        image: (H, W, 3) uint8.
        label: (H, W) unsigned class indices, `void` where unknown.
        spec: The settings; padding goes below and to the right.
        void: Label of the padding.
        rng: Source of all randomness; the same state gives the same crop.
        mirrored: What each class index is in a mirrored image; default: what it was.
        centroid: Row and column of the stored image around which the crop is cut; default: anywhere.
        around: Without a centroid, the crop is cut around a random pixel of these classes, where the label has one
            (`spec.crop_around`, as indices).

    Returns:
        image (3, h, w) uint8 and label (h, w) in the type it had. Images are resized bilinearly with antialiasing,
        labels to the nearest pixel, so no new label value appears.

    Raises:
        ValueError: image and label differ in size.
    """
    if image.shape[:2] != label.shape:
        raise ValueError(f"image is {image.shape[:2]} (height, width), its label map {label.shape}")
    draws = Draws.taken(rng)
    size = target_size(image.shape[:2], spec=spec, draw=draws.scale)
    point = pixel_of_class(label, classes=around, draw=draws.around) if centroid is None else centroid
    crop, taken = _choose(label, size=size, spec=spec, void=void, point=point, draws=draws)
    pixels = _resize(_planes(image), size)[:, crop[0], crop[1]]
    pixels = jitter(pixels.contiguous(), spec=spec, draws=draws.colors)
    pixels, classes = _pad(pixels, taken, crop=spec.crop, void=void)
    if draws.flip < spec.flip:
        pixels, classes = pixels.flip(-1), _renamed(classes[:, ::-1], mirrored, void=void)
    return pixels.contiguous(), torch.from_numpy(np.ascontiguousarray(classes))


def _choose(
    label: NDArray[Any], *, size: tuple[int, int], spec: AugmentSpec, void: int, point: Point | None, draws: Draws
) -> tuple[Crop, NDArray[Any]]:
    """The first crop that no class fills, else the last, and its labels."""
    scaled = None if point is None else scaled_point(point, size=label.shape, target=size)
    for corner in draws.corners:
        crop = cut(size, spec.crop, point=scaled, draws=corner)
        taken = nearest(label, size=size, crop=crop)
        if spec.crop_class_max is None or not is_filled(taken, limit=spec.crop_class_max, void=void):
            break
    return crop, taken


def _renamed(classes: NDArray[Any], mirrored: Sequence[int], *, void: int) -> NDArray[Any]:
    """Other indices for some classes; void, which is none of them, stays."""
    if all(before == after for before, after in enumerate(mirrored)):
        return classes
    table = np.arange(void + 1, dtype=classes.dtype)
    table[: len(mirrored)] = mirrored
    renamed: NDArray[Any] = table[classes]
    return renamed


def target_size(size: tuple[int, ...], *, spec: AugmentSpec, draw: float) -> tuple[int, int]:
    """Height and width after `short_side` and the random scale; `draw` in [0, 1) picks the scale from its range."""
    height, width = size[0], size[1]
    low, high = spec.scale
    factor = low + (high - low) * draw
    if spec.short_side is not None:
        factor *= spec.short_side / min(height, width)
    return max(1, round(height * factor)), max(1, round(width * factor))


def _planes(image: NDArray[np.uint8]) -> Tensor:
    """(3, H, W) view; decoders may hand out read-only arrays, which torch does not take."""
    return torch.from_numpy(image if image.flags.writeable else image.copy()).permute(2, 0, 1)


def _resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(image.shape[1:]) == size:
        return image
    resized: Tensor = tv.resize(image, list(size), interpolation=InterpolationMode.BILINEAR, antialias=True)
    return resized


def _pad(image: Tensor, label: NDArray[Any], *, crop: tuple[int, int], void: int) -> tuple[Tensor, NDArray[Any]]:
    height, width = label.shape
    if (height, width) == crop:
        return image, label
    color = torch.tensor(PAD_COLOR, dtype=image.dtype)[:, None, None]
    pixels = color.expand(3, *crop).clone()
    classes = np.full(crop, void, label.dtype)
    pixels[:, :height, :width] = image
    classes[:height, :width] = label
    return pixels, classes
