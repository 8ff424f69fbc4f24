"""Counts what is in one shard of a dataset: hashes of images, sizes, label values."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipelines import storage
from pipelines.codecs import decode_label
from pipelines.labels import LabelSpace
from pipelines.schema import ShardKey
from pipelines.tables import read_shard_file


@dataclass(frozen=True)
class CheckShard:
    """Addresses of a shard's image and label files."""

    key: ShardKey
    images_path: str
    labels_path: str | None
    num_rows: int


@dataclass
class ShardFacts:
    """Counts about one shard."""

    split: str
    num_rows: int
    sizes: Counter[str] = field(default_factory=Counter)
    class_images: Counter[str] = field(default_factory=Counter)
    pixels: Counter[int] = field(default_factory=Counter)
    """Label pixels by class index."""
    label_images: Counter[int] = field(default_factory=Counter)
    """Labels that hold an index."""
    reasons: dict[str, str] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    """SHA-256 of each image's bytes, by id."""
    all_void: list[str] = field(default_factory=list)
    num_labelled: int = 0
    errors: list[str] = field(default_factory=list)


class CheckWorker:
    """Reads shards and counts."""

    def __init__(self, *, images_uri: str, labels_uri: str | None, label_space: LabelSpace) -> None:
        self.images_uri = images_uri
        self.labels_uri = labels_uri
        self.label_space = label_space

    def __call__(self, shard: CheckShard) -> ShardFacts:
        """Count one shard; a damaged file is a fact, not an end."""
        facts = ShardFacts(split=shard.key.split, num_rows=shard.num_rows)
        try:
            images = read_verified(self.images_uri, shard.images_path)
            labels = self._read_labels(shard)
        except ValueError as error:
            facts.errors.append(str(error))
            return facts
        for row in images:
            count_image(row, facts)
        if labels is None:
            return facts
        if [row["id"] for row in labels] != [row["id"] for row in images]:
            facts.errors.append(f"shard {shard.key}: images and labels hold other ids or another order")
            return facts
        for row, image in zip(labels, images, strict=True):
            count_label(row, image, facts, space=self.label_space)
        return facts

    def _read_labels(self, shard: CheckShard) -> list[dict[str, Any]] | None:
        if self.labels_uri is None or shard.labels_path is None:
            return None
        return read_verified(self.labels_uri, shard.labels_path)


def read_verified(table_uri: str, path: str) -> list[dict[str, Any]]:
    """Rows of a shard file whose SHA-256 is its name: rot shows wherever it is, not in data pages alone.

    Raises:
        ValueError: the file is gone or damaged.
    """
    place = storage.join(table_uri, path)
    if hashlib.sha256(storage.read_bytes(place)).hexdigest() != path.rpartition("/")[2].removesuffix(".parquet"):
        raise ValueError(f"{place}: damaged shard file (its SHA-256 is not its name)")
    rows: list[dict[str, Any]] = read_shard_file(table_uri, path).to_pylist()
    return rows


def count_image(row: dict[str, Any], facts: ShardFacts) -> None:
    """Add one row of the image table."""
    if row["reason"] is not None:
        facts.reasons[row["id"]] = row["reason"]
        return
    facts.sizes[f"{row['width']}x{row['height']}"] += 1
    facts.digests[row["id"]] = hashlib.sha256(row["image"]).hexdigest()
    if row["class"] is not None:
        facts.class_images[str(row["class"])] += 1


def count_label(row: dict[str, Any], image: dict[str, Any], facts: ShardFacts, *, space: LabelSpace) -> None:
    """Add one row of the label table."""
    if row["reason"] is not None:
        facts.reasons.setdefault(row["id"], row["reason"])
        return
    try:
        label = decode_label(row["label"])
    except ValueError as error:
        facts.errors.append(f"{row['id']}: {error}")
        return
    if image["reason"] is None and label.shape != (image["height"], image["width"]):
        found = f"{label.shape[1]}x{label.shape[0]}"
        facts.errors.append(f"{row['id']}: label of {found} px, image of {image['width']}x{image['height']} px")
    counts = np.bincount(label.reshape(-1))
    present = [int(index) for index in np.flatnonzero(counts)]
    unknown = [index for index in present if index >= space.num_classes and index != space.void]
    if unknown:
        facts.errors.append(
            f"{row['id']}: label value {unknown[0]} on {counts[unknown[0]]} pixels is neither a class nor void"
        )
    facts.num_labelled += 1
    facts.pixels.update({index: int(counts[index]) for index in present})
    facts.label_images.update(present)
    if present == [space.void]:
        facts.all_void.append(row["id"])
