"""`segray predict`: a checkpoint and any images -> label maps."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from jobs.cluster import ray_session
from jobs.dry_run import show_plan
from jobs.preflight import preflight
from jobs.specs import PredictJob
from jobs.tracked_run import metric_key
from jobs.tracking import check_tracking, track
from pipelines import storage
from pipelines.predict import PredictResult, PredictWork, plan_predict, run_predict

MAX_LINES = 20  # failed images printed; result.json lists all


def run(job: PredictJob, *, dry_run: bool = False) -> dict[str, Any]:
    """Predict; write the label maps, `job.json`, `result.json` and `pictures/`.

    Returns:
        The result (`failed` is true where no image at all could be predicted), or the plan of a dry run.

    Raises:
        ValueError: what is wrong with the job, before work starts.
        ShardError: a worker failed.
    """
    work = plan_predict(
        job.checkpoint,
        images=job.images,
        output=job.output,
        split=job.split,
        format=job.format,
        predictor=job.predictor,
        compute=job.compute,
    )
    if dry_run:
        check_tracking(job, dry_run=True)
        return show_plan(job, planned(work))
    storage.check_writable(work.output)
    check_tracking(job)
    with ray_session(job.compute):
        preflight(job)
        with track(job, verb="predict", output=work.output, dataset=dataset_record(work)) as tracked:
            storage.write_text(storage.join(work.output, "job.json"), job.model_dump_json(indent=2))
            tracked.set_tags({"checkpoint": work.checkpoint.uri, "architecture": work.checkpoint.arch})
            result = run_predict(work, compute=job.compute)
            table = result_table(result, work) | {"images": job.images, "mlflow": tracked.address}
            write_result(result, table, output=work.output)
            tracked.log_metrics({key: table[key] for key in ("images_in", "predicted", "rejected", "images_per_s")})
            tracked.log_metrics({metric_key("pixels", name): n for name, n in result.class_pixels.items() if n})
            tracked.log_dict(table, "result.json")
            for picture in result.pictures:
                tracked.log_image(f"pictures/{picture.name}", picture.strip())
    print(summary(result, work))
    return table


def dataset_record(work: PredictWork) -> dict[str, str]:
    """Source and fingerprint as MLflow shows them."""
    source = str(work.plan["source"])
    name = source.rstrip("/").rpartition("/")[2]
    return {"name": name, "source": source, "fingerprint": work.fingerprint, "context": "input"}


def planned(work: PredictWork) -> dict[str, Any]:
    """What would be predicted."""
    return {
        "checkpoint": work.checkpoint.record,
        "parameters": work.checkpoint.info.get("params"),
        "images": work.num_images,
        "batches": len(work.batches),
        "writes": work.place,
    }


def result_table(result: PredictResult, work: PredictWork) -> dict[str, Any]:
    """What `result.json` holds."""
    return {
        "verb": "predict",
        **result.as_dict(),
        "failed": result.predicted + result.existing == 0,
        "reasons": reasons(result),
        "format": work.format,
        "writes": work.place,
        "checkpoint": work.checkpoint.record,
        "label_space": work.checkpoint.label_space.model_dump(mode="json"),
    }


def reasons(result: PredictResult) -> dict[str, int]:
    """How many images failed for each reason, the most frequent first."""
    return dict(Counter(result.failures.values()).most_common())


def write_result(result: PredictResult, table: Mapping[str, Any], *, output: str) -> None:
    """Write the pictures of the report and `result.json`."""
    for picture in result.pictures:
        for name, data in picture.files().items():
            storage.write_bytes(storage.join(output, "pictures", name), data)
    storage.write_text(storage.join(output, "result.json"), json.dumps(table, indent=2))


def summary(result: PredictResult, work: PredictWork) -> str:
    """What was done, in a few lines, with the images that failed."""
    lines = [
        f"{result.predicted} of {result.images_in} images predicted into {work.place} ({result.seconds:.1f} s), "
        f"{result.existing} were there, {len(result.failures)} could not be read"
    ]
    failed = sorted(result.failures.items())
    lines += [f"  {image_id}: {reason}" for image_id, reason in failed[:MAX_LINES]]
    if len(failed) > MAX_LINES:
        lines.append(f"  and {len(failed) - MAX_LINES} more, all in result.json")
    return "\n".join(lines)
