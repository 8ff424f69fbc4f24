"""The worker of PSSL: one shard of images in, one shard of pseudo-labels out."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from pipelines import schema
from pipelines.images import ImageError, decode_image
from pipelines.label_run import ImageShard
from pipelines.labels import LabelSpace, encode_label
from pipelines.pssl_plan import LabelPlan, build_ensemble, check_machine, target_index
from pipelines.pssl_spec import PsslSpec
from pipelines.schema import Receipt
from pipelines.shard_counts import RowError, ShardCounts, with_stats
from pipelines.tables import read_shard_file, write_shard
from seg_models.deciles import pseudo_label
from seg_models.weights.classifiers import ClassifierSpec

NO_SIGNAL = "every explanation map is zero"


class PsslWorker:
    """Labels every image of a shard with the class of the image where the ensemble looks, background elsewhere.

    Args:
        images_uri: the image table.
        labels_uri: the label table to write shards into; the driver commits them.
        plan: what the labels depend on; a machine that cannot follow it is refused.
        classifiers: the ensemble, in the plan's order.
        space: classes of the labels, with a background.

    Raises:
        ValueError: the machine cannot follow the plan, or weights are missing or differ.
    """

    def __init__(
        self,
        *,
        images_uri: str,
        labels_uri: str,
        plan: LabelPlan,
        classifiers: tuple[ClassifierSpec, ...],
        space: LabelSpace,
    ) -> None:
        check_machine(plan)
        torch.set_num_threads(plan.threads)
        self._images_uri, self._labels_uri = images_uri, labels_uri
        self._space = space
        self._settings = PsslSpec.model_validate(plan.settings)
        self._ensemble = build_ensemble(plan, classifiers)
        self._num_scores = min((classifier.num_classes for classifier in classifiers), default=space.num_classes)
        self._counts = pssl_counts()

    def __call__(self, shard: ImageShard) -> Receipt:
        """Label a shard and return its receipt, with the shard's counts as stats."""
        self._counts = pssl_counts()
        with self._counts.phase("read"):
            rows = read_shard_file(self._images_uri, shard.path, columns=("id", "image", "class", "reason")).to_pylist()
        labels = [self._label_row(row) for row in rows]
        with self._counts.phase("write"):
            table = label_table([row["id"] for row in rows], labels, self._counts)
            receipt = write_shard(self._labels_uri, shard.key, table)
        return dataclasses.replace(receipt, stats=self._counts.of_receipt())

    def _label_row(self, row: dict[str, Any]) -> bytes | RowError:
        """The encoded label of one row, or why it has none."""
        try:
            if row["reason"] is not None:
                raise RowError(f"image was rejected: {row['reason']}")
            if row["class"] is None:
                raise RowError("no image-level class")
            label = self._label(row["image"], class_index=row["class"], image_id=row["id"])
        except (RowError, ImageError) as error:
            return RowError(self._counts.reject(str(error)))
        with self._counts.phase("encode"):
            return encode_label(label)

    def _label(self, data: bytes, *, class_index: int, image_id: str) -> NDArray[Any]:
        """The label (H, W) of an image file."""
        background = self._space.background
        assert background is not None
        with self._counts.phase("decode"):
            image = decode_image(data)
        with self._counts.phase("explain"):
            scores = self._scores(image, class_index=class_index, image_id=image_id)
        with self._counts.phase("label"):
            label = pseudo_label(
                scores,
                class_index=class_index,
                background=background,
                top_deciles=self._settings.top_deciles,
                dtype=self._space.dtype,
            )
            self._counts.count_pixels("pixels", label)
        return label

    def _scores(self, image: NDArray[np.uint8], *, class_index: int, image_id: str) -> NDArray[np.float64]:
        """Scores (H, W) of the pixels of an image."""
        try:
            target = target_index(class_index, space=self._space, num_scores=self._num_scores)
        except ValueError as error:
            raise RowError(str(error)) from error
        found = self._ensemble.scores(image, target=target, image_id=image_id)
        for index in found.skipped:
            self._counts.tables["skipped"][str(index)] += 1
        if found.scores is None:
            raise RowError(NO_SIGNAL)
        scores: NDArray[np.float64] = found.scores.cpu().numpy()
        return scores


def pssl_counts() -> ShardCounts:
    """Pixels by class, and maps without signal by the classifier's place in the ensemble."""
    return ShardCounts("pixels", "skipped")


def label_table(ids: Sequence[str], labels: Sequence[bytes | RowError], counts: ShardCounts) -> pa.Table:
    """Rows of a label shard with their counts, in the order of the image shard."""
    columns: dict[str, list[Any]] = {
        "id": list(ids),
        "label": [None if isinstance(label, RowError) else label for label in labels],
        "confidence": [None] * len(ids),
        "reason": [str(label) if isinstance(label, RowError) else None for label in labels],
    }
    return with_stats(columns, columns_of=schema.LABELS, stats=counts.of_file())
