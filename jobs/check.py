"""`segray check`: scan a dataset before training on it."""

from __future__ import annotations

import json
from typing import Any

from jobs.cluster import ray_session
from jobs.dry_run import show_plan
from jobs.preflight import preflight
from jobs.specs import CheckJob
from jobs.tracking import check_tracking, track
from pipelines import storage
from pipelines.quality import check_dataset, label_table
from pipelines.tables import Dataset


def run(job: CheckJob, *, dry_run: bool = False) -> dict[str, Any]:
    """Scan the dataset, print what was found, write `job.json` and `result.json` into `output`.

    Returns:
        The report. `errors` is empty for a sound dataset; `failed` says whether it is not, and the command line then
        exits with 1.

    Raises:
        ValueError: no dataset, no such label set, or the output cannot be written.
    """
    dataset = Dataset.open(job.dataset)
    output = storage.normalise(job.output)
    if dry_run:
        check_tracking(job, dry_run=True)
        return show_plan(job, planned(job, dataset))
    storage.check_writable(output)
    check_tracking(job)
    with ray_session(job.compute):
        preflight(job)
        record = {"name": dataset.info.name, "source": dataset.root, "fingerprint": dataset.images.fingerprint()}
        with track(job, verb="check", output=output, dataset=record) as tracked:
            storage.write_text(storage.join(output, "job.json"), job.model_dump_json(indent=2))
            report = check_dataset(dataset.root, labels=job.labels, compute=job.compute)
            result = report.to_json() | {"verb": "check", "failed": bool(report.errors), "mlflow": tracked.address}
            storage.write_text(storage.join(output, "result.json"), json.dumps(result, indent=2))
            counts = {key: result[key] for key in ("images_in", "good", "rejected", "void_pixels")}
            tracked.log_metrics(counts | {"errors": len(report.errors), "warnings": len(report.warnings)})
            tracked.log_dict(result, "result.json")
    print(report.text())
    return result


def planned(job: CheckJob, dataset: Dataset) -> dict[str, Any]:
    """What would be scanned."""
    table = label_table(dataset, job.labels)
    counts = dataset.images.counts()
    return {
        "dataset": dataset.root,
        "labels": job.labels if table is not None else None,
        "images": counts.rows,
        "shards": len(dataset.images.files()),
    }
