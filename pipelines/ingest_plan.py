"""What an ingest will do, settled and checked before any work: samples dealt to shards, and their fingerprint."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pipelines import storage
from pipelines.labels import LabelSpace
from pipelines.schema import ShardKey
from pipelines.sources.base import Listing, Sample, Source, printable
from pipelines.tables import Dataset, DatasetInfo, check_name, differing_keys

MB = 1_000_000
MIN_SIDE_PX = 8
"""Images with a shorter side than this are rejected."""
NO_CLASSES = LabelSpace(names=("unknown",))
"""Stands in dataset.json for images without any classes."""


@dataclass(frozen=True)
class PlannedShard:
    """The samples of one shard, in the order of its rows."""

    key: ShardKey
    samples: tuple[Sample, ...]

    @property
    def size_bytes(self) -> int:
        """Size of the images."""
        return sum(sample.size_bytes for sample in self.samples)


@dataclass(frozen=True)
class IngestPlan:
    """Everything an ingest needs to run, to resume, and to show before it starts."""

    root: str
    source: Source
    labels: str | None
    """Name of the label set to write; None where the source has no labels."""
    info: DatasetInfo
    shards: tuple[PlannedShard, ...]
    notes: tuple[str, ...]
    num_ignored: int
    min_side_px: int

    @cached_property
    def num_images(self) -> int:
        """Samples in all shards."""
        return sum(len(shard.samples) for shard in self.shards)

    @property
    def size_bytes(self) -> int:
        """Size of all images."""
        return sum(shard.size_bytes for shard in self.shards)

    def remaining(self) -> tuple[PlannedShard, ...]:
        """Shards that are not committed in every table yet."""
        if not storage.exists(storage.join(self.root, "dataset.json")):
            return self.shards
        dataset = Dataset.open(self.root)
        done = dataset.images.committed()
        if self.labels is not None:
            done &= dataset.labels(self.labels).committed() if self.labels in dataset.label_sets() else set()
        return tuple(shard for shard in self.shards if shard.key not in done)

    def summary(self) -> dict[str, Any]:
        """Counts for a dry run."""
        images = Counter[str]()
        for shard in self.shards:
            images[shard.key.split] += len(shard.samples)
        return {
            "dataset": self.root,
            "labels": self.labels,
            "classes": self.info.label_space.num_classes,
            "images": dict(images),
            "images_in": self.num_images,
            "shards": dict(Counter(shard.key.split for shard in self.shards)),
            "shards_to_do": len(self.remaining()),
            "image_bytes": self.size_bytes,
            "ignored_files": self.num_ignored,
            "notes": list(self.notes),
        }


def plan_ingest(
    source: Source,
    *,
    dataset: str,
    labels: str = "human",
    shard_rows: int = 256,
    shard_mb: int = 64,
    seed: int = 0,
    min_side_px: int = MIN_SIDE_PX,
) -> IngestPlan:
    """Check a source and a target, list the samples and deal them to shards. Writes nothing that stays.

    Args:
        source: what to read.
        dataset: root of the dataset to write.
        labels: name of the label set, where the source has labels.
        shard_rows: largest number of images in a shard.
        shard_mb: largest size of a shard's images, in MB (one larger image is a shard of its own).
        seed: deals images to shards.
        min_side_px: images with a shorter side are rejected.

    Raises:
        ValueError: folder or class list missing, no image, no image with a label, target not writable, or the
            target holds a dataset made from another plan.
    """
    root = storage.normalise(dataset)
    space = source.label_space()
    listing = source.list_samples()
    dealing = {"seed": seed, "shard_rows": shard_rows, "shard_mb": shard_mb, "min_side_px": min_side_px}
    info = DatasetInfo(
        name=printable(root.rsplit("/", 1)[-1]),
        label_space=space or NO_CLASSES,
        splits=tuple(dict.fromkeys(check_name(sample.split, what="split") for sample in listing)),
        source={
            "settings": source.model_dump(mode="json"),
            "labels": check_name(labels, what="label set") if source.has_labels else None,
            "num_images": len(listing),
            "listing": fingerprint(listing),
            **dealing,
        },
    )
    check_target(root, info)
    return IngestPlan(
        root=root,
        source=source,
        labels=labels if source.has_labels else None,
        info=info,
        shards=deal(listing.samples, seed=seed, shard_rows=shard_rows, shard_bytes=shard_mb * MB),
        notes=listing.notes,
        num_ignored=listing.num_ignored,
        min_side_px=min_side_px,
    )


def fingerprint(listing: Listing) -> str:
    """SHA-256 over what the listing says of every sample: id, split, sizes of its files, class."""
    digest = hashlib.sha256()
    for sample in sorted(listing, key=lambda sample: sample.id):
        fields = (sample.id, sample.split, sample.size_bytes, sample.label_bytes, sample.class_index)
        digest.update("\t".join(map(str, fields)).encode() + b"\n")
    return digest.hexdigest()


def deal(samples: Sequence[Sample], *, seed: int, shard_rows: int, shard_bytes: int) -> tuple[PlannedShard, ...]:
    """Cut every split into shards, in the order of SHA-256(seed, id): never in folder order."""
    by_split: dict[str, list[Sample]] = {}
    for sample in samples:
        by_split.setdefault(sample.split, []).append(sample)
    shards = []
    for split, members in by_split.items():
        members.sort(key=lambda sample: (hashlib.sha256(f"{seed}\n{sample.id}".encode()).digest(), sample.id))
        cuts = cut(members, shard_rows=shard_rows, shard_bytes=shard_bytes)
        shards += [PlannedShard(ShardKey(split, number), tuple(rows)) for number, rows in enumerate(cuts)]
    return tuple(shards)


def cut(samples: Sequence[Sample], *, shard_rows: int, shard_bytes: int) -> list[list[Sample]]:
    """Consecutive pieces, each within both limits; a sample larger than the limit is a piece of its own."""
    pieces: list[list[Sample]] = []
    room = 0
    for sample in samples:
        if not pieces or len(pieces[-1]) == shard_rows or sample.size_bytes > room:
            pieces.append([])
            room = shard_bytes
        pieces[-1].append(sample)
        room -= sample.size_bytes
    return pieces


def check_target(root: str, info: DatasetInfo) -> None:
    """Make sure that the dataset can be written or continued at `root`.

    Raises:
        ValueError: the place cannot be written, or holds a dataset made from another plan.
    """
    if not storage.exists(storage.join(root, "dataset.json")):
        storage.check_writable(existing_folder(root))
        return
    found = Dataset.open(root)
    ours, theirs = info.model_dump(mode="json"), found.info.model_dump(mode="json")
    differing = differing_keys(ours, theirs)
    if differing:
        raise ValueError(
            f"{root}: a dataset made from another plan is here ({'; '.join(differing[:3])}); "
            "choose another folder, or delete this one to ingest anew"
        )


def existing_folder(root: str) -> str:
    """`root` or the nearest folder above it that exists, so that a check leaves no folder behind."""
    if storage.is_remote(root):
        return root
    place = root
    while not storage.exists(place) and storage.parent(place) != place:
        place = storage.parent(place)
    return place
