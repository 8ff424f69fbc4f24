"""`segray ingest`: images and labels of any source -> a dataset."""

from __future__ import annotations

import json
from typing import Any

from jobs.cluster import ray_session
from jobs.dry_run import show_plan
from jobs.preflight import preflight
from jobs.specs import IngestJob
from jobs.tracked_run import Run, metric_key
from jobs.tracking import check_tracking, track
from pipelines import storage
from pipelines.ingest import IngestResult, ingest
from pipelines.ingest_plan import IngestPlan, plan_ingest
from pipelines.tables import Dataset


def run(job: IngestJob, *, dry_run: bool = False) -> dict[str, Any]:
    """Ingest a source, or continue where an earlier run of the same job stopped.

    Writes `job.json` and `result.json` into `<dataset>/runs/ingest-<labels>` and prints every rejected file.

    Returns:
        The result, or the plan of a dry run.

    Raises:
        ValueError: what is wrong with the job, before work starts; or, after everything is written, that more than
            `max_rejected` of the images were rejected.
    """
    plan = plan_ingest(
        job.source,
        dataset=job.dataset,
        labels=job.labels,
        shard_rows=job.shard_rows,
        shard_mb=job.shard_mb,
        seed=job.seed,
    )
    output = run_folder(plan)
    if dry_run:
        check_tracking(job, dry_run=True)
        return show_plan(job, plan.summary())
    storage.check_writable(output)
    check_tracking(job)
    print("\n".join(f"note: {note}" for note in plan.notes), end="\n" if plan.notes else "")
    with ray_session(job.compute):
        preflight(job)
        with track(job, verb="ingest", output=output, dataset=source_record(plan)) as tracked:
            storage.write_text(storage.join(output, "job.json"), job.model_dump_json(indent=2))
            result = ingest(plan, compute=job.compute)
            record(tracked, result, plan, output)
            print(result.text())
            check_share(result, job.max_rejected, output=output)
    return finished(result, tracked)


def run_folder(plan: IngestPlan) -> str:
    """Where job and result of an ingest are written."""
    return storage.join(plan.root, "runs", f"ingest-{plan.labels or 'images'}")


def source_record(plan: IngestPlan) -> dict[str, str]:
    """Source and fingerprint as MLflow shows them."""
    settings = plan.info.source["settings"]
    source = str(settings.get("images") or settings.get("root"))
    return {"name": plan.info.name, "source": source, "fingerprint": plan.info.source["listing"], "context": "source"}


def finished(result: IngestResult, tracked: Run) -> dict[str, Any]:
    """The result as it stands in `result.json`."""
    rate = result.images_in / result.seconds if result.seconds else 0.0
    figures = {"labelled": result.good if result.labels else 0, "images_per_s": round(rate, 2)}
    return result.to_json() | figures | {"verb": "ingest", "mlflow": tracked.address}


def record(tracked: Run, result: IngestResult, plan: IngestPlan, output: str) -> None:
    """Write `result.json` and tell MLflow."""
    table = finished(result, tracked)
    storage.write_text(storage.join(output, "result.json"), json.dumps(table, indent=2))
    numbers = {key: table[key] for key in ("images_in", "good", "rejected", "image_bytes", "shards", "seconds")}
    tracked.log_metrics(numbers | {metric_key("pixels", name): count for name, count in result.class_pixels.items()})
    tracked.log_dict(table, "result.json")
    digest = Dataset.open(plan.root).images.fingerprint()
    tracked.log_dataset({"name": plan.info.name, "source": plan.root, "fingerprint": digest, "context": "output"})


def check_share(result: IngestResult, limit: float, *, output: str) -> None:
    """Compare the share of rejected images with the limit.

    Raises:
        ValueError: it is larger.
    """
    if result.rejected_share > limit:
        most = next(iter(result.reasons))
        raise ValueError(
            f"{result.rejected} of {result.images_in} images were rejected, more than max_rejected = {limit:g} allows "
            f"(most of them: {most}); see {storage.join(output, 'result.json')}"
        )
