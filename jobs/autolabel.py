"""`segray autolabel`: a teacher checkpoint and images -> a label set; or another one from what a teacher said."""

from __future__ import annotations

from typing import Any

from jobs.label_job import run_label_job
from jobs.specs import AutolabelJob
from jobs.tracked_run import metric_key
from pipelines.autolabel import AutolabelResult, run_autolabel
from pipelines.autolabel_plan import AutolabelWork, plan_autolabel, plan_derived


def run(job: AutolabelJob, *, dry_run: bool = False) -> dict[str, Any]:
    """Write a label set, or continue where an earlier run of the same job stopped.

    Writes `job.json` and `result.json` into `<dataset>/runs/autolabel-<labels>`.

    Returns:
        The result, or the plan of a dry run.

    Raises:
        ValueError: what is wrong with the job, before work starts; or that too many rows have no label.
    """
    work = plan_work(job)
    return run_label_job(
        job,
        work,
        run_autolabel,
        dry_run=dry_run,
        facts=facts(work) | {"threshold": job.keep.threshold},
        metrics=metrics,
        lines=lambda result: lines(result, threshold=job.keep.threshold),
        tags=tags(work),
    )


def plan_work(job: AutolabelJob) -> AutolabelWork:
    """Everything that can be checked before work starts.

    Raises:
        ValueError: checkpoint, dataset, split, label sets or classes do not fit.
    """
    if job.derive_from is not None:
        return plan_derived(job.derive_from, dataset=job.dataset, labels=job.labels, split=job.split, keep=job.keep)
    assert job.checkpoint is not None
    return plan_autolabel(
        job.checkpoint,
        dataset=job.dataset,
        labels=job.labels,
        split=job.split,
        keep=job.keep,
        predictor=job.predictor,
        compute=job.compute,
    )


def facts(work: AutolabelWork) -> dict[str, Any]:
    """What plan and result say of the teacher; where none runs, what is known of the one that did."""
    source = {"teacher_labels": work.source}
    if work.teacher_work is None:
        return source
    teacher, done = work.teacher_work.teacher, work.teacher_work.committed()
    left = sum(shard.key not in done for shard in work.teacher_work.shards)
    return source | {
        "checkpoint": teacher.record,
        "parameters": teacher.info.get("params"),
        "teacher_shards_to_label": left,
    }


def tags(work: AutolabelWork) -> dict[str, str]:
    """What the MLflow run is found by."""
    if work.teacher_work is None:
        return {"derived_from": work.source}
    teacher = work.teacher_work.teacher
    return {"checkpoint": teacher.uri, "architecture": teacher.arch}


def metrics(result: AutolabelResult) -> dict[str, float]:
    """What MLflow is told beside the counts of every label set."""
    shares = {metric_key("kept", name): share for name, share in result.kept_share.items()}
    pixels = {metric_key("kept_pixels", name): float(count) for name, count in result.kept_pixels.items() if count}
    cut = {metric_key("cut", cause): share for cause, share in result.cut.items()}
    return {"kept": result.kept, **shares, **pixels, **cut}


def lines(result: AutolabelResult, *, threshold: float) -> list[str]:
    """What was kept, in a few lines."""
    causes = ", ".join(f"{cause} {share:.1%}" for cause, share in result.cut.items())
    return [
        _origin(result),
        f"{result.kept:.1%} of the pixels are kept at threshold {threshold:g}; void by {causes or 'nothing'}",
        *(
            f"{share:>6.1%} kept of {name} ({result.kept_pixels.get(name, 0):,} pixels)"
            for name, share in result.kept_share.items()
        ),
        *(f"{count:,} pixels of {name} from coarse labels" for name, count in result.coarse_pixels.items()),
    ]


def _origin(result: AutolabelResult) -> str:
    name, shards = result.teacher["labels"], result.teacher["shards_labelled"]
    ran = f"the teacher labelled {shards} shards of it" if shards else "no teacher ran"
    return f"from the teacher's label set {name!r}; {ran}"
