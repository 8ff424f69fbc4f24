"""Reads the files of one shard, checks every one, and writes the shard of both tables.

One sample is one row in each table, whatever its files are: a row that fails has null data and a reason. Reasons
begin with a fixed text, details follow in parentheses, so that they can be counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines import schema, storage
from pipelines.codecs import encode_label
from pipelines.contours import Label
from pipelines.images import ImageError, decode_image, image_size
from pipelines.ingest_plan import PlannedShard
from pipelines.label_files import read_label_image
from pipelines.labels import LabelSpace, LabelValueError
from pipelines.schema import Receipt
from pipelines.shard_counts import RowError, with_stats
from pipelines.sources.base import LabelCodec, Sample, printable, read_image
from pipelines.tables import write_shard

GONE = "unreadable file (it is gone)"

T = TypeVar("T")


@dataclass(frozen=True)
class ImageRow:
    """An image that can be decoded, or why it cannot be used."""

    data: bytes | None = None
    height: int | None = None
    width: int | None = None
    reason: str | None = None


@dataclass(frozen=True)
class LabelRow:
    """An encoded label with its pixels per index, or why it cannot be used."""

    data: bytes | None = None
    pixels: npt.NDArray[np.int64] | None = None
    reason: str | None = None


@dataclass(frozen=True)
class ShardReceipts:
    """What a worker returns for one shard."""

    images: Receipt
    labels: Receipt | None


class IngestWorker:
    """Turns planned shards into shard files of the image table and of the label set."""

    def __init__(
        self,
        *,
        images_uri: str,
        labels_uri: str | None,
        label_space: LabelSpace,
        codec: LabelCodec,
        min_side_px: int,
    ) -> None:
        self.images_uri = images_uri
        self.labels_uri = labels_uri
        self.label_space = label_space
        self.codec = codec
        self.min_side_px = min_side_px

    def __call__(self, shard: PlannedShard) -> ShardReceipts:
        """Read, check and write one shard.

        Raises:
            ValueError: not one of its files is there.
            OSError: the disk or the network failed.
        """
        images = [read_image_row(sample, min_side_px=self.min_side_px) for sample in shard.samples]
        if all(row.reason == GONE for row in images):
            raise ValueError(
                f"none of its {len(images)} images is there, first {shard.samples[0].image_uri!r}; on a cluster every "
                "node must see the source: use an object store (s3://bucket/prefix) or a shared file system"
            )
        receipt = write_shard(self.images_uri, shard.key, image_table(shard.samples, images))
        if self.labels_uri is None:
            return ShardReceipts(receipt, None)
        labels = [
            read_label_row(sample, image, space=self.label_space, codec=self.codec)
            for sample, image in zip(shard.samples, images, strict=True)
        ]
        table = label_table(shard.samples, labels)
        return ShardReceipts(receipt, write_shard(self.labels_uri, shard.key, table))


def read_image_row(sample: Sample, *, min_side_px: int) -> ImageRow:
    """An image's bytes as they came and its upright size, after decoding it once."""
    try:
        data = read_file(lambda: read_image(sample))
        if len(data) < sample.size_bytes:
            raise RowError(f"unreadable file ({len(data)} of {sample.size_bytes} bytes)")
        height, width = decoded(lambda: decode_image(data), what="image").shape[:2]
        if min(height, width) < min_side_px:
            raise RowError(f"image too small ({width}x{height} px; at least {min_side_px} a side)")
    except RowError as error:
        return ImageRow(reason=str(error))
    return ImageRow(data=data, height=height, width=width)


def read_label_row(sample: Sample, image: ImageRow, *, space: LabelSpace, codec: LabelCodec) -> LabelRow:
    """A label as class indices at its image's size, encoded."""
    try:
        if image.reason is not None:
            raise RowError(f"no image ({image.reason})")
        if sample.label_uri is None:
            raise RowError(sample.label_reason or "no label file")
        assert image.height is not None  # a row without reason has a size
        assert image.width is not None
        index = read_label(sample.label_uri, size=(image.height, image.width), space=space, codec=codec)
    except RowError as error:
        return LabelRow(reason=str(error))
    return LabelRow(data=encode_label(index), pixels=np.bincount(index.reshape(-1)))


def read_label(uri: str, *, size: tuple[int, int], space: LabelSpace, codec: LabelCodec) -> Label:
    """Class indices (H, W) of a label file.

    Args:
        size: height and width of the image.

    Raises:
        RowError: the file is no label of that size and those classes.
    """
    name = printable(uri.rsplit("/", 1)[-1])
    data = read_file(lambda: storage.read_bytes(uri))
    check_size(decoded(lambda: image_size(data), what="label"), size, name=name)
    raw = decoded(lambda: read_label_image(data), what="label")
    check_size((raw.shape[0], raw.shape[1]), size, name=name)
    try:
        return map_values(raw, data, space=space, codec=codec)
    except LabelValueError as error:
        lossy = "; the file is a JPEG, which changes label values: save labels as PNG" if is_jpeg(data) else ""
        raise RowError(f"label value outside the class list ({name}: {error}{lossy})") from None


def map_values(raw: npt.NDArray[Any], data: bytes, *, space: LabelSpace, codec: LabelCodec) -> Label:
    """Raw content of a label file -> class indices, by the codec."""
    if codec == "rgb" and raw.ndim == 2:
        raw = decode_image(data)  # palette file: its colours count
    if raw.ndim == 2:
        return space.to_index(raw)
    if raw.shape[2] != 3:
        raise RowError(f"unreadable label ({raw.shape[2]} channels)")
    if codec != "index":
        return space.from_rgb(raw)
    if not (raw == raw[..., :1]).all():
        raise RowError("colour label without colors (set source.colors, one RGB colour a class)")
    return space.to_index(raw[..., 0])  # grey values saved as RGB


def check_size(found: tuple[int, int], wanted: tuple[int, int], *, name: str) -> None:
    """Refuse a label of another size than its upright image; sizes are (height, width)."""
    if found == wanted:
        return
    turned = "; it fits the image before its EXIF rotation" if found == wanted[::-1] else ""
    raise RowError(f"label size differs ({name}: {found[1]}x{found[0]}, image {wanted[1]}x{wanted[0]} px{turned})")


def read_file(read: Callable[[], bytes]) -> bytes:
    """Bytes of a file. What is wrong with this one file rejects the row; a failing disk or network stops the job."""
    try:
        return read()
    except ValueError as error:
        raise RowError(GONE) from error
    except (PermissionError, IsADirectoryError) as error:  # an object store's have a text and no strerror
        raise RowError(f"unreadable file ({error.strerror or error})") from error


def decoded(decode: Callable[[], T], *, what: str) -> T:
    """The result of a decoder. Decoders meet hostile bytes: whatever they raise rejects this row alone."""
    try:
        return decode()
    except ImageError as error:
        raise RowError(f"unreadable {what}: {error}") from error
    except ValueError as error:
        raise RowError(f"unreadable {what} ({error})") from error
    except Exception as error:
        raise RowError(f"unreadable {what} ({type(error).__name__}: {error})") from error


def is_jpeg(data: bytes) -> bool:
    """Whether the bytes begin like a JPEG."""
    return data[:2] == b"\xff\xd8"


def image_table(samples: Sequence[Sample], rows: Sequence[ImageRow]) -> pa.Table:
    """Rows of the image table with their counts."""
    good = [(sample, row) for sample, row in zip(samples, rows, strict=True) if row.reason is None]
    stats = {
        "sizes": dict(Counter(f"{row.width}x{row.height}" for _, row in good)),
        "classes": dict(Counter(str(sample.class_index) for sample, _ in good if sample.class_index is not None)),
        "bytes": sum(len(row.data or b"") for _, row in good),
    }
    columns: dict[str, list[Any]] = {
        "id": [sample.id for sample in samples],
        "image": [row.data for row in rows],
        "height": [row.height for row in rows],
        "width": [row.width for row in rows],
        "class": [sample.class_index for sample in samples],
        "reason": [row.reason for row in rows],
    }
    return with_stats(columns, columns_of=schema.IMAGES, stats=stats)


def label_table(samples: Sequence[Sample], rows: Sequence[LabelRow]) -> pa.Table:
    """Rows of the label table with their counts."""
    pixels: Counter[str] = Counter()
    for row in rows:
        if row.pixels is not None:
            pixels.update({str(index): int(row.pixels[index]) for index in np.flatnonzero(row.pixels)})
    columns: dict[str, list[Any]] = {
        "id": [sample.id for sample in samples],
        "label": [row.data for row in rows],
        "confidence": [None] * len(rows),
        "reason": [row.reason for row in rows],
    }
    return with_stats(columns, columns_of=schema.LABELS, stats={"pixels": dict(pixels)})
