"""A tiny dataset for tests of training: flat coloured squares whose colour tells the class."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from pipelines import schema
from pipelines.codecs import encode_label
from pipelines.labels import LabelSpace
from pipelines.schema import ShardKey
from pipelines.tables import Dataset, DatasetInfo, Table, write_shard

SPACE = LabelSpace(names=("ground", "red", "green"), background=0)
COLORS = ((20, 20, 30), (220, 40, 40), (40, 200, 60))


def write_dataset(
    root: Path | str,
    *,
    shard_sizes: Sequence[int] = (5, 4, 3),
    split: str = "train",
    labels: str = "human",
    space: LabelSpace = SPACE,
    bad_images: Sequence[int] = (),
    bad_labels: Sequence[int] = (),
    size: tuple[int, int] = (36, 44),
    damaged: Sequence[int] = (),
) -> Dataset:
    """Write `sum(shard_sizes)` scenes. `bad_*` name rows that carry a reason, `damaged` rows of unreadable bytes."""
    info = DatasetInfo(name="tiny", label_space=space, splits=(split,))
    dataset = Dataset.create(str(root), info)
    images, sets = dataset.images, dataset.create_labels(labels, label_space=space, plan={})
    first = 0
    for shard, count in enumerate(shard_sizes):
        rows = [scene(first + i, space=space, size=size) for i in range(count)]
        for i, row in enumerate(rows):
            row["bad_image"], row["bad_label"] = first + i in bad_images, first + i in bad_labels
            row["image"] = b"\xff\xd8 torn" if first + i in damaged else row["image"]
        key = ShardKey(split, shard)
        images.commit([write_shard(images.uri, key, image_rows(rows))])
        sets.commit([write_shard(sets.uri, key, label_rows(rows))])
        first += count
    return dataset


def scene(number: int, *, space: LabelSpace, size: tuple[int, int]) -> dict[str, Any]:
    """Image `number`: two rectangles on the ground, a little noise; deterministic."""
    rng = np.random.default_rng(number)
    label = np.zeros(size, dtype=space.dtype)
    for index in (1, 2):
        top, left = rng.integers(0, size[0] - 12), rng.integers(0, size[1] - 12)
        label[top : top + 12, left : left + 12] = index
    pixels = np.array(COLORS)[label] + rng.integers(-15, 16, (*size, 3))
    buffer = io.BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(buffer, "PNG")
    return {"id": f"scene-{number:04d}", "image": buffer.getvalue(), "label": label, "size": size}


def image_rows(rows: Sequence[dict[str, Any]]) -> pa.Table:
    """Rows of the image table."""
    bad = [row["bad_image"] for row in rows]
    columns = {
        "id": [row["id"] for row in rows],
        "image": [None if b else row["image"] for row, b in zip(rows, bad, strict=True)],
        "height": [row["size"][0] for row in rows],
        "width": [row["size"][1] for row in rows],
        "class": [None] * len(rows),
        "reason": ["planted" if b else None for b in bad],
    }
    return schema.shard_rows(columns, columns_of=schema.IMAGES)


def label_rows(rows: Sequence[dict[str, Any]]) -> pa.Table:
    """Rows of the label table."""
    bad = [row["bad_label"] for row in rows]
    columns = {
        "id": [row["id"] for row in rows],
        "label": [None if b else encode_label(row["label"]) for row, b in zip(rows, bad, strict=True)],
        "confidence": [None] * len(rows),
        "reason": ["planted" if b else None for b in bad],
    }
    return schema.shard_rows(columns, columns_of=schema.LABELS)


def add_labels(dataset: Dataset, name: str, *, space: LabelSpace, shards: Mapping[ShardKey, Sequence[int]]) -> Table:
    """A further label set; `shards` gives the scene numbers of each shard."""
    table = dataset.create_labels(name, label_space=space, plan={})
    for key, numbers in shards.items():
        rows = [scene(number, space=space, size=(36, 44)) | {"bad_label": False} for number in numbers]
        table.commit([write_shard(table.uri, key, label_rows(rows))])
    return table
