"""Write a label set shard by shard on Ray: what is left to do, commits, the limit on rejected rows, the result."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from pipelines import storage
from pipelines.codecs import LABEL_CODECS
from pipelines.labels import LabelSpace
from pipelines.schema import Receipt, ShardKey
from pipelines.shard_counts import by_class, group, merged, read_stats, summed
from pipelines.shards import CommitBuffer, ComputeSpec, ShardTask, run_shards
from pipelines.tables import Dataset, ShardFile, Table, read_shard_file
from seg_models.spec import did_you_mean

NUM_EXAMPLES = 8

OnProgress = Callable[[dict[str, float], int], None]
"""Called with metrics and the number of images done."""


@dataclass(frozen=True)
class ImageShard:
    """Address of a committed shard of images; what a worker is given."""

    key: ShardKey
    path: str
    """Relative to the image table."""


@dataclass(frozen=True)
class LabelWork:
    """A label set to be written: its plan, the shards in scope and what workers are built with."""

    verb: str
    """What makes the labels; the run's folder has its name."""
    dataset: Dataset
    labels: str
    """Name of the label set."""
    split: str | None
    space: LabelSpace
    plan: dict[str, Any]
    shards: tuple[ShardFile, ...]
    """Committed shards of images in scope."""
    worker: type
    worker_args: dict[str, Any]
    """Without `labels_uri`, which is added."""
    codecs: Mapping[str, str] = field(default_factory=lambda: dict(LABEL_CODECS), kw_only=True)
    """Codec of each column that the label set will hold."""

    @property
    def num_images(self) -> int:
        """Rows in scope."""
        return sum(shard.num_rows for shard in self.shards)

    @property
    def run_uri(self) -> str:
        """Folder of the run: its job and result."""
        return storage.join(self.dataset.root, "runs", f"{self.verb}-{self.labels}")

    def committed(self) -> set[ShardKey]:
        """Shards that the label set has already; none where it does not exist yet.

        Raises:
            ValueError: the label set follows another plan; the differing keys are named.
        """
        return self.open().committed() if self.labels in self.dataset.label_sets() else set()

    def open(self) -> Table:
        """The label set, made where it does not exist.

        Raises:
            ValueError: it follows another plan.
        """
        return self.dataset.create_labels(self.labels, label_space=self.space, plan=self.plan, codecs=self.codecs)


@dataclass(frozen=True)
class LabelResult:
    """What a run did. Counts are of all rows in scope, speeds of this run alone."""

    images_in: int
    labelled: int
    rejected: int
    reasons: dict[str, int]
    """How many rows were rejected for each reason."""
    seconds: float
    images_per_s: float
    digest: str
    """SHA-256 over id and label of every row of the label set, in row order."""
    num_shards: int
    resumed_shards: int
    """Shards that earlier runs had committed."""
    class_pixels: dict[str, int]
    """Pixels by class name; `(void)` are those without a label."""
    phases: dict[str, float]
    """Seconds in each phase, summed over actors."""
    actors: int
    examples: tuple[str, ...]
    """Ids of labelled images, for pictures."""

    def as_dict(self) -> dict[str, Any]:
        """JSON-serialisable form."""
        return {**asdict(self), "examples": list(self.examples)}


def shards_in_scope(dataset: Dataset, images: Table, split: str | None) -> tuple[ShardFile, ...]:
    """The image shards of a split, or all.

    Raises:
        ValueError: unknown split, or no image at all.
    """
    if split is not None and split not in dataset.info.splits:
        known = ", ".join(dataset.info.splits)
        raise ValueError(
            f"{dataset.root}: no split {split!r}{did_you_mean(split, dataset.info.splits)}; there are: {known}"
        )
    shards = tuple(images.files(split=split))
    if not shards:
        where = f"split {split!r} of {dataset.root}" if split else dataset.root
        raise ValueError(f"{where} has no images: run `segray ingest` first")
    return shards


def run_work(
    work: LabelWork,
    *,
    compute: ComputeSpec,
    max_rejected: float = 0.5,
    on_progress: OnProgress | None = None,
) -> LabelResult:
    """Label every shard that is not committed yet; Ray must be running.

    Raises:
        ValueError: the label set follows another plan, or too many rows are rejected.
        ShardError: a worker failed; finished shards are committed.
    """
    start = time.monotonic()
    table = work.open()
    done = table.committed()
    todo = [shard for shard in work.shards if shard.key not in done]
    tasks = [ShardTask(str(shard.key), ImageShard(shard.key, shard.path), shard.num_rows) for shard in todo]
    tally = _Tally(work, earlier=table.counts(split=work.split).rejected, max_rejected=max_rejected, report=on_progress)
    buffer = CommitBuffer(table.commit)

    def on_result(_: str, receipt: Receipt) -> None:
        buffer.add([receipt])
        tally.add(receipt)

    worker_args = {**work.worker_args, "labels_uri": table.uri}
    try:
        stats = run_shards(
            work.worker, tasks=tasks, worker_args=worker_args, compute=compute, on_result=on_result, label=work.verb
        )
    finally:
        buffer.flush()
    tally.check()
    return _result(
        work, tally, resumed=len(work.shards) - len(todo), seconds=time.monotonic() - start, actors=stats.actors
    )


class _Tally:
    """Counts receipts as they come in and stops a run in which too many rows are rejected."""

    def __init__(self, work: LabelWork, *, earlier: int, max_rejected: float, report: OnProgress | None) -> None:
        self._work, self._max_rejected, self._report = work, max_rejected, report
        self._rejected = earlier
        self._start = time.monotonic()
        self._reasons: Counter[str] = Counter()
        self.rows = 0
        self.seconds: Counter[str] = Counter()
        """In each phase, over all actors."""

    def add(self, receipt: Receipt) -> None:
        """Count a finished shard.

        Raises:
            ValueError: the limit on rejected rows can no longer be met.
        """
        self.rows += receipt.num_rows
        self._rejected += receipt.num_rejected
        self._reasons.update(receipt.stats["reasons"])
        self.seconds.update(receipt.stats["seconds"])
        if self._report is not None:
            rate = self.rows / max(time.monotonic() - self._start, 1e-9)
            self._report({"images": self.rows, "rejected": self._rejected, "images_per_s": rate}, self.rows)
        self.check()

    def check(self) -> None:
        """Compare the rejected rows with the limit."""
        if self._rejected > self._max_rejected * self._work.num_images:
            reason = self._reasons.most_common(1)[0][0] if self._reasons else "see the table"
            raise ValueError(
                f"label set {self._work.labels!r}: {self._rejected} of {self._work.num_images} rows have no label, "
                f"more than max_rejected = {self._max_rejected:g} allows; most frequent reason: {reason}"
            )


def _result(work: LabelWork, tally: _Tally, *, resumed: int, seconds: float, actors: int) -> LabelResult:
    table = work.open()
    counts = table.counts(split=work.split)
    stats = read_stats(table, split=work.split)
    return LabelResult(
        images_in=work.num_images,
        labelled=counts.good,
        rejected=counts.rejected,
        reasons=dict(Counter(group(reason) for reason in merged(stats, "reasons").values()).most_common()),
        seconds=round(seconds, 3),
        images_per_s=round(tally.rows / seconds, 3) if seconds > 0 else 0.0,
        digest=table.label_digest(),
        num_shards=len(work.shards),
        resumed_shards=resumed,
        class_pixels=by_class(summed(stats, "pixels"), work.space),
        phases={name: round(value, 2) for name, value in tally.seconds.items()},
        actors=actors,
        examples=_examples(table, work.split),
    )


def _examples(table: Table, split: str | None) -> tuple[str, ...]:
    """The first labelled ids of the label set."""
    ids: list[str] = []
    for file in table.files(split=split):
        rows = read_shard_file(table.uri, file.path, columns=("id", "reason")).to_pylist()
        ids += [row["id"] for row in rows if row["reason"] is None]
        if len(ids) >= NUM_EXAMPLES:
            break
    return tuple(ids[:NUM_EXAMPLES])
