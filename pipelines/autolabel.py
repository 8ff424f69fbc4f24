"""Auto-labelling: a published checkpoint as teacher -> a label set with confidence (specs: HMSA section 6.2).

Pixels below the threshold are void in `label`; `confidence` keeps the teacher's probability for every pixel, so another
threshold needs no second run. A row that was rejected keeps its place with a reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pipelines.autolabel_worker import AutolabelWorker, make_teacher_plan
from pipelines.label_run import LabelResult, LabelWork, OnProgress, run_work, shards_in_scope
from pipelines.labels import LabelSpace
from pipelines.published import Checkpoint, device_of, open_checkpoint, threads_of
from pipelines.shard_counts import read_stats, summed
from pipelines.shards import ComputeSpec
from pipelines.tables import Dataset
from seg_models.predictor import PredictorSpec


@dataclass(frozen=True)
class TeacherWork(LabelWork):
    """A label set to be written by a teacher."""

    @property
    def teacher(self) -> Checkpoint:
        """The checkpoint."""
        found: Checkpoint = self.worker_args["checkpoint"]
        return found


@dataclass(frozen=True)
class AutolabelResult(LabelResult):
    """What a run did; void pixels are those below the threshold."""

    kept_share: dict[str, float]
    """Share of the pixels given to a class that reach the threshold; classes never predicted are left out."""
    kept: float
    """The same over all pixels."""


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
        verb="autolabel",
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
    done = run_work(work, compute=compute, max_rejected=max_rejected, on_progress=on_progress)
    stats = read_stats(work.open(), split=work.split)
    predicted, kept = summed(stats, "predicted"), summed(stats, "pixels")
    kept.pop(str(work.space.void), None)
    return AutolabelResult(
        **vars(done),
        kept_share=_shares(kept, predicted, work.space),
        kept=kept.total() / predicted.total() if predicted else 0.0,
    )


def _shares(kept: Mapping[str, int], predicted: Mapping[str, int], space: LabelSpace) -> dict[str, float]:
    """Kept share by class name, in the order of the classes."""
    order = sorted(predicted, key=int)
    return {space.names[int(index)]: kept.get(index, 0) / predicted[index] for index in order}
