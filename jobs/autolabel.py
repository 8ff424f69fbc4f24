"""`segray autolabel`: a teacher checkpoint and images -> a label set with confidence."""

from __future__ import annotations

from typing import Any

from jobs.label_job import run_label_job
from jobs.specs import AutolabelJob
from jobs.tracked_run import metric_key
from pipelines.autolabel import AutolabelResult, plan_autolabel, run_autolabel


def run(job: AutolabelJob, *, dry_run: bool = False) -> dict[str, Any]:
    """Write a teacher's label set, or continue where an earlier run of the same job stopped.

    Writes `job.json` and `result.json` into `<dataset>/runs/autolabel-<labels>`.

    Returns:
        The result, or the plan of a dry run.

    Raises:
        ValueError: what is wrong with the job, before work starts; or that too many rows have no label.
    """
    work = plan_autolabel(
        job.checkpoint,
        dataset=job.dataset,
        labels=job.labels,
        split=job.split,
        threshold=job.threshold,
        predictor=job.predictor,
        compute=job.compute,
    )
    teacher = work.teacher
    return run_label_job(
        job,
        work,
        run_autolabel,
        dry_run=dry_run,
        facts={
            "checkpoint": teacher.record,
            "parameters": teacher.info.get("params"),
            "threshold": job.threshold,
        },
        metrics=metrics,
        lines=lambda result: lines(result, threshold=job.threshold),
        tags={"checkpoint": teacher.uri, "architecture": teacher.arch},
    )


def metrics(result: AutolabelResult) -> dict[str, float]:
    """What MLflow is told beside the counts of every label set."""
    return {"kept": result.kept} | {metric_key("kept", name): share for name, share in result.kept_share.items()}


def lines(result: AutolabelResult, *, threshold: float) -> list[str]:
    """What was kept, in a few lines."""
    first = f"{result.kept:.1%} of the pixels reach confidence {threshold:g}, the others are void"
    return [first, *(f"{share:>6.1%} kept of {name}" for name, share in result.kept_share.items())]
