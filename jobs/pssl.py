"""`segray pssl`: images with classes -> a pseudo-label set beside them."""

from __future__ import annotations

from typing import Any

from jobs.label_job import run_label_job
from jobs.specs import PsslJob
from jobs.tracked_run import metric_key
from pipelines.pssl import PsslResult, PsslWork, plan_pssl, run_pssl
from pipelines.pssl_import import plan_import


def run(job: PsslJob, *, dry_run: bool = False) -> dict[str, Any]:
    """Make or import a pseudo-label set, or continue where an earlier run of the same job stopped.

    Writes `job.json` and `result.json` into `<dataset>/runs/pssl-<labels>`.

    Returns:
        The result, or the plan of a dry run.

    Raises:
        ValueError: what is wrong with the job, before work starts; or that too many rows have no label.
    """
    work = plan_work(job)
    return run_label_job(
        job,
        work,
        run_pssl,
        dry_run=dry_run,
        facts={"classifiers": list(work.titles)},
        metrics=metrics,
        lines=lines,
    )


def plan_work(job: PsslJob) -> PsslWork:
    """Everything that can be checked before work starts.

    Raises:
        ValueError: dataset, split, weights, classes or the folder of released labels do not fit.
    """
    if job.import_from is not None:
        return plan_import(
            job.dataset,
            folder=job.import_from,
            labels=job.labels,
            split=job.split,
            minus_one=job.import_minus_one,
        )
    return plan_pssl(
        job.dataset,
        labels=job.labels,
        pssl=job.pssl,
        ensemble=job.ensemble,
        split=job.split,
        compute=job.compute,
        keep_deciles=job.keep_deciles,
    )


def metrics(result: PsslResult) -> dict[str, float]:
    """What MLflow is told beside the counts of every label set."""
    return {metric_key("skipped_maps", name): count for name, count in result.skipped_maps.items()}


def lines(result: PsslResult) -> list[str]:
    """Explanations that said nothing."""
    return [f"{count} maps without signal from {name}" for name, count in result.skipped_maps.items() if count]
