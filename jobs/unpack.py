"""`segray unpack`: a label set -> one PNG, .npz or JPEG XL file per image."""

from __future__ import annotations

import json
from typing import Any

from jobs.cluster import ray_session
from jobs.dry_run import show_plan
from jobs.preflight import preflight
from jobs.specs import UnpackJob
from jobs.tracking import check_tracking, track
from pipelines import storage
from pipelines.unpack import Unpacked, UnpackWork, plan_unpack, run_unpack


def run(job: UnpackJob, *, dry_run: bool = False) -> dict[str, Any]:
    """Unpack; write the files, `classes.json`, `job.json` and `result.json`.

    Returns:
        The result (`failed` is true where no image at all has a file), or the plan of a dry run.

    Raises:
        ValueError: what is wrong with the job, before work starts; or two images of one name.
        ShardError: a worker failed.
    """
    work = plan_unpack(
        job.dataset, labels=job.labels, output=job.output, format=job.format, content=job.content, split=job.split
    )
    if dry_run:
        check_tracking(job, dry_run=True)
        return show_plan(job, planned(work))
    storage.check_writable(work.output)
    check_tracking(job)
    with ray_session(job.compute):
        preflight(job)
        with track(job, verb="unpack", output=work.output, dataset=dataset_record(work, job.labels)) as tracked:
            result = run_unpack(work, compute=job.compute)
            table = result_table(result, work) | {"labels": job.labels, "mlflow": tracked.address}
            storage.write_text(storage.join(work.output, "job.json"), job.model_dump_json(indent=2))
            storage.write_text(storage.join(work.output, "result.json"), json.dumps(table, indent=2))
            tracked.log_metrics({key: table[key] for key in ("images_in", "written", "rejected", "images_per_s")})
            tracked.log_dict(table, "result.json")
    print(summary(result, work))
    return table


def dataset_record(work: UnpackWork, labels: str) -> dict[str, str]:
    """Source and fingerprint as MLflow shows them."""
    name = f"{work.dataset.info.name}/{labels}"
    return {"name": name, "source": work.table.uri, "fingerprint": work.table.fingerprint(), "context": "input"}


def planned(work: UnpackWork) -> dict[str, Any]:
    """What would be unpacked."""
    return {
        "labels": work.table.uri,
        "images": work.num_images,
        "shards": len(work.shards),
        "codec": work.table.info["codecs"][work.content],
        "format": work.format,
        "writes": work.place,
    }


def result_table(result: Unpacked, work: UnpackWork) -> dict[str, Any]:
    """What `result.json` holds."""
    return {
        "verb": "unpack",
        **result.as_dict(),
        "failed": result.written + result.existing == 0,
        "dataset": work.dataset.root,
        "format": work.format,
        "content": work.content,
        "writes": work.place,
    }


def summary(result: Unpacked, work: UnpackWork) -> str:
    """What was done, in a few lines."""
    lines = [
        f"{result.written} of {result.images_in} images unpacked into {work.place} ({result.seconds:.1f} s, "
        f"{result.num_bytes / 1e6:.1f} MB), {result.existing} were there, {len(result.failures)} have no file"
    ]
    lines += [f"  {count} x {reason}" for reason, count in result.as_dict()["reasons"].items()]
    return "\n".join(lines)
