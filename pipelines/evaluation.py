"""Evaluation: a checkpoint against a labelled split, every image once, on Ray (design, section 7).

A worker counts one shard and remembers, as run-length codes, the few predictions that may end
up in the report; the driver adds the counts and keeps the best of those.
"""

from __future__ import annotations

import hashlib
import heapq
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.codecs import decode_label
from pipelines.evaluation_worker import Candidate, EvaluationWorker, ImageScore, LabelledShard, ShardScores
from pipelines.images import decode_image
from pipelines.labels import LabelSpace
from pipelines.measures import Measures, MetricsSpec
from pipelines.pictures import Picture, picture_views
from pipelines.published import Checkpoint, check_same_classes, device_of, open_checkpoint, threads_of
from pipelines.shards import ComputeSpec, RunShards, ShardTask, run_shards
from pipelines.tables import Dataset, Table
from seg_models.predictor import PredictorSpec
from seg_models.spec import did_you_mean


@dataclass(frozen=True)
class EvaluationWork:
    """What is to be evaluated, checked before work starts."""

    checkpoint: Checkpoint
    dataset: str
    labels: str
    split: str
    space: LabelSpace
    images: Table
    truth: Table
    shards: tuple[LabelledShard, ...]
    predictor: PredictorSpec

    @property
    def num_images(self) -> int:
        """Rows of the split."""
        return sum(shard.num_rows for shard in self.shards)

    @property
    def fingerprint(self) -> str:
        """Of images, labels and the name of the split together."""
        both = f"{self.images.fingerprint()} {self.truth.fingerprint()} {self.split}"
        return hashlib.sha256(both.encode()).hexdigest()


@dataclass(frozen=True)
class EvaluationResult:
    """Metrics over the whole split, and the pictures that show them."""

    figures: dict[str, float | None]
    """miou (over the classes that occur in the truth or the prediction), fwiou, pixel_accuracy, mean_accuracy; where
    asked for boundary_f_<width>px and ece."""
    classes: tuple[dict[str, Any], ...]
    """One row per class: class, iou, accuracy (recall), precision, pixels, predicted_pixels, boundary F."""
    confusion: NDArray[np.int64]
    """(K, K) pixel counts, truth in rows."""
    boundary: tuple[dict[str, Any], ...]
    """One row per width of boundary F: px, f, precision, recall, published_f."""
    calibration: dict[str, Any] | None
    """ece, largest_error, mean_confidence, bins."""
    images_in: int
    evaluated: int
    skipped: int
    reasons: dict[str, int]
    """Skipped images by reason."""
    scores: tuple[ImageScore, ...]
    """Every evaluated image, sorted by id."""
    pictures: tuple[Picture, ...]
    """The fixed ones, then the worst, worst first."""
    seconds: float
    actors: int

    @property
    def miou(self) -> float:
        """Mean IoU over the classes that occur in the truth or the prediction."""
        return self._counted("miou")

    @property
    def pixel_accuracy(self) -> float:
        """Share of right pixels."""
        return self._counted("pixel_accuracy")

    def _counted(self, name: str) -> float:
        value = self.figures[name]
        assert value is not None, "an evaluation without a pixel to judge by is an error"
        return value

    def as_dict(self) -> dict[str, Any]:
        """JSON-serialisable figures, without matrix, single images and picture bytes."""
        rate = self.evaluated / self.seconds if self.seconds > 0 else 0.0
        measured = {"boundary": list(self.boundary), "calibration": self.calibration}
        return {
            **self.figures,
            "classes": list(self.classes),
            **{key: value for key, value in measured.items() if value},
            "images_in": self.images_in,
            "evaluated": self.evaluated,
            "skipped": self.skipped,
            "reasons": self.reasons,
            "seconds": round(self.seconds, 3),
            "images_per_s": round(rate, 3),
            "actors": self.actors,
            "pictures": [picture.as_dict() for picture in self.pictures],
        }


def plan_evaluation(
    checkpoint: str, *, dataset: str, labels: str, split: str, predictor: PredictorSpec | None = None
) -> EvaluationWork:
    """Check everything that can be checked before work starts.

    Raises:
        ValueError: no such checkpoint, dataset, label set or split, the class lists differ, labels are missing, or the
            model cannot predict so.
    """
    predictor = predictor or PredictorSpec()
    opened, data = open_checkpoint(checkpoint, predictor=predictor), Dataset.open(dataset)
    images, truth = data.images, data.labels(labels)
    space = truth.label_space
    check_same_classes(opened, space, labels=f"label set {labels!r}")
    shards = _pair_shards(data, images=images, truth=truth, labels=labels, split=split)
    return EvaluationWork(opened, data.root, labels, split, space, images, truth, shards, predictor)


def _pair_shards(data: Dataset, *, images: Table, truth: Table, labels: str, split: str) -> tuple[LabelledShard, ...]:
    files = {file.key: file for file in images.files(split=split)}
    if not files:
        nearest = did_you_mean(split, data.info.splits)
        raise ValueError(f"{data.root}: no images in split {split!r}{nearest}; splits: {', '.join(data.info.splits)}")
    labelled = {file.key: file for file in truth.files(split=split)}
    missing = sorted(set(files) - set(labelled))
    if missing:
        raise ValueError(
            f"{data.root}: label set {labels!r} lacks {len(missing)} of {len(files)} shards of split {split!r} "
            f"(first {missing[0]}); finish the job that writes it"
        )
    return tuple(
        LabelledShard(key, file.path, labelled[key].path, file.num_rows) for key, file in sorted(files.items())
    )


def evaluate_checkpoint(
    checkpoint: str,
    *,
    dataset: str,
    labels: str,
    split: str,
    predictor: PredictorSpec | None = None,
    metrics: MetricsSpec | None = None,
    compute: ComputeSpec | None = None,
    num_pictures: int = 8,
    num_worst: int = 8,
) -> EvaluationResult:
    """Evaluate a checkpoint on a labelled split; Ray must be running.

    Args:
        checkpoint: folder of a published checkpoint, or of the training run that wrote it.
        metrics: what is measured beside the confusion matrix; default: nothing.
        num_pictures: fixed pictures, the same every time: the first by SHA-256 of the id.
        num_worst: pictures of the images with the lowest IoU.

    Raises:
        ValueError: something does not fit, before work starts.
        ShardError: a worker failed.
    """
    work = plan_evaluation(checkpoint, dataset=dataset, labels=labels, split=split, predictor=predictor)
    return run_evaluation(
        work,
        metrics=metrics,
        compute=compute or ComputeSpec(),
        num_pictures=num_pictures,
        num_worst=num_worst,
    )


def run_evaluation(
    work: EvaluationWork,
    *,
    compute: ComputeSpec,
    num_pictures: int,
    num_worst: int,
    metrics: MetricsSpec | None = None,
    run: RunShards | None = None,
) -> EvaluationResult:
    """Evaluate what was planned, on the Ray that is running, or as `run` says (`run_here`: in this process).

    Beside the confusion matrix `metrics` is measured.

    Raises:
        ShardError: a worker failed.
        ValueError: no image has both pixels and a label.
        RuntimeError: an image was counted twice or not at all.
    """
    start = time.monotonic()
    metrics = metrics or MetricsSpec()
    tally = _Tally(work, metrics, num_pictures=num_pictures, num_worst=num_worst)
    worker_args = {
        "checkpoint": work.checkpoint,
        "images_uri": work.images.uri,
        "labels_uri": work.truth.uri,
        "predictor": work.predictor,
        "metrics": metrics,
        "device": device_of(compute),
        "threads": threads_of(compute),
        "num_fixed": num_pictures,
        "num_worst": num_worst,
    }
    stats = (run or run_shards)(
        EvaluationWorker,
        tasks=[ShardTask(str(shard.key), shard, shard.num_rows) for shard in work.shards],
        worker_args=worker_args,
        compute=compute,
        on_result=lambda _, scores: tally.add(scores),
        label="evaluate",
    )
    tally.check()
    return tally.result(seconds=time.monotonic() - start, actors=stats.actors)


@dataclass
class _Tally:
    """Adds up shards as they come in."""

    work: EvaluationWork
    metrics: MetricsSpec
    num_pictures: int
    num_worst: int
    scores: list[ImageScore] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    fixed: list[Candidate] = field(default_factory=list)
    worst: list[Candidate] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.measures = Measures.of(self.work.space, self.metrics)

    def add(self, shard: ShardScores) -> None:
        """Add the counts of one shard."""
        self.measures.merge(shard.measured)
        self.scores += shard.images
        self.reasons.update(shard.reasons)
        self.fixed = heapq.nsmallest(self.num_pictures, [*self.fixed, *shard.fixed], key=Candidate.by_hash)
        self.worst = heapq.nsmallest(self.num_worst, [*self.worst, *shard.worst], key=Candidate.by_score)

    def check(self) -> None:
        """Make sure that every row of the split was seen exactly once, and that there is something to judge by."""
        ids = [score.id for score in self.scores]
        seen, wanted = len(ids) + self.reasons.total(), self.work.num_images
        if len(set(ids)) != len(ids) or seen != wanted:
            doubles = len(ids) - len(set(ids))
            raise RuntimeError(f"evaluation saw {seen} of {wanted} images, {doubles} of them twice")
        if not self.measures.confusion.matrix.any():
            why = "; ".join(f"{count} x {reason}" for reason, count in self.reasons.most_common(3)) or "all is void"
            raise ValueError(f"{self.work.dataset}: no pixel of split {self.work.split!r} has a known class ({why})")

    def result(self, *, seconds: float, actors: int) -> EvaluationResult:
        """Everything together."""
        return EvaluationResult(
            figures=self.measures.figures(),
            classes=tuple(self.measures.class_table(self.work.space)),
            confusion=self.measures.confusion.matrix,
            boundary=tuple(self.measures.boundary_table()),
            calibration=self.measures.calibration_table(),
            images_in=self.work.num_images,
            evaluated=len(self.scores),
            skipped=self.reasons.total(),
            reasons=dict(self.reasons.most_common()),
            scores=tuple(sorted(self.scores, key=lambda score: score.id)),
            pictures=tuple(self._render("fixed", self.fixed)) + tuple(self._render("worst", self.worst)),
            seconds=seconds,
            actors=actors,
        )

    def _render(self, kind: str, chosen: list[Candidate]) -> Iterable[Picture]:
        for number, candidate in enumerate(chosen):
            views = picture_views(
                decode_image(_cell(self.work.images, candidate, "image")),
                space=self.work.space,
                truth=decode_label(_cell(self.work.truth, candidate, "label")),
                prediction=decode_label(candidate.prediction),
            )
            yield Picture(f"{kind}-{number:02d}", candidate.score.id, candidate.score.miou, views)


def _cell(table: Table, candidate: Candidate, column: str) -> bytes:
    """The content of one row of a column."""
    data: bytes = table.read(candidate.key, columns=(column,)).column(column)[candidate.row].as_py()
    return data
