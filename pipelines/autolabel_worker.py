"""The teacher's worker: one shard of images in, one shard of its classes with confidence out, nothing cut."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines import schema
from pipelines.ahead import ahead
from pipelines.codecs import encode_label
from pipelines.confidence import encode_confidence
from pipelines.decoding import decode_ahead
from pipelines.label_run import ImageShard
from pipelines.machine import check_machine, instruction_set
from pipelines.published import Checkpoint, Device, make_predictor
from pipelines.schema import Receipt
from pipelines.shard_counts import RowError, ShardCounts, with_stats
from pipelines.tables import read_shard_file, write_shard
from seg_models.predictor import Prediction, PredictorSpec
from seg_models.spec import Spec


class TeacherPlan(Spec):
    """Everything that decides the bytes of a teacher's own label set."""

    kind: Literal["teacher"] = "teacher"
    checkpoint_sha256: str
    """Of the teacher's weights."""
    predictor: PredictorSpec
    trained_on: tuple[dict[str, Any], ...]
    """Label sets that the teacher was trained on, as its checkpoint says; an earlier teacher's may be among them."""
    threads: int
    device: Device
    instruction_set: str | None
    """Of the CPU, as torch names it; None on a GPU."""
    torch: str
    images: str
    """Fingerprint of the image table."""


def make_teacher_plan(
    teacher: Checkpoint, *, predictor: PredictorSpec, device: Device, threads: int, images: str
) -> TeacherPlan:
    """Fix the plan on this machine."""
    return TeacherPlan(
        checkpoint_sha256=teacher.sha256,
        predictor=predictor,
        trained_on=tuple(teacher.info.get("provenance", {}).get("data", ())),
        threads=threads,
        device=device,
        instruction_set=instruction_set(device),
        torch=str(torch.__version__),
        images=images,
    )


class TeacherWorker:
    """Labels every pixel of every image of a shard with what the teacher sees, and how sure it is.

    Args:
        checkpoint: the teacher.
        images_uri: the image table.
        labels_uri: the label table to write shards into; the driver commits them.
        plan: what the labels depend on; a machine that cannot follow it is refused.
        fetch: images decoded ahead of the one that is predicted, and coded behind it, in threads.

    Raises:
        ValueError: the machine cannot follow the plan, or the checkpoint cannot be loaded.
    """

    def __init__(
        self, *, checkpoint: Checkpoint, images_uri: str, labels_uri: str, plan: TeacherPlan, fetch: int
    ) -> None:
        check_machine(plan)
        self._predictor = make_predictor(checkpoint, spec=plan.predictor, device=plan.device, threads=plan.threads)
        self._space = checkpoint.label_space
        self._images_uri, self._labels_uri = images_uri, labels_uri
        self._fetch = fetch
        self._counts = ShardCounts("pixels")

    def __call__(self, shard: ImageShard) -> Receipt:
        """Label a shard and return its receipt."""
        self._counts = ShardCounts("pixels")
        with self._counts.phase("read"):
            rows = read_shard_file(self._images_uri, shard.path, columns=("id", "image", "reason")).to_pylist()
        images = self._counts.timed("decode", decode_ahead(rows, num=self._fetch))
        labelled = list(ahead(self._predicted(rows, images), self._coded, num=self._fetch))
        columns = {key: [row[key] for row in labelled] for key in ("id", "label", "confidence", "reason")}
        table = with_stats(columns, columns_of=schema.LABELS, stats=self._counts.of_file())
        with self._counts.phase("write"):
            receipt = write_shard(self._labels_uri, shard.key, table)
        return dataclasses.replace(receipt, stats=self._counts.of_receipt())

    def _predicted(
        self, rows: Sequence[dict[str, Any]], images: Iterable[NDArray[np.uint8] | RowError]
    ) -> Iterator[tuple[str, Prediction | RowError]]:
        """Id of every row and what the teacher sees, or why it sees nothing."""
        for row, image in zip(rows, images, strict=True):
            if isinstance(image, RowError):
                yield row["id"], image
                continue
            with self._counts.phase("predict"):
                found = self._predictor.predict(image)
            yield row["id"], found

    def _coded(self, found: tuple[str, Prediction | RowError]) -> dict[str, Any]:
        """A row of the label set; several are made in threads while the teacher looks at the next images."""
        row_id, seen = found
        if isinstance(seen, RowError):
            return {"id": row_id, "label": None, "confidence": None, "reason": self._counts.reject(str(seen))}
        with self._counts.phase("encode"):
            label = seen.label.astype(self._space.dtype)
            self._counts.count_pixels("pixels", label)
            return {
                "id": row_id,
                "label": encode_label(label),
                "confidence": encode_confidence(seen.confidence),
                "reason": None,
            }
