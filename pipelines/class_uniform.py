"""Class-uniform sampling: a share of an epoch goes to all classes equally, in crops around their centroids.

As HMSA does it (Tao et al., arXiv 2005.10821; NVIDIA's semantic-segmentation): an epoch of n images takes
m = floor(share n / K) centroids of each of the K classes and n - m K images without a centroid, each list by going
round a shuffle of the epoch's own. What a class without any centroid would take goes to the images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from pipelines.samplers import EPOCHS_KEPT, Drawn, permutation
from pipelines.samples import Centroids, ShardRows


@dataclass(frozen=True)
class _Content:
    """The samples of one epoch, sorted by shard and row."""

    ends: NDArray[np.int64]
    """How many samples there are up to the end of each shard."""
    row: NDArray[np.int64]
    repeat: NDArray[np.int64]
    centroid: NDArray[np.int64]
    """Place in the table of centroids, or -1."""


class ClassUniform:
    """Images and centroids of one stream.

    Args:
        shards: All shards that samples are taken from.
        images: Places of the shards whose rows are drawn as images, too.
        centroids: `shard` counts in `shards`.
        lists: For each class, the places of its centroids in `centroids`.
        share: Of an epoch that is drawn by class.
        key: What the choice depends on, besides the epoch.

    Raises:
        ValueError: no class has a centroid, or the share is too small for one sample of each class.
    """

    def __init__(
        self,
        shards: tuple[ShardRows, ...],
        *,
        images: Sequence[int],
        centroids: Centroids,
        lists: Sequence[NDArray[np.int64]],
        share: float,
        key: Sequence[int],
    ) -> None:
        self.shards = shards
        self._shard = np.concatenate([np.full(len(shards[place].rows), place) for place in images])
        self._row = np.concatenate([shards[place].rows for place in images])
        self.lists = lists
        self._centroids, self._key = centroids, tuple(key)
        self.length = len(self._row)
        self.per_class = per_class(self.length, share=share, num_classes=len(lists))
        if not any(len(of_class) for of_class in lists):
            raise ValueError(
                "recipe.sampling.class_uniform: no label holds a class in a whole tile; choose a `tile` that is not "
                "larger than the images"
            )
        self._content = lru_cache(maxsize=EPOCHS_KEPT)(self._draw)

    def sizes(self, epoch: int) -> NDArray[np.int64]:
        """Samples of each shard."""
        return np.diff(self._content(epoch).ends, prepend=0)

    def row(self, epoch: int, shard: int, place: int) -> Drawn:
        """The sample at that place, images before centroids of the same row."""
        content = self._content(epoch)
        at = place + (int(content.ends[shard - 1]) if shard else 0)
        number = int(content.centroid[at])
        centroid = None if number < 0 else (int(self._centroids.y[number]), int(self._centroids.x[number]))
        return Drawn(int(content.row[at]), int(content.repeat[at]), centroid)

    def _draw(self, epoch: int) -> _Content:
        drawn = [
            _cycled(of_class, self.per_class, key=(*self._key, epoch, 3 + number))
            for number, of_class in enumerate(self.lists)
            if len(of_class)
        ]
        chosen = np.concatenate(drawn)
        images = _cycled(np.arange(self.length), self.length - len(chosen), key=(*self._key, epoch, 2))
        shard = np.concatenate([self._shard[images], self._centroids.shard[chosen]])
        row = np.concatenate([self._row[images], self._centroids.row[chosen]])
        centroid = np.concatenate([np.full(len(images), -1), chosen])
        order = np.lexsort((centroid, row, shard))
        shard, row, centroid = shard[order], row[order], centroid[order]
        ends = np.cumsum(np.bincount(shard, minlength=len(self.shards)))
        return _Content(ends, row, _occurrence(shard, row), centroid)


def per_class(length: int, *, share: float, num_classes: int) -> int:
    """Samples of each class in an epoch of `length` samples.

    Raises:
        ValueError: none.
    """
    each = int(Fraction(repr(float(share))) * length / num_classes)
    if not each:
        raise ValueError(
            f"recipe.sampling.class_uniform.share = {share} takes no effect: an epoch of {length} samples has less "
            f"than one for each of {num_classes} classes"
        )
    return each


def _cycled(items: NDArray[np.int64], count: int, *, key: Sequence[int]) -> NDArray[np.int64]:
    """`count` items, going round a shuffle of them."""
    shuffled = items[permutation(len(items), *key)]
    return shuffled[np.arange(count) % len(items)]


def _occurrence(*columns: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each entry of sorted columns, how many equal ones come before it."""
    new = np.any([np.diff(column, prepend=-1) != 0 for column in columns], axis=0)
    starts = np.flatnonzero(new)
    number: NDArray[np.int64] = np.arange(len(new)) - starts[np.cumsum(new) - 1]
    return number
