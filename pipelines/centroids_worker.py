"""Finds the centres of mass of classes in the labels of one shard."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.codecs import decode_label
from pipelines.samples import Centroids, SampleIndex
from pipelines.tables import read_shard_file

Found = dict[int, NDArray[np.int32]]
"""(row, class, y, x) of the centroids, (C, 4), by place of the shard in the index."""


@dataclass(frozen=True)
class CentroidShard:
    """Address of a shard's label file."""

    table: str
    path: str


class CentroidWorker:
    """Reads the labels of a shard; returns (row, class, y, x) of every centroid as an int32 array (C, 4)."""

    def __init__(self, *, tile_px: int | None, num_classes: int) -> None:
        self.tile_px = tile_px
        self.num_classes = num_classes

    def __call__(self, shard: CentroidShard) -> NDArray[np.int32]:
        """The centroids of one shard, by row and place; rows without a label have none.

        Raises:
            ValueError: the file is gone or damaged, or a label cannot be read; the message names the id.
        """
        rows = read_shard_file(shard.table, shard.path, columns=["id", "label", "reason"]).to_pylist()
        found = [self._of_row(number, row) for number, row in enumerate(rows) if row["reason"] is None]
        return np.concatenate([np.empty((0, 4), np.int32), *found])

    def _of_row(self, number: int, row: dict[str, Any]) -> NDArray[np.int32]:
        try:
            label = decode_label(row["label"])
        except ValueError as error:
            raise ValueError(f"id {row['id']!r}: {error}") from error
        centroids = tile_centroids(label, tile_px=self.tile_px, num_classes=self.num_classes)
        return np.insert(centroids, 0, number, axis=1)


def tile_centroids(label: NDArray[Any], *, tile_px: int | None, num_classes: int) -> NDArray[np.int32]:
    """Centres of mass of every class in every tile of a label.

    Args:
        label: (H, W) class indices; those from `num_classes` on, such as void, have no centroid.
        tile_px: Side of the tiles, which do not overlap; what is left below and to the right belongs to none.
            None: the whole label is one tile.

    Returns:
        (C, 3) int32: class, row and column, rounded down; tile by tile in rows, classes in order.
    """
    height, width = label.shape if tile_px is None else (tile_px, tile_px)
    found = [np.empty((0, 3), np.int64)]
    for top in range(0, label.shape[0] - height + 1, height):
        for left in range(0, label.shape[1] - width + 1, width):
            tile = label[top : top + height, left : left + width]
            found.append(_centroids(tile, num_classes=num_classes) + np.array((0, top, left)))
    return np.concatenate(found).astype(np.int32)


def _centroids(tile: NDArray[Any], *, num_classes: int) -> NDArray[np.int64]:
    """(C, 3): class, row and column of the centre of mass of every class in a tile."""
    axes = np.arange(tile.shape[0])[:, None], np.arange(tile.shape[1])
    values = tile.reshape(-1)
    counts = np.bincount(values, minlength=num_classes)[:num_classes]
    classes = np.flatnonzero(counts)
    sums = [  # of whole numbers below 2^53: exact
        np.bincount(values, np.broadcast_to(axis, tile.shape).reshape(-1), num_classes)[classes].astype(np.int64)
        for axis in axes
    ]
    return np.stack([classes, sums[0] // counts[classes], sums[1] // counts[classes]], axis=1)


def join_centroids(index: SampleIndex, found: Found) -> Centroids:
    """One table, of the usable rows of the index."""
    tables = [np.empty((0, 5), np.int32)]
    for place, shard in enumerate(index.shards):
        usable = found[place][np.isin(found[place][:, 0], shard.rows)]
        tables.append(np.insert(usable, 0, place, axis=1))
    return Centroids(*np.ascontiguousarray(np.concatenate(tables).T))
