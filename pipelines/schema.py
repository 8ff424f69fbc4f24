"""Columns of the tables, and the small records that travel instead of pixels."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

IMAGES = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("image", pa.binary()),  # the file's bytes as they came; null where the row was rejected
        pa.field("height", pa.int32()),  # of the upright image, after EXIF orientation
        pa.field("width", pa.int32()),
        pa.field("class", pa.int32()),  # image-level class index, or null
        pa.field("reason", pa.string()),  # why the row was rejected, or null
        pa.field("split", pa.string(), nullable=False),
        pa.field("shard", pa.int32(), nullable=False),
    ]
)

LABELS = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("label", pa.binary()),  # encoded label map (labels.encode_label), or null
        pa.field("confidence", pa.binary()),  # encoded confidence in twentieths (confidence.encode_confidence), or null
        pa.field("reason", pa.string()),
        pa.field("split", pa.string(), nullable=False),
        pa.field("shard", pa.int32(), nullable=False),
    ]
)

PARTITION_BY = ("split", "shard")


@dataclass(frozen=True, order=True)
class ShardKey:
    """Address of a shard inside a table."""

    split: str
    shard: int

    def __str__(self) -> str:
        return f"{self.split}/{self.shard:05d}"


@dataclass(frozen=True)
class Receipt:
    """What a worker returns for one finished shard of one table; the driver commits it."""

    key: ShardKey
    path: str
    """Relative to the table's root."""
    size_bytes: int
    num_rows: int
    num_rejected: int
    sha256: str
    stats: dict[str, Any] = field(default_factory=dict)
    """Counts for the report, JSON-serialisable (reasons, histogram, seconds)."""
