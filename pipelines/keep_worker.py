"""The worker that derives a label set from a teacher's: one shard of classes and confidence in, one of labels out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from pipelines import schema
from pipelines.autolabel_worker import TeacherPlan
from pipelines.codecs import decode_label, encode_label
from pipelines.confidence import decode_steps
from pipelines.contours import Label
from pipelines.keep import KeepRule, KeepSpec, Kept
from pipelines.label_run import ImageShard
from pipelines.labels import LabelSpace
from pipelines.schema import Receipt, ShardKey
from pipelines.shard_counts import RowError, ShardCounts, with_stats
from pipelines.tables import read_shard_file, write_shard
from seg_models.spec import Spec

TABLES = ("predicted", "kept", "pixels", "from_coarse", "cut")
"""Counts of a shard: of the teacher's classes, of those kept, of the labels, of those from humans, and why void."""


class KeepPlan(Spec):
    """Everything that decides the bytes of a label set derived from a teacher's."""

    kind: Literal["autolabel"] = "autolabel"
    source: str
    """Label set with the teacher's classes and confidence, row for row."""
    teacher: TeacherPlan
    """What that one was made with."""
    keep: KeepSpec
    coarse: str | None
    """Fingerprint of the coarse label set, where there is one."""
    images: str
    """Fingerprint of the image table."""


class KeepWorker:
    """Derives the labels of a shard; no teacher takes part.

    Args:
        source_uri: the teacher's label table; tasks name its shards.
        coarse_uri: the coarse label table; empty where there is none.
        coarse_paths: its shard files by address.
        space: the classes of all of them.
        plan: what the labels depend on.
        labels_uri: the label table to write shards into; the driver commits them.
    """

    def __init__(
        self,
        *,
        source_uri: str,
        coarse_uri: str,
        coarse_paths: Mapping[ShardKey, str],
        space: LabelSpace,
        plan: KeepPlan,
        labels_uri: str,
    ) -> None:
        self._source_uri, self._labels_uri = source_uri, labels_uri
        self._coarse_uri, self._coarse_paths = coarse_uri, coarse_paths
        self._space, self._rule = space, KeepRule(plan.keep, space)
        self._counts = ShardCounts(*TABLES)

    def __call__(self, shard: ImageShard) -> Receipt:
        """Derive a shard and return its receipt."""
        self._counts = ShardCounts(*TABLES)
        with self._counts.phase("read"):
            rows = read_shard_file(self._source_uri, shard.path).to_pylist()
            coarse = self._read_coarse(shard.key, [row["id"] for row in rows])
        derived = [self._row(row, human) for row, human in zip(rows, coarse, strict=True)]
        columns = {key: [row[key] for row in derived] for key in ("id", "label", "confidence", "reason")}
        table = with_stats(columns, columns_of=schema.LABELS, stats=self._counts.of_file())
        with self._counts.phase("write"):
            receipt = write_shard(self._labels_uri, shard.key, table)
        return dataclasses.replace(receipt, stats=self._counts.of_receipt())

    def _read_coarse(self, key: ShardKey, ids: list[str]) -> list[dict[str, Any] | None]:
        """The rows of the coarse labels beside those of the teacher; None where there are no coarse labels.

        Raises:
            ValueError: other rows.
        """
        if not self._coarse_uri:
            return [None] * len(ids)
        rows: list[dict[str, Any] | None] = list(
            read_shard_file(self._coarse_uri, self._coarse_paths[key], columns=("id", "label", "reason")).to_pylist()
        )
        if [row["id"] for row in rows if row is not None] != ids:
            raise ValueError(f"{self._coarse_uri}: shard {key} has other rows than the teacher's labels")
        return rows

    def _row(self, row: dict[str, Any], human: dict[str, Any] | None) -> dict[str, Any]:
        """A row of the label set: the label, or the reason why there is none. Confidence stays with the teacher's."""
        empty = {"id": row["id"], "label": None, "confidence": None}
        if row["reason"] is not None:
            return {**empty, "reason": self._counts.reject(row["reason"])}
        try:
            label = self._label(row, human)
        except RowError as error:
            return {**empty, "reason": self._counts.reject(str(error))}
        with self._counts.phase("encode"):
            return {**empty, "label": encode_label(label), "reason": None}

    def _label(self, row: dict[str, Any], human: dict[str, Any] | None) -> Label:
        with self._counts.phase("decode"):
            found, steps = decode_label(row["label"]), decode_steps(row["confidence"])
            coarse = None if human is None else _coarse_label(human, found.shape)
        with self._counts.phase("keep"):
            kept = self._rule.apply(found, steps, coarse=coarse)
            self._count(found, kept)
        return kept.label

    def _count(self, found: Label, kept: Kept) -> None:
        label, void = kept.label, self._space.void
        known, same = label != void, label == found
        self._counts.count_pixels("predicted", found)
        self._counts.count_pixels("kept", found[same])
        self._counts.count_pixels("pixels", label)
        self._counts.count_pixels("from_coarse", label[known & ~same])
        cut = np.zeros(label.shape, bool)
        cut[kept.inside] = ~known[kept.inside]
        below = int(np.count_nonzero(cut & kept.below))
        others = {"threshold": below, "coarse": int(np.count_nonzero(cut)) - below}
        others["border"] = int(np.count_nonzero(~known)) - below - others["coarse"]
        self._counts.count("cut", others)


def _coarse_label(row: dict[str, Any], shape: tuple[int, ...]) -> Label:
    """The human label of a row.

    Raises:
        RowError: there is none, or of another size.
    """
    if row["label"] is None:
        raise RowError(f"no coarse label ({row['reason']})")
    label = decode_label(row["label"])
    if label.shape != shape:
        raise RowError(f"the coarse label has another size ({label.shape}, the image {tuple(shape)})")
    return label
