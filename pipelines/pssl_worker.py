"""The worker of PSSL: one shard of images in, one shard of pseudo-labels out."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from pipelines import schema
from pipelines.codecs import encode_label
from pipelines.decoding import decode_ahead
from pipelines.kept_deciles import KeptDeciles
from pipelines.label_run import ImageShard
from pipelines.labels import LabelSpace
from pipelines.pssl_plan import LabelPlan, build_ensemble, check_machine, target_index
from pipelines.pssl_spec import PsslSpec
from pipelines.schema import Receipt
from pipelines.shard_counts import RowError, ShardCounts, with_stats
from pipelines.tables import read_shard_file, write_shard
from seg_models.consensus import Consensus, pseudo_label
from seg_models.ensemble import Query
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
        fetch: images decoded ahead of the one that is explained.
        decile_codec: of the deciles to keep beside the labels; None keeps none.

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
        fetch: int,
        decile_codec: str | None = None,
    ) -> None:
        check_machine(plan)
        torch.set_num_threads(plan.threads)
        self._images_uri, self._labels_uri = images_uri, labels_uri
        self._space, self._fetch = space, fetch
        self._settings = PsslSpec.model_validate(plan.settings)
        self._ensemble = build_ensemble(plan, classifiers)
        self._num_scores = min((classifier.num_classes for classifier in classifiers), default=space.num_classes)
        self._counts = pssl_counts()
        self._kept = KeptDeciles(decile_codec)

    def __call__(self, shard: ImageShard) -> Receipt:
        """Label a shard and return its receipt, with the shard's counts as stats."""
        self._counts = pssl_counts()
        with self._counts.phase("read"):
            rows = read_shard_file(self._images_uri, shard.path, columns=("id", "image", "class", "reason")).to_pylist()
        images = self._counts.timed("decode", decode_ahead(rows, num=self._fetch))
        labels = self._labels(rows, images)
        with self._counts.phase("write"):
            ids = [row["id"] for row in rows]
            table = label_table(ids, labels, self._counts, deciles=self._kept.column(ids))
            receipt = write_shard(self._labels_uri, shard.key, table)
        return dataclasses.replace(receipt, stats=self._counts.of_receipt())

    def _labels(
        self, rows: Sequence[dict[str, Any]], images: Iterable[NDArray[np.uint8] | RowError]
    ) -> list[bytes | RowError]:
        """The encoded label of every row, or why it has none.

        Usable rows are explained in batches in their order, so that a batch depends on the shard alone.
        """
        labels: dict[int, bytes | RowError] = {}
        waiting: list[tuple[int, Query, int]] = []
        for index, (row, image) in enumerate(zip(rows, images, strict=True)):
            try:
                waiting.append((index, *self._query(row, image)))
            except RowError as error:
                labels[index] = RowError(self._counts.reject(str(error)))
            if len(waiting) == self._ensemble.batch:
                labels |= self._explained(waiting)
                waiting = []
        labels |= self._explained(waiting)
        return [labels[index] for index in range(len(rows))]

    def _query(self, row: dict[str, Any], image: NDArray[np.uint8] | RowError) -> tuple[Query, int]:
        """The image of a row with what the classifiers are asked, and the row's class.

        Raises:
            RowError: the row has no image or no class.
        """
        if row["reason"] is None and row["class"] is None:
            raise RowError("no image-level class")
        if isinstance(image, RowError):
            raise image
        try:
            target = target_index(row["class"], space=self._space, num_scores=self._num_scores)
        except ValueError as error:
            raise RowError(str(error)) from error
        return Query(image, target, row["id"]), row["class"]

    def _explained(self, batch: Sequence[tuple[int, Query, int]]) -> dict[int, bytes | RowError]:
        """Labels of a batch of rows, by their place in the shard."""
        if not batch:
            return {}
        found = self._counts.timed("explain", self._ensemble.scores([query for _, query, _ in batch]))
        return {
            index: self._label(scores, class_index=class_index, image_id=query.id)
            for (index, query, class_index), scores in zip(batch, found, strict=True)
        }

    def _label(self, found: Consensus, *, class_index: int, image_id: str) -> bytes | RowError:
        """The encoded label (H, W) that the scores of an image give."""
        for index in found.skipped:
            self._counts.tables["skipped"][str(index)] += 1
        if found.scores is None:
            return RowError(self._counts.reject(NO_SIGNAL))
        background = self._space.background
        assert background is not None
        with self._counts.phase("label"):
            scores = found.scores.cpu().numpy()
            self._kept.keep(image_id, scores)
            label = pseudo_label(
                scores,
                class_index=class_index,
                background=background,
                top_deciles=self._settings.top_deciles,
                dtype=self._space.dtype,
            )
            self._counts.count_pixels("pixels", label)
        with self._counts.phase("encode"):
            return encode_label(label)


def pssl_counts() -> ShardCounts:
    """Pixels by class, and maps without signal by the classifier's place in the ensemble."""
    return ShardCounts("pixels", "skipped")


def label_table(
    ids: Sequence[str],
    labels: Sequence[bytes | RowError],
    counts: ShardCounts,
    *,
    deciles: Sequence[bytes | None] | None = None,
) -> pa.Table:
    """Rows of a label shard with their counts, in the order of the image shard."""
    columns: dict[str, list[Any]] = {
        "id": list(ids),
        "label": [None if isinstance(label, RowError) else label for label in labels],
        "deciles": list(deciles) if deciles is not None else [None] * len(ids),
        "reason": [str(label) if isinstance(label, RowError) else None for label in labels],
    }
    return with_stats(columns, columns_of=schema.LABELS, stats=counts.of_file())
