"""What an epoch of a stream holds: every row once, rows of rare classes again, or every class equally often.

A sampler says for each shard how many samples an epoch takes from it, and which; epochs of one sampler are equally
long, so that any position of a run is found without going through the epochs before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from pipelines.samples import Centroids, SampleIndex, ShardRows

ONE = 1 << 24  # repeat factors are whole numbers of 1 / ONE, so that every machine adds them up alike
EPOCHS_KEPT = 4


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


class Repeated:
    """Every usable row as often as its factor says (repeat factor sampling; Gupta et al., arXiv 1908.03195).

    A row with factor 2.3 comes twice, and a third time in about three of ten epochs: the fractions of all rows are
    added up in an order of the epoch's own, and a row comes once more where the sum passes a whole number. So every
    epoch has the same length; what is left of the sum at its end, less than one sample, is dropped.

    Args:
        factors: Of the rows of each shard, at least ONE, in units of 1 / ONE.
        key: What the choice depends on, besides the epoch.
    """

    def __init__(
        self, shards: tuple[ShardRows, ...], *, factors: Sequence[NDArray[np.int64]], key: Sequence[int]
    ) -> None:
        self.shards = shards
        self.factors = np.concatenate(list(factors))
        self._ends = np.cumsum([len(of_shard) for of_shard in factors])
        self._key = tuple(key)
        self._drawn = lru_cache(maxsize=EPOCHS_KEPT)(self._draw)
        self.length = int((self.factors // ONE).sum() + (self.factors % ONE).sum() // ONE)

    def sizes(self, epoch: int) -> NDArray[np.int64]:
        """Samples of each shard, every row as often as it comes."""
        return np.array([ends[-1] for ends in self._drawn(epoch)], dtype=np.int64)

    def row(self, epoch: int, shard: int, place: int) -> Drawn:
        """The row that the place belongs to, and which of its samples it is."""
        ends = self._drawn(epoch)[shard]
        number = int(np.searchsorted(ends, place, side="right"))
        before = int(ends[number - 1]) if number else 0
        return Drawn(int(self.shards[shard].rows[number]), place - before, None)

    def _draw(self, epoch: int) -> list[NDArray[np.int64]]:
        """Of each shard, the running sum of how often its rows come in an epoch."""
        counts, fractions = self.factors // ONE, self.factors % ONE
        order = permutation(len(counts), *self._key, epoch, 2)
        sums = np.cumsum(fractions[order])
        counts[order] += sums // ONE - (sums - fractions[order]) // ONE
        return [np.cumsum(of_shard) for of_shard in np.split(counts, self._ends[:-1])]


def repeat_factors(index: SampleIndex, present: Centroids, *, threshold: float) -> tuple[NDArray[np.int64], ...]:
    """Repeat factors of the rows of each shard: max(1, sqrt(threshold / f)) of the row's rarest class.

    Args:
        present: one entry for each class of each label.
        threshold: f below which a class counts as rare; f is the share of the index's rows that hold the class.

    Returns:
        For each shard of the index (rows,) factors in units of 1 / ONE.
    """
    counts = np.bincount(present.class_index, minlength=index.label_space.num_classes)
    share = np.maximum(counts, 1) / index.num_samples
    of_class = np.maximum(ONE, np.rint(np.sqrt(threshold / share) * ONE)).astype(np.int64)
    ends = np.searchsorted(present.shard, np.arange(len(index.shards)), side="right")
    factors = []
    for shard, start, end in zip(index.shards, [0, *ends[:-1]], ends, strict=True):
        of_rows = np.full(len(shard.rows), ONE)
        places = np.searchsorted(shard.rows, present.row[start:end])
        np.maximum.at(of_rows, places, of_class[present.class_index[start:end]])
        factors.append(of_rows)
    return tuple(factors)
