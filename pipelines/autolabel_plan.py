"""What an auto-labelling run would do, checked before it starts: the teacher's label set, and what is made of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipelines.autolabel_worker import TeacherPlan, TeacherWorker, make_teacher_plan
from pipelines.keep import KeepSpec
from pipelines.keep_worker import KeepPlan, KeepWorker
from pipelines.label_run import LabelWork, shards_in_scope
from pipelines.published import Checkpoint, device_of, open_checkpoint, threads_of
from pipelines.shards import ComputeSpec
from pipelines.tables import Dataset, Table
from seg_models.predictor import PredictorSpec

RAW = "-raw"  # ends the name of a teacher's own label set


@dataclass(frozen=True)
class TeacherWork(LabelWork):
    """A teacher's own label set to be written."""

    @property
    def teacher(self) -> Checkpoint:
        """The checkpoint."""
        found: Checkpoint = self.worker_args["checkpoint"]
        return found


@dataclass(frozen=True)
class AutolabelWork(LabelWork):
    """A label set to be derived from a teacher's."""

    source: str
    """Name of the teacher's own label set."""
    teacher_work: TeacherWork | None
    """What writes that one; None where it was finished before and only its name was given."""


def plan_autolabel(
    checkpoint: str,
    *,
    dataset: str,
    labels: str,
    split: str | None = None,
    keep: KeepSpec | None = None,
    predictor: PredictorSpec | None = None,
    compute: ComputeSpec | None = None,
) -> AutolabelWork:
    """Check everything that can be checked before work starts; nothing is written.

    Args:
        checkpoint: folder of a published checkpoint, or of the training run that wrote it.
        labels: name of the label set to write; its classes are the checkpoint's.
        keep: which of the teacher's labels are kept.

    Raises:
        ValueError: no such checkpoint, dataset, split or class, or a coarse label set that does not fit.
    """
    compute, predictor = compute or ComputeSpec(), predictor or PredictorSpec()
    teacher, opened = open_checkpoint(checkpoint, predictor=predictor), Dataset.open(dataset)
    images = opened.images
    plan = make_teacher_plan(
        teacher,
        predictor=predictor,
        device=device_of(compute),
        threads=threads_of(compute),
        images=images.fingerprint(),
    )
    table = plan.model_dump(mode="json")
    work = TeacherWork(
        verb="autolabel",
        dataset=opened,
        labels=_same_plan(opened, table) or f"{labels}{RAW}",
        split=split,
        space=teacher.label_space,
        plan=table,
        shards=shards_in_scope(opened, images, split),
        worker=TeacherWorker,
        worker_args={"checkpoint": teacher, "images_uri": images.uri, "plan": plan, "fetch": compute.fetch},
    )
    return _derived(work, labels=labels, source=work.labels, keep=keep or KeepSpec(), plan=plan, teacher_work=work)


def plan_derived(
    derive_from: str, *, dataset: str, labels: str, split: str | None = None, keep: KeepSpec | None = None
) -> AutolabelWork:
    """The same without a teacher: from a label set that one wrote before.

    Args:
        derive_from: a teacher's own label set of this dataset, or one that was derived from it.

    Raises:
        ValueError: no such dataset, label set, split or class; the label set is no teacher's, or not whole; or a coarse
            label set that does not fit.
    """
    opened = Dataset.open(dataset)
    source, table = _teachers_labels(opened, derive_from)
    images = opened.images
    plan = TeacherPlan.model_validate(table.info["plan"])
    if plan.images != images.fingerprint():
        raise ValueError(f"derive_from: {opened.root} has other images than when {source!r} was written; label anew")
    shards = shards_in_scope(opened, images, split)
    missing = sum(shard.key not in table.committed() for shard in shards)
    if missing:
        raise ValueError(
            f"derive_from: {source!r} lacks {missing} of {len(shards)} shards; finish it with its checkpoint first"
        )
    work = LabelWork("autolabel", opened, source, split, table.label_space, {}, shards, KeepWorker, {})
    return _derived(work, labels=labels, source=source, keep=keep or KeepSpec(), plan=plan, teacher_work=None)


def _same_plan(dataset: Dataset, plan: dict[str, Any]) -> str | None:
    """A teacher's label set that follows this plan already."""
    return next((name for name in dataset.label_sets() if _plan_of(dataset, name) == plan), None)


def _plan_of(dataset: Dataset, name: str) -> Any:
    """The plan of a label set; None where this version cannot read it, which is not what the user asked about."""
    try:
        return dataset.labels(name).info.get("plan")
    except ValueError:
        return None


def _teachers_labels(dataset: Dataset, name: str) -> tuple[str, Table]:
    """A teacher's own label set, named itself or through one that was derived from it."""
    table = dataset.labels(name)
    if table.info["plan"].get("kind") == "autolabel":
        name = table.info["plan"]["source"]
        table = dataset.labels(name)
    if table.info["plan"].get("kind") != "teacher":
        raise ValueError(f"derive_from: label set {name!r} was not written by a teacher, it has no confidence")
    return name, table


def _derived(
    base: LabelWork, *, labels: str, source: str, keep: KeepSpec, plan: TeacherPlan, teacher_work: TeacherWork | None
) -> AutolabelWork:
    """The second step of a run.

    Raises:
        ValueError: an unknown class, a coarse label set that does not fit, or the teacher's own name for the labels.
    """
    keep.check(base.space)
    if labels == source:
        raise ValueError(f"labels: {labels!r} holds what the teacher said of every pixel; choose another name")
    coarse = _coarse_labels(base, keep) if keep.coarse is not None else None
    derived = KeepPlan(
        source=source,
        teacher=plan,
        keep=keep,
        coarse=coarse.fingerprint() if coarse is not None else None,
        images=plan.images,
    )
    return AutolabelWork(
        verb="autolabel",
        dataset=base.dataset,
        labels=labels,
        split=base.split,
        space=base.space,
        plan=derived.model_dump(mode="json"),
        shards=base.shards,
        worker=KeepWorker,
        worker_args={
            "source_uri": base.dataset.labels_uri(source),
            "coarse_uri": coarse.uri if coarse is not None else "",
            "coarse_paths": {file.key: file.path for file in coarse.files()} if coarse is not None else {},
            "space": base.space,
            "plan": derived,
        },
        source=source,
        teacher_work=teacher_work,
    )


def _coarse_labels(base: LabelWork, keep: KeepSpec) -> Table:
    """The coarse label set.

    Raises:
        ValueError: there is none, it has other classes, or shards in scope are missing.
    """
    assert keep.coarse is not None
    name = keep.coarse.labels
    table = base.dataset.labels(name)
    if not base.space.same_classes(table.label_space):
        raise ValueError(f"keep.coarse.labels: {name!r} has another class list than the teacher")
    missing = [str(shard.key) for shard in base.shards if shard.key not in table.committed()]
    if missing:
        raise ValueError(f"keep.coarse.labels: {name!r} lacks {len(missing)} shards ({', '.join(missing[:3])} …)")
    return table
