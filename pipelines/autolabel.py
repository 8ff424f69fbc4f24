"""Auto-labelling: a published checkpoint as teacher -> a label set with confidence (specs: HMSA section 6.2).

Pixels below the threshold are void in `label`; `confidence` keeps the teacher's probability for every pixel, so another
threshold needs no second run. A row that was rejected keeps its place with a reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pipelines import storage
from pipelines.autolabel_worker import AutolabelWorker, make_teacher_plan
from pipelines.ingest import by_class, summed
from pipelines.labels import LabelSpace
from pipelines.pssl_run import LabelWork, OnProgress, read_stats, run_work, shards_in_scope
from pipelines.published import Checkpoint, device_of, open_checkpoint, threads_of
from pipelines.shards import ComputeSpec
from pipelines.tables import Dataset
from seg_models.predictor import PredictorSpec


@dataclass(frozen=True)
class TeacherWork(LabelWork):
    """A label set to be written by a teacher."""

    @property
    def run_uri(self) -> str:
        """Folder of the run: its job and result."""
        return storage.join(self.dataset.root, "runs", f"autolabel-{self.labels}")

    @property
    def teacher(self) -> Checkpoint:
        """The checkpoint."""
        found: Checkpoint = self.worker_args["checkpoint"]
        return found


@dataclass(frozen=True)
class AutolabelResult:
    """What a run did. Counts are of all rows in scope, speeds of this run alone."""

    images_in: int
    labelled: int
    rejected: int
    reasons: dict[str, int]
    """How many rows were rejected for each reason."""
    class_pixels: dict[str, int]
    """Labelled pixels by class name; `(void)` are those below the threshold."""
    kept_share: dict[str, float]
    """Share of the pixels given to a class that reach the threshold; classes never predicted are left out."""
    kept: float
    """The same over all pixels."""
    seconds: float
    images_per_s: float
    digest: str
    """SHA-256 over id and label of every row of the label set, in row order."""
    num_shards: int
    resumed_shards: int
    """Shards that earlier runs had committed."""
    phases: dict[str, float]
    """Seconds in each phase, summed over actors."""
    actors: int
    examples: tuple[str, ...]
    """Ids of labelled images, for pictures."""

    def as_dict(self) -> dict[str, Any]:
        """JSON-serialisable form."""
        return {**asdict(self), "examples": list(self.examples)}


def plan_autolabel(
    checkpoint: str,
    *,
    dataset: str,
    labels: str,
    split: str | None = None,
    threshold: float = 0.5,
    predictor: PredictorSpec | None = None,
    compute: ComputeSpec | None = None,
) -> TeacherWork:
    """Check everything that can be checked before work starts; nothing is written.

    Args:
        checkpoint: folder of a published checkpoint, or of the training run that wrote it.
        labels: name of the label set to write; its classes are the checkpoint's.
        threshold: least confidence of a labelled pixel. 0.5 is released; the paper's text says 0.9.

    Raises:
        ValueError: no such checkpoint, dataset or split.
    """
    compute = compute or ComputeSpec()
    teacher, opened = open_checkpoint(checkpoint), Dataset.open(dataset)
    images = opened.images
    plan = make_teacher_plan(
        teacher,
        predictor=predictor or PredictorSpec(),
        threshold=threshold,
        device=device_of(compute),
        threads=threads_of(compute),
        images=images.fingerprint(),
    )
    return TeacherWork(
        dataset=opened,
        labels=labels,
        split=split,
        space=teacher.label_space,
        plan=plan.model_dump(mode="json"),
        shards=shards_in_scope(opened, images, split),
        worker=AutolabelWorker,
        worker_args={"checkpoint": teacher, "images_uri": images.uri, "plan": plan},
    )


def run_autolabel(
    work: TeacherWork, *, compute: ComputeSpec, max_rejected: float = 0.5, on_progress: OnProgress | None = None
) -> AutolabelResult:
    """Write or continue the label set that was planned; Ray must be running.

    Raises:
        ValueError: the label set follows another plan, or too many rows are rejected.
        ShardError: a worker failed; finished shards are committed.
    """
    done = run_work(work, compute=compute, label="autolabel", max_rejected=max_rejected, on_progress=on_progress)
    stats = read_stats(work.open(), split=work.split)
    predicted, kept = summed(stats, "predicted"), summed(stats, "pixels")
    kept.pop(str(work.space.void), None)
    return AutolabelResult(
        images_in=done.images_in,
        labelled=done.labelled,
        rejected=done.rejected,
        reasons=done.reasons,
        class_pixels=by_class(summed(stats, "pixels"), work.space),
        kept_share=_shares(kept, predicted, work.space),
        kept=kept.total() / predicted.total() if predicted else 0.0,
        seconds=done.seconds,
        images_per_s=done.images_per_s,
        digest=done.digest,
        num_shards=done.num_shards,
        resumed_shards=done.resumed_shards,
        phases=done.phases,
        actors=done.actors,
        examples=done.examples,
    )


def _shares(kept: Mapping[str, int], predicted: Mapping[str, int], space: LabelSpace) -> dict[str, float]:
    """Kept share by class name, in the order of the classes."""
    order = sorted(predicted, key=int)
    return {space.names[int(index)]: kept.get(index, 0) / predicted[index] for index in order}
