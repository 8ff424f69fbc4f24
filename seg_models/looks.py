"""Which looks at an image are taken, and where each of them lies on its pixels.

A *view* is the image at one scale, as it is or mirrored. A *look* is what the network is given at once: the whole view,
or a window of it. Windows form a grid, so a look is a part of the rows and a part of the columns, and one class says
everything about a part of either.

Shapes: N batch, H W pixels of the original image, r c pixels of a tile, h w cells of a look.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from seg_models.parts.layers import IMAGENET_MEAN
from seg_models.parts.resample import interpolation, strips

PAD_COLOR = tuple(round(255 * value) for value in IMAGENET_MEAN)
"""Fills images up to a multiple of the output stride."""
_RESIZE_TILE = 256
"""Pixels that are resized at once, per axis: near enough to the cores, and few inputs are far from any output."""


@dataclass(frozen=True)
class Part:
    """The rows, or the columns, that a look sees of an image."""

    pixels: int
    """H or W of the original image."""
    resized: int
    """The same of the view."""
    start: int
    """The first pixel of the view that is seen."""
    length: int
    """Pixels that are seen, with padding behind the last one of the view."""
    mirrored: bool = False

    @property
    def covered(self) -> slice:
        """The original pixels whose centres are seen."""
        first, stop = (self._first_pixel(place) for place in (self.start, self.start + self.length))
        return slice(self.pixels - stop, self.pixels - first) if self.mirrored else slice(first, stop)

    @property
    def num_inside(self) -> int:
        """Pixels of the view that are seen, without padding."""
        return min(self.length, self.resized - self.start)

    @property
    def original(self) -> slice:
        """The pixels of the image that are seen, where the view has its size."""
        return self._turned(slice(self.start, self.start + self.num_inside), self.pixels)

    def from_cells(self, pixels: slice, *, num_cells: int, device: torch.device) -> tuple[slice, Tensor]:
        """The cells near some of the original pixels, and the weights (pixels, cells) that interpolate them.

        Args:
            pixels: original pixels that are seen.
            num_cells: cells that `length` pixels of the view became.
            device: of the weights.
        """
        per_pixel = num_cells / self.length
        wanted = self._turned(pixels, self.pixels)
        near, weights = interpolation(
            wanted,
            num_in=num_cells,
            ratio=self.resized / self.pixels * per_pixel,
            offset=self.start * per_pixel,
            device=device,
        )
        return near, weights.flip(0) if self.mirrored else weights

    def from_image(self, seen: slice, *, device: torch.device) -> tuple[slice, Tensor]:
        """The original pixels near some that are seen, and the weights (seen, original) that resize them.

        As torch's bilinear interpolation with antialiasing.

        Args:
            seen: pixels counted from `start`.
            device: of the weights.
        """
        ratio = self.pixels / self.resized
        wanted = self._turned(slice(self.start + seen.start, self.start + seen.stop), self.resized)
        near, weights = interpolation(wanted, num_in=self.pixels, ratio=ratio, reach=max(ratio, 1.0), device=device)
        return near, weights.flip(0) if self.mirrored else weights

    def _first_pixel(self, place: int) -> int:
        """The first original pixel (of the mirrored image) whose centre lies at or behind a pixel of the view."""
        first = -(-(2 * place * self.pixels - self.resized) // (2 * self.resized))
        return min(max(first, 0), self.pixels)

    def _turned(self, places: slice, length: int) -> slice:
        return slice(length - places.stop, length - places.start) if self.mirrored else places


@dataclass(frozen=True)
class View:
    """An image at one scale, mirrored or not, and the grid of looks at it."""

    rows: tuple[Part, ...]
    """From top to bottom."""
    columns: tuple[Part, ...]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of every look."""
        return self.rows[0].length, self.columns[0].length

    @property
    def is_resized(self) -> bool:
        """Whether its pixels are others than the image's."""
        return any(part.resized != part.pixels for part in (self.rows[0], self.columns[0]))

    @property
    def mirrored(self) -> bool:
        """Whether it is the mirror image."""
        return self.columns[0].mirrored

    @property
    def num_looks(self) -> int:
        """Of the whole view."""
        return len(self.rows) * len(self.columns)


def make_view(
    image: tuple[int, int],
    *,
    resized: tuple[int, int],
    window: tuple[int, int] | None,
    stride: tuple[int, int] | None,
    cell: int,
    mirrored: bool,
) -> View:
    """The looks at one view of an image.

    Args:
        image: height and width of the image.
        resized: of the view.
        window: of a look, filled up to whole cells; None for the whole view.
        stride: pixels of the view from one window to the next; the last one ends with the view.
        cell: pixels of the view per cell of the scores.
        mirrored: whether it is the mirror image.
    """
    grid = [
        [
            Part(image[axis], resized[axis], start, length, mirrored and axis == 1)
            for start, length in _windows(
                resized[axis],
                window=None if window is None else window[axis],
                stride=None if stride is None else stride[axis],
                cell=cell,
            )
        ]
        for axis in (0, 1)
    ]
    return View(tuple(grid[0]), tuple(grid[1]))


def _windows(side: int, *, window: int | None, stride: int | None, cell: int) -> list[tuple[int, int]]:
    """First pixel and length of the windows on one axis."""
    whole = _round_up(side, cell)
    length = whole if window is None else min(_round_up(window, cell), whole)
    if window is None or length >= side:
        return [(0, length)]
    step = stride or max(1, round(window * 2 / 3))
    last = side - length
    return [(min(start, last), length) for start in range(0, last + step, step)]


def cut(images: Tensor, looks: Sequence[tuple[int, Part, Part]]) -> Tensor:
    """What looks of equal size see, filled up with `PAD_COLOR`: (n, 3, height, width), channels last.

    Looks at an image's own size keep the type of the images; resized ones are float32.

    Args:
        images: (N, 3, H, W).
        looks: number of the image, rows and columns of each.
    """
    _, rows, columns = looks[0]
    is_resized = rows.resized != rows.pixels or columns.resized != columns.pixels
    seen = torch.empty(
        (len(looks), 3, rows.length, columns.length),
        dtype=torch.float32 if is_resized else images.dtype,
        device=images.device,
        memory_format=torch.channels_last,
    )
    seen.copy_(torch.tensor(PAD_COLOR, dtype=seen.dtype, device=images.device).view(1, 3, 1, 1))
    for into, (number, rows, columns) in zip(seen, looks, strict=True):
        (_resize if is_resized else _copy)(images[number], into, rows, columns)
    return seen


def _copy(image: Tensor, seen: Tensor, rows: Part, columns: Part) -> None:
    """Fill a look with pixels of the image."""
    part = image[:, rows.original, columns.original]
    seen[:, : rows.num_inside, : columns.num_inside] = part.flip(-1) if columns.mirrored else part


def _resize(image: Tensor, seen: Tensor, rows: Part, columns: Part) -> None:
    """Fill a look with resized pixels, tile by tile."""
    for down in strips(rows.num_inside, rows=_RESIZE_TILE):
        near_rows, row_weights = rows.from_image(down, device=image.device)
        for along in strips(columns.num_inside, rows=_RESIZE_TILE):
            near_columns, column_weights = columns.from_image(along, device=image.device)
            part = image[:, near_rows, near_columns].float()
            seen[:, down, along] = row_weights @ (part @ column_weights.t())


def _round_up(side: int, multiple: int) -> int:
    return -(-side // multiple) * multiple
