"""Images and labels of any source -> a dataset: run the plan over shards, commit, and count what is committed."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from pipelines.ingest_plan import IngestPlan
from pipelines.ingest_worker import IngestWorker, ShardReceipts
from pipelines.schema import Receipt
from pipelines.shard_counts import by_class, group, merged, read_stats, summed
from pipelines.shards import CommitBuffer, ComputeSpec, ShardTask, run_shards
from pipelines.tables import Dataset

SHOWN_ROWS = 50
"""Rejected files that are printed; result.json holds all."""


@dataclass(frozen=True)
class RejectedRow:
    """A row with a reason."""

    id: str
    table: str
    """`images` or `labels`."""
    reason: str


@dataclass(frozen=True)
class IngestResult:
    """What is in the dataset after an ingest, counted from what is committed."""

    dataset: str
    labels: str | None
    images_in: int
    good: int
    """Images that are usable and, where the source has labels, have a usable label."""
    rejected: int
    rejected_images: int
    rejected_labels: int
    """Images that are usable and whose label is not."""
    reasons: dict[str, int]
    """Images by reason, without details."""
    rejected_rows: tuple[RejectedRow, ...]
    splits: dict[str, int]
    """Images of each split."""
    class_images: dict[str, int]
    """Images by image-level class name."""
    class_pixels: dict[str, int]
    """Label pixels by class name; void is `(void)`."""
    sizes: dict[str, int]
    """Images by width x height."""
    image_bytes: int
    shards: int
    shards_done: int
    """Shards written by this run; the others were there."""
    seconds: float
    ignored_files: int
    notes: tuple[str, ...]

    @property
    def rejected_share(self) -> float:
        """Share of the images that are not good."""
        return self.rejected / self.images_in if self.images_in else 0.0

    def to_json(self) -> dict[str, Any]:
        """All fields, JSON-serialisable."""
        table = asdict(self)
        return table | {"rejected_rows": [asdict(row) for row in self.rejected_rows], "notes": list(self.notes)}

    def text(self) -> str:
        """What is printed at the end."""
        lines = [f"{self.dataset}: {self.images_in} images in = {self.good} good + {self.rejected} rejected"]
        lines += [f"note: {note}" for note in self.notes]
        lines += [f"{count:>8} x {reason}" for reason, count in self.reasons.items()]
        lines += [f"{'':>8} {row.id}: {row.reason}" for row in self.rejected_rows[:SHOWN_ROWS]]
        if len(self.rejected_rows) > SHOWN_ROWS:
            lines.append(f"{'':>8} and {len(self.rejected_rows) - SHOWN_ROWS} more in result.json")
        total = sum(self.class_pixels.values())
        lines += [f"{count / total:>8.2%} of pixels {name}" for name, count in self.class_pixels.items() if count]
        return "\n".join(lines)


def ingest(plan: IngestPlan, *, compute: ComputeSpec) -> IngestResult:
    """Run what is left of a plan and count the whole dataset; Ray must be running.

    Raises:
        ValueError: the target changed since the plan was made.
        ShardError: a file system failed. What was committed stays; the same job continues from it.
    """
    start = time.monotonic()
    dataset = Dataset.create(plan.root, plan.info)
    if plan.labels is not None:
        dataset.create_labels(
            plan.labels, label_space=plan.info.label_space, plan={"made_by": "ingest"} | plan.info.source
        )
    todo = plan.remaining()
    commit = PairedCommits(dataset, plan.labels)
    try:
        run_shards(
            IngestWorker,
            tasks=[ShardTask(str(shard.key), shard, num_units=len(shard.samples)) for shard in todo],
            worker_args=worker_args(plan, dataset),
            compute=compute,
            on_result=lambda _, result: commit.add(result),
            label="ingest",
        )
    finally:
        commit.flush()
    return count_dataset(plan, dataset, shards_done=len(todo), seconds=time.monotonic() - start)


def worker_args(plan: IngestPlan, dataset: Dataset) -> dict[str, Any]:
    """Arguments of every IngestWorker of a plan."""
    return {
        "images_uri": dataset.images.uri,
        "labels_uri": dataset.labels_uri(plan.labels) if plan.labels is not None else None,
        "label_space": plan.info.label_space,
        "codec": plan.source.codec,
        "min_side_px": plan.min_side_px,
    }


class PairedCommits:
    """Commits shards of images before their labels: a label set never names a shard that the images lack."""

    def __init__(self, dataset: Dataset, labels: str | None) -> None:
        self._images_table = dataset.images
        self._labels_table = dataset.labels(labels) if labels is not None else None
        self._images = CommitBuffer(self._images_table.commit)
        self._labels = CommitBuffer(self._commit_labels)

    def add(self, result: ShardReceipts) -> None:
        """Hold the receipts of one shard and commit when it is time."""
        self._images.add([result.images])
        if result.labels is not None:
            self._labels.add([result.labels])

    def flush(self) -> None:
        """Commit everything held."""
        self._images.flush()
        self._labels.flush()

    def _commit_labels(self, receipts: list[Receipt]) -> None:
        self._images.flush()
        assert self._labels_table is not None  # only shards with labels come here
        self._labels_table.commit(receipts)


def count_dataset(plan: IngestPlan, dataset: Dataset, *, shards_done: int, seconds: float) -> IngestResult:
    """Count what the tables hold: rows, reasons, classes, pixels, sizes."""
    images = read_stats(dataset.images)
    labels = read_stats(dataset.labels(plan.labels)) if plan.labels is not None else []
    bad_images = merged(images, "reasons")
    bad_labels = {key: why for key, why in merged(labels, "reasons").items() if key not in bad_images}
    rows = [RejectedRow(key, "images", why) for key, why in sorted(bad_images.items())]
    rows += [RejectedRow(key, "labels", why) for key, why in sorted(bad_labels.items())]
    splits = {split: dataset.images.counts(split=split).rows for split in plan.info.splits}
    space = plan.info.label_space
    return IngestResult(
        dataset=plan.root,
        labels=plan.labels,
        images_in=sum(splits.values()),
        good=sum(splits.values()) - len(rows),
        rejected=len(rows),
        rejected_images=len(bad_images),
        rejected_labels=len(bad_labels),
        reasons=dict(Counter(group(row.reason) for row in rows).most_common()),
        rejected_rows=tuple(rows),
        splits=splits,
        class_images=by_class(summed(images, "classes"), space),
        class_pixels=by_class(summed(labels, "pixels"), space) if labels else {},
        sizes=dict(summed(images, "sizes").most_common()),
        image_bytes=sum(stats["bytes"] for stats in images),
        shards=len(plan.shards),
        shards_done=shards_done,
        seconds=round(seconds, 3),
        ignored_files=plan.num_ignored,
        notes=plan.notes,
    )
