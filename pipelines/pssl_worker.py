"""The worker of PSSL: one shard of images in, one shard of pseudo-labels out."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from pipelines import schema
from pipelines.ahead import ahead
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
from seg_models.consensus import pseudo_label
from seg_models.ensemble import Query
from seg_models.weights.classifiers import ClassifierSpec

NO_SIGNAL = "every explanation map is zero"


class _Scored(NamedTuple):
    """A row with its scores (H, W), or why it has none."""

    row: int
    image_id: str
    scores: NDArray[np.float64] | RowError
    class_index: int = 0


class PsslWorker:
    """Labels every image of a shard with the class of the image where the ensemble looks, background elsewhere.

    Args:
        images_uri: the image table.
        labels_uri: the label table to write shards into; the driver commits them.
        plan: what the labels depend on; a machine that cannot follow it is refused.
        classifiers: the ensemble, in the plan's order.
        space: classes of the labels, with a background.
        fetch: images decoded ahead of the ones that are explained, and labelled behind them, in threads.
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
        labels: list[bytes | RowError] = [b""] * len(rows)
        for number, label in ahead(self._scored(rows, images), self._label, num=self._fetch):
            labels[number] = label
        with self._counts.phase("write"):
            ids = [row["id"] for row in rows]
            table = label_table(ids, labels, self._counts, deciles=self._kept.column(ids))
            receipt = write_shard(self._labels_uri, shard.key, table)
        return dataclasses.replace(receipt, stats=self._counts.of_receipt())

    def _scored(
        self, rows: Sequence[dict[str, Any]], images: Iterable[NDArray[np.uint8] | RowError]
    ) -> Iterator[_Scored]:
        """Scores of every row, or why it has none, in any order.

        Usable rows are explained in batches in their order, so that a batch depends on the shard alone.
        """
        waiting: list[tuple[int, Query, int]] = []
        for index, (row, image) in enumerate(zip(rows, images, strict=True)):
            try:
                waiting.append((index, *self._query(row, image)))
            except RowError as error:
                yield _Scored(index, row["id"], error)
            if len(waiting) == self._ensemble.batch:
                yield from self._explained(waiting)
                waiting = []
        yield from self._explained(waiting)

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

    def _explained(self, batch: Sequence[tuple[int, Query, int]]) -> Iterator[_Scored]:
        """Scores of a batch of rows."""
        if not batch:
            return
        found = self._counts.timed("explain", self._finished([query for _, query, _ in batch]))
        for (index, query, class_index), scores in zip(batch, found, strict=True):
            yield _Scored(index, query.id, scores, class_index)

    def _finished(self, queries: Sequence[Query]) -> Iterator[NDArray[np.float64] | RowError]:
        """Scores (H, W) of every image, on the CPU."""
        for found in self._ensemble.scores(queries):
            self._counts.count("skipped", {str(index): 1 for index in found.skipped})
            yield RowError(NO_SIGNAL) if found.scores is None else found.scores.cpu().numpy()

    def _label(self, found: _Scored) -> tuple[int, bytes | RowError]:
        """Row and encoded label (H, W); several are made in threads while the ensemble explains the next images."""
        scores = found.scores
        if isinstance(scores, RowError):
            return found.row, RowError(self._counts.reject(str(scores)))
        background = self._space.background
        assert background is not None
        with self._counts.phase("label"):
            self._kept.keep(found.image_id, scores)
            label = pseudo_label(
                scores,
                class_index=found.class_index,
                background=background,
                top_deciles=self._settings.top_deciles,
                above_otsu=self._settings.above_otsu,
                dtype=self._space.dtype,
            )
            self._counts.count_pixels("pixels", label)
        with self._counts.phase("encode"):
            return found.row, encode_label(label)


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
