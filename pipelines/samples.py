"""Which samples a training run sees, and in which order.

The order is a function of seed and step alone. The run has L lanes; the g-th sample of the run comes from lane
g mod L, whatever the number of workers, and a worker serves the lanes l = rank (mod world). In an epoch (N samples)
the shards are permuted, the rows are permuted inside windows of shards, and each lane takes one contiguous cut of
the result: a lane reads its shards one window after the other, and every sample appears once per epoch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipelines import storage
from pipelines.labels import LabelSpace
from pipelines.schema import ShardKey
from pipelines.tables import Dataset, ShardFile, Table
from seg_models.spec import Spec, did_you_mean

OPEN_SHARDS = 64  # a run draws from about this many shards at once; with 64 MB shards at most 4 GB over all workers
INDEX_THREADS = 16


class Part(Spec):
    """One label set of one split of a dataset."""

    dataset: str
    labels: str = "human"
    split: str = "train"

    def __str__(self) -> str:
        return f"{self.dataset} labels {self.labels!r} split {self.split!r}"


@dataclass(frozen=True)
class PartSummary:
    """What a part holds."""

    part: Part
    num_rows: int
    """Rows of the image table in shards that have labels."""
    num_samples: int
    """Rows that are good in both tables."""
    num_missing_shards: int
    """Shards of images without labels yet."""
    fingerprint: str
    """SHA-256 over the file hashes of the shards used."""


@dataclass(frozen=True)
class ShardRows:
    """The usable rows of one shard, and the two files they lie in."""

    part: int
    key: ShardKey
    rows: NDArray[np.int32]
    images: tuple[str, str]
    """Address of the image table, and the file's path in it."""
    labels: tuple[str, str]


class Sample(NamedTuple):
    """Address of one sample, and the epoch it is drawn in (the augmentation depends on it)."""

    epoch: int
    part: int
    key: ShardKey
    row: int


@dataclass(frozen=True)
class SampleIndex:
    """All usable samples of one or more parts, by shard. Small: it travels to every worker."""

    label_space: LabelSpace
    parts: tuple[PartSummary, ...]
    shards: tuple[ShardRows, ...]

    @cached_property
    def num_samples(self) -> int:
        """Samples of one epoch."""
        return sum(len(shard.rows) for shard in self.shards)

    def fingerprint(self) -> str:
        """SHA-256 over the content of all parts, wherever they lie."""
        return hashlib.sha256("\n".join(part.fingerprint for part in self.parts).encode()).hexdigest()


def build_index(parts: Sequence[Part]) -> SampleIndex:
    """Read ids and reasons of every shard and keep the rows that have an image and a label.

    Raises:
        ValueError: a split is unknown or empty, the class lists or their mirror pairs differ, or the rows of an image
            shard and its label shard are not the same ids in the same order.
    """
    spaces: list[LabelSpace] = []
    summaries: list[PartSummary] = []
    shards: list[ShardRows] = []
    for number, part in enumerate(parts):
        dataset = Dataset.open(part.dataset)
        labels = dataset.labels(part.labels)
        spaces.append(labels.label_space)
        summary, found = _index_part(number, part, images=dataset.images, labels=labels)
        summaries.append(summary)
        shards.extend(found)
    _check_same_classes(parts, spaces)
    return SampleIndex(label_space=_common_space(parts, spaces), parts=tuple(summaries), shards=tuple(shards))


def _index_part(number: int, part: Part, *, images: Table, labels: Table) -> tuple[PartSummary, list[ShardRows]]:
    pairs, num_missing = _pair_shards(part, images, labels)
    with ThreadPoolExecutor(INDEX_THREADS) as pool:
        read = pool.map(lambda pair: _index_shard(number, part, images.uri, labels.uri, *pair), pairs)
        shards = list(read)
    content = "\n".join(f"{image.key} {image.path} {label.path}" for image, label in pairs)
    summary = PartSummary(
        part=part,
        num_rows=sum(image.num_rows for image, _ in pairs),
        num_samples=sum(len(shard.rows) for shard in shards),
        num_missing_shards=num_missing,
        fingerprint=hashlib.sha256(content.encode()).hexdigest(),
    )
    if not summary.num_samples:
        raise ValueError(f"{part}: none of {summary.num_rows} rows has both an image and a label; see `segray check`")
    return summary, [shard for shard in shards if len(shard.rows)]


def _pair_shards(part: Part, images: Table, labels: Table) -> tuple[list[tuple[ShardFile, ShardFile]], int]:
    """The image and label files of the split's shards, in order, and the number of shards without labels."""
    of_split = images.files(split=part.split)
    if not of_split:
        splits = sorted({file.key.split for file in images.files()})
        nearest = did_you_mean(part.split, splits)
        raise ValueError(f"{part}: the dataset has no such split{nearest}; splits: {', '.join(splits) or 'none'}")
    labelled = {file.key: file for file in labels.files(split=part.split)}
    pairs = [(file, labelled[file.key]) for file in of_split if file.key in labelled]
    if not pairs:
        raise ValueError(f"{part}: no shard of this split has labels yet; run the job that writes {part.labels!r}")
    return pairs, len(of_split) - len(pairs)


def _index_shard(
    number: int, part: Part, images_uri: str, labels_uri: str, image: ShardFile, label: ShardFile
) -> ShardRows:
    left, right = _ids_and_reasons(images_uri, image), _ids_and_reasons(labels_uri, label)
    check_same_ids(f"{part} shard {image.key}", left["id"].to_pylist(), right["id"].to_pylist())
    good = left["reason"].is_null().to_numpy() & right["reason"].is_null().to_numpy()
    rows = np.flatnonzero(good).astype(np.int32)
    return ShardRows(number, image.key, rows, (images_uri, image.path), (labels_uri, label.path))


def _ids_and_reasons(table_uri: str, file: ShardFile) -> pa.Table:
    """Only two small columns of a file that is mostly images, so not the whole file is read."""
    place = storage.join(table_uri, file.path)
    try:
        with storage.open_input(place) as opened, pq.ParquetFile(opened, page_checksum_verification=True) as parquet:
            return parquet.read(columns=["id", "reason"])
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{place}: damaged or missing shard file ({str(error).splitlines()[0]})") from error


def check_same_ids(where: str, images: Sequence[str], labels: Sequence[str]) -> None:
    """Refuse an image shard and a label shard whose rows do not belong together.

    Raises:
        ValueError: other ids, or another order.
    """
    if images == labels:
        return
    if len(images) != len(labels):
        raise ValueError(f"{where}: {len(images)} images but {len(labels)} labels; write the label set again")
    row = next(i for i, (a, b) in enumerate(zip(images, labels, strict=True)) if a != b)
    raise ValueError(
        f"{where}: row {row} is image {images[row]!r} but label {labels[row]!r}; write the label set again"
    )


def _check_same_classes(parts: Sequence[Part], spaces: Sequence[LabelSpace]) -> None:
    for part, space in zip(parts[1:], spaces[1:], strict=True):
        if not space.same_classes(spaces[0]):
            first = spaces[0]
            differing = [
                name for name in (*first.names, *space.names) if (name in first.names) != (name in space.names)
            ]
            what = ", ".join(differing[:5]) or "their order"
            raise ValueError(
                f"the class lists of {parts[0]} ({first.num_classes} classes) and {part} "
                f"({space.num_classes} classes) differ: {what}"
            )


def _common_space(parts: Sequence[Part], spaces: Sequence[LabelSpace]) -> LabelSpace:
    """The first label space that knows which classes change places in a mirrored image, else the first.

    An imported class list often does not say it: then the order of the parts must not decide.

    Raises:
        ValueError: two of them know different ones.
    """
    paired = [(part, space) for part, space in zip(parts, spaces, strict=True) if space.mirror_pairs]
    if not paired:
        return spaces[0]
    first, known = paired[0]
    for part, space in paired[1:]:
        if space.mirrored != known.mirrored:
            raise ValueError(
                f"the mirror_pairs of {first} ({known.mirror_pairs}) and {part} ({space.mirror_pairs}) differ"
            )
    return known


def permutation(count: int, *key: int) -> NDArray[np.int64]:
    """A permutation of 0..count-1 that depends on `key` alone.

    numpy promises the stream of its bit generators across versions, not that of `Generator.permutation`.
    """
    words = np.random.Philox(np.random.SeedSequence([value % 2**64 for value in key])).random_raw(count)
    return np.argsort(words, kind="stable")


class _Epoch:
    """The permuted shards of one epoch and where its lanes begin."""

    def __init__(self, epoch: int, *, sizes: NDArray[np.int64], lanes: int, seed: int) -> None:
        num_samples = int(sizes.sum())
        self.first = epoch * num_samples
        self.shards = permutation(len(sizes), seed, epoch, 0)
        self.offsets = np.concatenate(([0], np.cumsum(sizes[self.shards])))
        lane = np.arange(lanes)
        self.lane_first = self.first + (lane - self.first) % lanes
        counts = np.maximum(0, (self.first + num_samples - 1 - self.lane_first) // lanes + 1)
        self.lane_start = np.concatenate(([0], np.cumsum(counts)))[:-1]


class SampleOrder:
    """Maps steps to samples. Every method is a pure function of its arguments and the constructor's."""

    def __init__(self, index: SampleIndex, *, lanes: int, seed: int) -> None:
        self.index = index
        self.lanes = lanes
        self.seed = seed
        count = len(index.shards)
        self.window = count if count <= OPEN_SHARDS else max(1, OPEN_SHARDS // lanes)
        """Shards whose rows are mixed: all of a small dataset, else a lane's share of OPEN_SHARDS."""
        self._sizes = np.array([len(shard.rows) for shard in index.shards], dtype=np.int64)
        self._epoch = lru_cache(maxsize=4)(self._make_epoch)
        self._rows = lru_cache(maxsize=lanes + 64)(self._make_rows)

    def samples(self, step: int, *, global_batch: int, rank: int = 0, world: int = 1) -> list[Sample]:
        """The samples that worker `rank` of `world` takes in a step, in order.

        Raises:
            ValueError: `world` does not divide the lanes and the global batch.
        """
        if self.lanes % world or global_batch % world:
            raise ValueError(f"{world} workers do not divide {self.lanes} lanes and a global batch of {global_batch}")
        first = step * global_batch  # a multiple of `world`
        return [self.sample(g) for g in range(first + rank, first + global_batch, world)]

    def sample(self, position: int) -> Sample:
        """The sample at a position (0-based) of the whole run."""
        number = position // self.index.num_samples
        epoch = self._epoch(number)
        lane = position % self.lanes
        place = int(epoch.lane_start[lane]) + (position - int(epoch.lane_first[lane])) // self.lanes
        window = self._shard_at(epoch, place) // self.window
        start = int(epoch.offsets[window * self.window])
        place = start + int(self._rows(number, window)[place - start])
        slot = self._shard_at(epoch, place)
        shard = self.index.shards[int(epoch.shards[slot])]
        return Sample(number, shard.part, shard.key, int(shard.rows[place - int(epoch.offsets[slot])]))

    def open_shards(self, world: int) -> int:
        """Shards that a worker has open at once."""
        return min(len(self.index.shards), self.lanes // world * self.window)

    @staticmethod
    def _shard_at(epoch: _Epoch, place: int) -> int:
        return int(np.searchsorted(epoch.offsets, place, side="right")) - 1

    def _make_epoch(self, number: int) -> _Epoch:
        return _Epoch(number, sizes=self._sizes, lanes=self.lanes, seed=self.seed)

    def _make_rows(self, number: int, window: int) -> NDArray[np.int64]:
        """The permutation of the rows of a window."""
        offsets = self._epoch(number).offsets
        end = min((window + 1) * self.window, len(offsets) - 1)
        return permutation(int(offsets[end] - offsets[window * self.window]), self.seed, number, 1, window)


def sample_rng(sample_id: str, *, seed: int, epoch: int) -> np.random.Generator:
    """Randomness of one sample in one epoch, whichever worker or thread takes it."""
    digest = hashlib.sha256(sample_id.encode()).digest()
    words: list[Any] = [seed % 2**64, epoch, *np.frombuffer(digest, np.uint32).tolist()]
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(words)))
