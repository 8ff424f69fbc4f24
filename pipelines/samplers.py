"""What an epoch of a stream holds: every row once, rows of rare classes again, or every class equally often.

A sampler says for each shard how many samples an epoch takes from it, and which; epochs of one sampler are equally
long, so that any position of a run is found without going through the epochs before it.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from pipelines.samples import ShardRows


class Drawn(NamedTuple):
    """One sample of an epoch."""

    row: int
    """Of its shard."""
    repeat: int
    """How often the epoch had this row before."""
    centroid: tuple[int, int] | None
    """Row and column of the stored image that the crop is cut around."""


class Sampler(Protocol):
    """The content of the epochs of a stream."""

    @property
    def shards(self) -> tuple[ShardRows, ...]:
        """Shards that samples are taken from."""

    @property
    def length(self) -> int:
        """Samples of an epoch, the same in every epoch."""

    def sizes(self, epoch: int) -> NDArray[np.int64]:
        """Samples that an epoch takes from each shard."""

    def row(self, epoch: int, shard: int, place: int) -> Drawn:
        """The sample at a place (0-based) of what an epoch takes from a shard."""


def permutation(count: int, *key: int) -> NDArray[np.int64]:
    """A permutation of 0..count-1 that depends on `key` alone.

    numpy promises the stream of its bit generators across versions, not that of `Generator.permutation`.
    """
    words = np.random.Philox(np.random.SeedSequence([value % 2**64 for value in key])).random_raw(count)
    return np.argsort(words, kind="stable")


class EveryRow:
    """Every usable row once per epoch."""

    def __init__(self, shards: tuple[ShardRows, ...]) -> None:
        self.shards = shards
        self._sizes = np.array([len(shard.rows) for shard in shards], dtype=np.int64)
        self.length = int(self._sizes.sum())

    def sizes(self, epoch: int) -> NDArray[np.int64]:
        """Usable rows of each shard."""
        return self._sizes

    def row(self, epoch: int, shard: int, place: int) -> Drawn:
        """The usable row at that place."""
        return Drawn(int(self.shards[shard].rows[place]), 0, None)
