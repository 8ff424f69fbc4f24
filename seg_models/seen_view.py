"""The mean scores of a view, tile by tile, from looks that are taken when their rows are reached.

The scores of a look stay at the size of its cells. They are enlarged straight to the pixels of the original image, for
one tile after the other, and a row of windows is forgotten as soon as no tile below needs it: nothing of the size of
(K, H, W) is ever made.

Shapes: N images, K classes, H W pixels of an image, r c pixels of a tile, h w cells of a look.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from seg_models.looks import Part, View, cut
from seg_models.parts.resample import strips

Weights = dict[tuple[Part, int, int], tuple[slice, Tensor]]
"""For a part of a look and the first and last pixel of a tile: the cells near it, and how they are enlarged."""


class SeenView:
    """One view of some images, and what the network says about it.

    Args:
        images: (N, 3, H, W).
        view: which looks are taken.
        network: looks (n, 3, height, width) to scores (n, K, h, w).
        num_looks: that go through the network together at most.
        order: for each class, its index in the scores of this view.
        of_probabilities: the mean over windows is one of probabilities, not of logits.
    """

    def __init__(
        self,
        images: Tensor,
        view: View,
        *,
        network: Callable[[Tensor], Tensor],
        num_looks: int,
        order: Sequence[int],
        of_probabilities: bool,
    ) -> None:
        self._images, self._view, self._network = images, view, network
        self._num_looks, self._order, self._of_probabilities = num_looks, list(order), of_probabilities
        self._cells: dict[Part, Tensor] = {}
        self._row_weights: Weights = {}
        self._column_weights: Weights = {}
        self._row_counts, self._column_counts = (
            _counts(parts, device=images.device) for parts in (view.rows, view.columns)
        )

    def reach(self, strip: slice) -> None:
        """Take the looks that see some rows of the images, and forget those that end above these."""
        self._row_weights = {}
        self._cells = {rows: cells for rows, cells in self._cells.items() if rows.covered.stop > strip.start}
        for rows in self._view.rows:
            if rows not in self._cells and _common(rows.covered, strip) is not None:
                self._cells[rows] = self._look(rows)

    def scores(self, number: int, rows: slice, columns: slice) -> Tensor:
        """Mean over the windows at a tile of an image, (K, r, c).

        Args:
            number: of the image.
            rows: of the tile; reached.
            columns: of the tile.
        """
        total = torch.empty(0)
        for part, down, along in self._enlarged(number, rows, columns):
            if self._view.num_looks == 1:
                return part
            if total.numel() == 0:
                total = part.new_zeros(len(part), rows.stop - rows.start, columns.stop - columns.start)
            into = total[:, _within(down, rows), _within(along, columns)]
            into += torch.softmax(part, dim=0) if self._of_probabilities else part
        counts = self._row_counts[rows, None] * self._column_counts[columns]
        return torch.div(total, counts, out=total)

    def _look(self, rows: Part) -> Tensor:
        """Scores of a row of windows at all images, (columns, N, K, h, w)."""
        looks = [(number, rows, columns) for columns in self._view.columns for number in range(len(self._images))]
        num_passes = -(-len(looks) // self._num_looks)
        found: Tensor | None = None
        for chunk in strips(len(looks), rows=-(-len(looks) // num_passes)):
            scores = self._network(cut(self._images, looks[chunk]))
            if found is None:
                found = scores.new_empty((len(looks), *scores.shape[1:]), dtype=torch.float32)
            found[chunk] = scores[:, self._order] if self._view.mirrored else scores
        assert found is not None
        return found.view(len(self._view.columns), len(self._images), *found.shape[1:])

    def _enlarged(self, number: int, rows: slice, columns: slice) -> Iterator[tuple[Tensor, slice, slice]]:
        """What each look says about the pixels of a tile that it sees, and which rows and columns these are."""
        for row_part, cells in self._cells.items():
            down = _common(row_part.covered, rows)
            if down is None:
                continue
            near_rows, row_weights = self._weights(self._row_weights, row_part, down, cells.shape[-2])
            for column_part, looks in zip(self._view.columns, cells, strict=True):
                along = _common(column_part.covered, columns)
                if along is None:
                    continue
                near_columns, column_weights = self._weights(self._column_weights, column_part, along, cells.shape[-1])
                near = looks[number, :, near_rows, near_columns]
                yield row_weights @ (near @ column_weights.t()), down, along

    def _weights(self, known: Weights, part: Part, pixels: slice, num_cells: int) -> tuple[slice, Tensor]:
        key = (part, pixels.start, pixels.stop)
        if key not in known:
            known[key] = part.from_cells(pixels, num_cells=num_cells, device=self._images.device)
        return known[key]


def _common(a: slice, b: slice) -> slice | None:
    """The pixels in both; None where there are none."""
    start, stop = max(a.start, b.start), min(a.stop, b.stop)
    return slice(start, stop) if start < stop else None


def _within(inner: slice, outer: slice) -> slice:
    return slice(inner.start - outer.start, inner.stop - outer.start)


def _counts(parts: Sequence[Part], *, device: torch.device) -> Tensor:
    """How many parts see each pixel of the original image."""
    counts = torch.zeros(parts[0].pixels, device=device)
    for part in parts:
        counts[part.covered] += 1
    return counts
