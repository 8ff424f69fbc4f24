"""Where a training crop is cut: anywhere, around a point, and not where one class fills it.

H W pixels of the stored image, h w pixels after scaling.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.labels import LabelSpace
from seg_models.spec import did_you_mean

CROP_TRIES = 11  # mmsegmentation judges ten crops and takes the next one unseen

Crop = tuple[slice, slice]
"""Rows and columns of the scaled image."""
Point = tuple[int, int]
"""Row and column of a pixel."""


def class_indices(names: Sequence[str], space: LabelSpace, *, key: str) -> tuple[int, ...]:
    """Indices of classes by name; `key` is the setting that names them.

    Raises:
        ValueError: no class of that name; the message holds the nearest one.
    """
    unknown = next((name for name in names if name not in space.names), None)
    if unknown is not None:
        listed = ", ".join(space.names[:20])
        raise ValueError(f"{key}: no class {unknown!r}{did_you_mean(unknown, space.names)}; classes: {listed}")
    return tuple(space.names.index(name) for name in names)


def pixel_of_class(label: NDArray[Any], *, classes: Sequence[int], draw: float) -> Point | None:
    """A pixel of one of the classes, each with the same chance; None where a label has none."""
    places = np.flatnonzero(np.isin(label, classes)) if classes else np.empty(0, np.int64)
    if not len(places):
        return None
    row, column = divmod(int(places[int(draw * len(places))]), label.shape[1])
    return row, column


def scaled_point(point: Point, *, size: tuple[int, ...], target: tuple[int, int]) -> Point:
    """The pixel of the scaled image that holds a pixel of the stored one."""
    return point[0] * target[0] // size[0], point[1] * target[1] // size[1]


def cut(size: tuple[int, int], crop: tuple[int, int], *, point: Point | None, draws: tuple[float, float]) -> Crop:
    """Rows and columns of one crop; all of an axis where the image is smaller than the crop.

    Args:
        size: Height and width of the scaled image.
        point: Where the crop shall be: its corner is uniform in [point - crop, point] on each axis and is then moved
            into the image (HMSA's class-uniform sampling; at the far end the point is the first pixel beyond the
            crop). None: the corner is uniform over the image.
        draws: Two numbers in [0, 1), for the top and for the left side.
    """
    rows, columns = (
        _stretch(size[axis], crop[axis], None if point is None else point[axis], draws[axis]) for axis in (0, 1)
    )
    return rows, columns


def _stretch(length_px: int, crop_px: int, point: int | None, draw: float) -> slice:
    free = max(0, length_px - crop_px)
    start = int(draw * (free + 1)) if point is None else max(0, point - int(draw * (crop_px + 1)))
    start = min(free, start)
    return slice(start, min(length_px, start + crop_px))


def is_filled(label: NDArray[Any], *, limit: float, void: int) -> bool:
    """Whether a crop's label holds fewer than two classes, or one has at least `limit` of its known pixels."""
    counts = np.bincount(label.reshape(-1), minlength=void + 1)
    counts[void] = 0
    total = int(counts.sum())
    return int((counts > 0).sum()) < 2 or int(counts.max()) >= limit * total


def nearest(label: NDArray[Any], *, size: tuple[int, int], crop: Crop) -> NDArray[Any]:
    """A crop of the scaled label map: each pixel takes the label at its centre."""
    y = _sources(label.shape[0], size[0])[crop[0]]
    x = _sources(label.shape[1], size[1])[crop[1]]
    taken: NDArray[Any] = label[y][:, x]  # rows first: a seventh of the time of both at once
    return taken


def _sources(length_px: int, target_px: int) -> NDArray[np.int64]:
    """For each target pixel the source pixel under its centre."""
    centres = (np.arange(target_px, dtype=np.int64) * 2 + 1) * length_px // (2 * target_px)
    return np.minimum(centres, length_px - 1)
