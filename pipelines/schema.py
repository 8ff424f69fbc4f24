"""Columns of the tables, and the small records that travel instead of pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
        pa.field("label", pa.binary()),  # encoded label map (codecs.encode_label), or null
        pa.field("confidence", pa.binary()),  # encoded confidence in twentieths (confidence.encode_confidence), or null
        pa.field("deciles", pa.binary()),  # encoded uint8 map of the scores behind the label, 0..9, or null
        pa.field("reason", pa.string()),
        pa.field("split", pa.string(), nullable=False),
        pa.field("shard", pa.int32(), nullable=False),
    ]
)

PARTITION_BY = ("split", "shard")


def shard_rows(
    columns: Mapping[str, Sequence[Any]], *, columns_of: pa.Schema, metadata: dict[bytes, bytes] | None = None
) -> pa.Table:
    """Rows of one shard: the columns of a table without its partition; what is not given is null."""
    fields = [field for field in columns_of if field.name not in PARTITION_BY]
    count = len(columns["id"])
    whole = {field.name: columns.get(field.name, [None] * count) for field in fields}
    return pa.Table.from_pydict(whole, schema=pa.schema(fields, metadata=metadata))


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
