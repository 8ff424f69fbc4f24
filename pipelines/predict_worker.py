"""The worker of prediction: a batch of image addresses in; label maps written, counts out."""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from pipelines import schema, storage
from pipelines.codecs import encode_label
from pipelines.confidence import encode_confidence
from pipelines.images import ImageError, decode_image
from pipelines.label_files import file_name, label_png
from pipelines.pictures import overlay, png
from pipelines.published import Checkpoint, Device, make_predictor
from pipelines.schema import Receipt, ShardKey
from pipelines.tables import read_shard_file, write_shard
from seg_models.predictor import PredictorSpec

Format = Literal["png", "overlay", "table"]
FOLDERS = {"png": "labels", "overlay": "overlays", "table": "table"}
NUM_SAMPLES = 8


@dataclass(frozen=True)
class ImageFile:
    """An image of a folder."""

    id: str
    uri: str
    version: str = ""
    """Another content has another one."""


@dataclass(frozen=True)
class ImageBatch:
    """What one task predicts: files of a folder, or a shard of an image table."""

    key: ShardKey
    num_rows: int
    files: tuple[ImageFile, ...] = ()
    shard_path: str = ""
    """Relative to the image table, where there is one."""


@dataclass(frozen=True)
class Sample:
    """A prediction that may be shown."""

    id: str
    batch: ImageBatch
    row: int
    prediction: bytes
    """Encoded label map."""

    def by_hash(self) -> str:
        """Order that depends on the id alone."""
        return hashlib.sha256(self.id.encode()).hexdigest()


@dataclass
class BatchResult:
    """What became of a batch."""

    predicted: int = 0
    existing: int = 0
    """Images whose file an earlier run had written."""
    failures: dict[str, str] = field(default_factory=dict)
    """Reason by id."""
    pixels: Counter[int] = field(default_factory=Counter)
    samples: list[Sample] = field(default_factory=list)
    receipt: Receipt | None = None
    """Of the shard written, where the output is a table."""


class PredictWorker:
    """Predicts the images of a batch and writes what was asked for.

    Args:
        output_uri: folder of the PNG files, or the label table.
        images_uri: the image table the batches' shards lie in; empty for files.

    Raises:
        ValueError: the checkpoint cannot be loaded, or there is no GPU where one was asked for.
    """

    def __init__(
        self,
        *,
        checkpoint: Checkpoint,
        predictor: PredictorSpec,
        format: Format,
        output_uri: str,
        images_uri: str,
        device: Device,
        threads: int,
    ) -> None:
        self._predictor = make_predictor(checkpoint, spec=predictor, device=device, threads=threads)
        self._space = checkpoint.label_space
        self._format, self._output_uri, self._images_uri = format, output_uri, images_uri

    def __call__(self, batch: ImageBatch) -> BatchResult:
        """Predict a batch."""
        result = BatchResult()
        rows = []
        for number, (image_id, data) in enumerate(self._images(batch, result)):
            row = self._predict(Sample(image_id, batch, number, b""), data, result)
            rows.append({"id": image_id, "reason": result.failures.get(image_id), **row})
        if self._format == "table":
            columns = {name: [row.get(name) for row in rows] for name in ("id", "label", "confidence", "reason")}
            table = schema.shard_rows(columns, columns_of=schema.LABELS)
            result.receipt = write_shard(self._output_uri, batch.key, table)
        return result

    def _images(self, batch: ImageBatch, result: BatchResult) -> Iterator[tuple[str, bytes | None]]:
        """Id and file content of every image; None where there is nothing to do, and `result` says why."""
        if batch.shard_path:
            columns = ("id", "image", "reason")
            for row in read_shard_file(self._images_uri, batch.shard_path, columns=columns).to_pylist():
                if row["reason"] is not None:
                    result.failures[row["id"]] = f"image was rejected: {row['reason']}"
                yield row["id"], None if self._is_there(row["id"], result) else row["image"]
        for file in batch.files:
            yield file.id, None if self._is_there(file.id, result) else _read(file, result)

    def _is_there(self, image_id: str, result: BatchResult) -> bool:
        """Whether an earlier run has written the file of an image."""
        there = self._format != "table" and storage.exists(self._target(image_id))
        result.existing += there
        return there

    def _target(self, image_id: str) -> str:
        return storage.join(self._output_uri, file_name(image_id))

    def _predict(self, sample: Sample, data: bytes | None, result: BatchResult) -> dict[str, Any]:
        """Predict one image and write its file, or return the columns of its row."""
        if data is None:
            return {}
        try:
            image = decode_image(data)
        except ImageError as error:
            result.failures[sample.id] = str(error)
            return {}
        found = self._predictor.predict(image)
        label = found.label.astype(self._space.dtype)
        code = encode_label(label)
        result.predicted += 1
        values, counts = np.unique(label, return_counts=True)
        result.pixels.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
        shown = Sample(sample.id, sample.batch, sample.row, code)
        result.samples = heapq.nsmallest(NUM_SAMPLES, [*result.samples, shown], key=Sample.by_hash)
        if self._format == "table":
            return {"label": code, "confidence": encode_confidence(found.confidence)}
        picture = label_png(label, self._space) if self._format == "png" else png(overlay(image, label, self._space))
        storage.write_bytes(self._target(sample.id), picture)
        return {}


def _read(file: ImageFile, result: BatchResult) -> bytes | None:
    """The file's bytes, or None and the reason. A failing disk or network stops the job, as in ingest."""
    try:
        return storage.read_bytes(file.uri)
    except (ValueError, PermissionError, IsADirectoryError) as error:
        result.failures[file.id] = f"unreadable file ({error})"
        return None
