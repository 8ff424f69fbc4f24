"""Boundary F: how well the outlines of classes are met, at several distances, for all classes at once.

Definition (DAVIS, Perazzi et al. 2016, `db_eval_boundary`; per class as Gated-SCNN, Takikawa et al. 2019, section 4.2):
a pixel is on the boundary of class k where its 2×2 block (itself, right, below, below right) holds k and another
label; outside the image its outermost pixels continue. Of a width of r pixels, a boundary pixel is matched where the
other map has a boundary pixel of the same class at a Euclidean distance of at most r. Precision is the matched share
of the predicted boundary, recall that of the true one, and F = 2PR / (P + R). Void is a label of its own, in the same
place in both maps, and no class.

Ours adds pixels up over the whole set before dividing, as mIoU does; a class without a boundary takes no part. The
published average over images and then classes is `published_f`; there an absent class counts as 1.

Shapes: K classes, H W pixels, R widths, n boundary pixels with their class (a pixel has one to four).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from seg_models.metrics import known_labels, mean_of_known, ratio

FRACTION_BITS = 40
"""F of single images is added up in whole 2⁻⁴⁰, so that the order of the images does not matter."""
MAX_WIDTH_PX = 256
_LANES = 0x0001_0001_0001_0001
_TOP_BITS = 0x8000_8000_8000_8000 - (1 << 64)
_NOTHING = -1
"""In all lanes: no boundary here."""


class BoundaryCounts(NamedTuple):
    """What is added up, int64. Sums of counts are sums of their parts."""

    predicted: NDArray[np.int64]
    """(K,) boundary pixels of the predictions."""
    true: NDArray[np.int64]
    """(K,) boundary pixels of the truth."""
    predicted_matched: NDArray[np.int64]
    """(R, K) of the predicted ones those that the truth has within the width."""
    true_matched: NDArray[np.int64]
    """(R, K) of the true ones those that the prediction has within the width."""
    image_f: NDArray[np.int64]
    """(R, K) F of single images, in 2⁻⁴⁰; 1 where an image has no boundary of the class."""
    images: NDArray[np.int64]
    """() images."""

    def plus(self, other: BoundaryCounts) -> BoundaryCounts:
        """Counts of both."""
        return BoundaryCounts(*(ours + theirs for ours, theirs in zip(self, other, strict=True)))


class BoundaryScore:
    """Boundary F of every class at several widths.

    Args:
        num_classes: K, at most 32767.
        void: the label that is no class.
        widths_px: largest distances of a match, in pixels; rising.
        device: where to compute.

    Raises:
        ValueError: widths do not rise, or there are more classes.
    """

    def __init__(
        self, num_classes: int, void: int, *, widths_px: Sequence[int], device: torch.device | str = "cpu"
    ) -> None:
        if num_classes > 0x7FFF:
            raise ValueError(f"boundary F is for at most {0x7FFF} classes, found {num_classes}")
        check_widths(widths_px)
        self.num_classes, self.void = num_classes, void
        self.widths_px = tuple(widths_px)
        self.device = torch.device(device)
        single, wide = np.zeros(num_classes, np.int64), np.zeros((len(self.widths_px), num_classes), np.int64)
        self.counts = BoundaryCounts(single, single, wide, wide, wide, np.array(0))

    def update(self, predicted: Tensor | NDArray[Any], target: Tensor | NDArray[Any]) -> None:
        """Add one image's label maps (H, W).

        Raises:
            ValueError: no maps of equal size, or a value is neither a class nor (in the target) void.
        """
        if target.ndim != 2:
            raise ValueError(f"one map (H, W) is needed, found {tuple(target.shape)}")
        labels = known_labels(predicted, target, num_classes=self.num_classes, void=self.void, device=self.device)
        guess, truth = (_Boundary.of(part, margin_px=self.widths_px[-1]) for part in labels)
        self.merge(self._counts_of_image(self._matched(guess, truth), self._matched(truth, guess)))

    def merge(self, other: BoundaryScore | BoundaryCounts) -> None:
        """Add the counts of another part of the data.

        Raises:
            ValueError: other classes or widths.
        """
        counts = other.counts if isinstance(other, BoundaryScore) else other
        if counts.image_f.shape != self.counts.image_f.shape:
            raise ValueError(f"cannot merge counts of {counts.image_f.shape} into {self.counts.image_f.shape}")
        self.counts = self.counts.plus(counts)

    def precision(self) -> NDArray[np.float64]:
        """(R, K) share of the predicted boundary that is near a true one; nan for a class that is never predicted."""
        return ratio(self.counts.predicted_matched, self.counts.predicted)

    def recall(self) -> NDArray[np.float64]:
        """(R, K) share of the true boundary that is near a predicted one; nan for a class that is not in the truth."""
        return ratio(self.counts.true_matched, self.counts.true)

    def f(self) -> NDArray[np.float64]:
        """(R, K) F of every class; nan where neither truth nor prediction has a boundary of it."""
        return _f(self.counts.predicted_matched, self.counts.predicted, self.counts.true_matched, self.counts.true)

    def mean_f(self) -> list[float]:
        """F of every width, averaged over the classes that have a boundary; nan if none has."""
        return [mean_of_known(row) for row in self.f()]

    def published_f(self) -> list[float]:
        """F of every width as in Gated-SCNN's tables: over images, then classes, 1 for a class that an image lacks."""
        images = int(self.counts.images)
        if not images:
            return [float("nan")] * len(self.widths_px)
        return [float(row.sum()) / 2.0**FRACTION_BITS / images / self.num_classes for row in self.counts.image_f]

    def _matched(self, ours: _Boundary, other: _Boundary) -> NDArray[np.int64]:
        """(R + 1, K): our boundary pixels that the other map has within each width, and all of them."""
        counts = [torch.bincount(ours.classes, minlength=self.num_classes)]
        near = other.cells_nearby(self.num_classes)[ours.classes, ours.cells]
        places, classes = ours.places[near], ours.classes[near]
        for rings in _rings(self.widths_px, stride=ours.stride):
            counts.append(torch.zeros_like(counts[0]))
            for ring in rings:
                found = other.has(places + ring[0], classes)
                for step in ring[1:]:
                    found |= other.has(places + step, classes)
                counts[-1] += torch.bincount(classes[found], minlength=self.num_classes)
                places, classes = places[~found], classes[~found]
        within = torch.stack(counts[1:]).cumsum(0)
        return torch.cat([within, counts[0][None]]).cpu().numpy()

    def _counts_of_image(self, seen: NDArray[np.int64], true: NDArray[np.int64]) -> BoundaryCounts:
        f = np.nan_to_num(_f(seen[:-1], seen[-1], true[:-1], true[-1]), nan=1.0)
        fixed = np.rint(f * 2.0**FRACTION_BITS).astype(np.int64)
        return BoundaryCounts(seen[-1], true[-1], seen[:-1], true[:-1], fixed, np.array(1))


class _Boundary(NamedTuple):
    """Where the boundaries of one map are; places count through the map with a margin around it."""

    lanes: Tensor
    """Four 16-bit labels of the block of every place in one int64; _NOTHING off the boundaries."""
    places: Tensor
    """(n,) places of boundary pixels, one for every class of theirs."""
    classes: Tensor
    """(n,)"""
    cells: Tensor
    """(n,) the square, as large as the margin, in which the pixel lies."""
    grid: tuple[int, int]
    """Rows and columns of squares."""
    stride: int
    """Places from a pixel to the one below it."""

    @classmethod
    def of(cls, labels: Tensor, *, margin_px: int) -> _Boundary:
        """The boundaries of a map (H, W), void -1."""
        height, width = labels.shape
        blocks = _blocks(labels)
        rows, columns = torch.nonzero(torch.stack([labels != other for other in blocks[1:]]).any(0), as_tuple=True)
        stride = width + 2 * margin_px
        places = (rows + margin_px) * stride + columns + margin_px
        corners = [block[rows, columns].long() for block in blocks]
        lanes = torch.full(((height + 2 * margin_px) * stride,), _NOTHING, device=labels.device)
        lanes[places] = (torch.stack(corners) & 0xFFFF).bitwise_left_shift(_lane_shifts(labels.device)).sum(0)
        first = torch.stack([(corner >= 0) & _differs(corner, corners[:i]) for i, corner in enumerate(corners)])
        which, entry = torch.nonzero(first, as_tuple=True)
        grid = height // margin_px + 1, width // margin_px + 1
        cells = (rows // margin_px) * grid[1] + columns // margin_px
        return cls(lanes, places[entry], torch.stack(corners)[which, entry], cells[entry], grid, stride)

    def cells_nearby(self, num_classes: int) -> Tensor:
        """(K, squares) whether a boundary of the class is in the square or one that touches it."""
        present = torch.zeros(num_classes, self.grid[0] * self.grid[1], device=self.places.device)
        present[self.classes, self.cells] = 1
        present = functional.max_pool2d(present.view(1, num_classes, *self.grid), 3, stride=1, padding=1)
        return present.view(num_classes, -1) > 0

    def has(self, places: Tensor, classes: Tensor) -> Tensor:
        """(n,) whether the class is one of the boundary's classes at the place.

        A lane of the difference is zero where the class is; the lowest zero lane is found by the borrow of its top bit.
        """
        differences = self.lanes.index_select(0, places) ^ (classes * _LANES)
        return ((differences - _LANES) & ~differences & _TOP_BITS) != 0


def _lane_shifts(device: torch.device) -> Tensor:
    return 16 * torch.arange(4, device=device)[:, None]


def _differs(values: Tensor, others: Sequence[Tensor]) -> Tensor:
    different = torch.ones_like(values, dtype=torch.bool)
    for other in others:
        different &= values != other
    return different


def check_widths(widths_px: Sequence[int]) -> None:
    """Refuse widths that do not rise from 1, and such that would take for ever: every step within one is tried.

    Raises:
        ValueError: so.
    """
    if not widths_px or widths_px[0] < 1 or any(a >= b for a, b in pairwise(widths_px)):
        raise ValueError(f"widths must rise and be at least 1 pixel, found {tuple(widths_px)}")
    if widths_px[-1] > MAX_WIDTH_PX:
        raise ValueError(f"widths are at most {MAX_WIDTH_PX} pixels, found {widths_px[-1]}")


def _blocks(labels: Tensor) -> list[Tensor]:
    """The map, and the maps (H, W) of what is right of, below and below right of every pixel."""
    right = torch.cat([labels[:, 1:], labels[:, -1:]], dim=1)
    return [labels, right, *(torch.cat([part[1:], part[-1:]]) for part in (labels, right))]


def _rings(widths_px: Sequence[int], *, stride: int) -> Iterator[list[list[int]]]:
    """For every width the steps that reach farther than the width before, those of equal length together."""
    reach = range(-widths_px[-1], widths_px[-1] + 1)
    rings: dict[int, list[int]] = {}
    for row in reach:
        for column in reach:
            rings.setdefault(row * row + column * column, []).append(row * stride + column)
    before = -1
    for width in widths_px:
        yield [rings[square] for square in sorted(rings) if before < square <= width * width]
        before = width * width


def _f(
    seen_matched: NDArray[np.int64], seen: NDArray[np.int64], true_matched: NDArray[np.int64], true: NDArray[np.int64]
) -> NDArray[np.float64]:
    """(R, K) F; 0 where only one of the maps has a boundary, nan where none has."""
    precision = np.nan_to_num(ratio(seen_matched, seen))
    recall = np.nan_to_num(ratio(true_matched, true))
    with np.errstate(invalid="ignore"):
        f = np.nan_to_num(2 * precision * recall / (precision + recall))
    return np.where(seen + true > 0, f, np.nan)
