"""The samples that a training run can see: usable rows of one or more label sets, by shard. Their order: order.py."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import Field

from pipelines import storage
from pipelines.labels import LabelSpace
from pipelines.schema import ShardKey
from pipelines.tables import Dataset, ShardFile, Table
from seg_models.spec import Spec, did_you_mean

INDEX_THREADS = 16


class Part(Spec):
    """One label set of one split of a dataset."""

    dataset: str
    labels: str = "human"
    split: str = "train"
    name: str | None = None
    """What recipes and tables call it."""
    weight: float | None = Field(None, gt=0)
    """Samples of a step in proportion to the weights of the other parts; default: as many as the part has."""

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


@dataclass(frozen=True)
class Centroids:
    """Centres of mass of classes, sorted by shard, row and place in the image; five arrays of one length."""

    shard: NDArray[np.int32]
    """Place in the index's `shards`."""
    row: NDArray[np.int32]
    """Row of the shard."""
    class_index: NDArray[np.int32]
    y: NDArray[np.int32]
    """Row of the pixel in the stored image."""
    x: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.shard)


@dataclass(frozen=True)
class SampleIndex:
    """All usable samples of one or more parts, by shard. Small: it travels to every worker."""

    label_space: LabelSpace
    parts: tuple[PartSummary, ...]
    shards: tuple[ShardRows, ...]
    centroids: Centroids | None = None
    """Of every class in every tile of a label, where the recipe samples by class (centroids.py)."""
    repeats: tuple[NDArray[np.int64], ...] | None = None
    """Repeat factors of the rows of each shard, in units of 1 / ONE, where the recipe repeats rare classes."""

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
