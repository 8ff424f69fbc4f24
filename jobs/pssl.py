"""`segray pssl`: images with classes -> a pseudo-label set beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from jobs.cluster import ray_session
from jobs.preflight import preflight
from jobs.specs import PsslJob
from jobs.tracked_run import Run, metric_key
from jobs.tracking import check_tracking, track
from pipelines import storage
from pipelines.pssl import plan_pssl
from pipelines.pssl_import import plan_import
from pipelines.pssl_run import LabelWork, PsslResult, run_work


def run(job: PsslJob, *, dry_run: bool = False) -> dict[str, Any]:
    """Make or import a pseudo-label set, or continue where an earlier run of the same job stopped.

    Writes `job.json` and `result.json` into `<dataset>/runs/pssl-<labels>`.

    Returns:
        The result, or the plan of a dry run.

    Raises:
        ValueError: what is wrong with the job, before work starts; or that too many rows have no label.
    """
    work = plan_work(job)
    check_tracking(job, work.run_uri, dry_run=dry_run)
    if dry_run:
        return show_plan(job, work)
    storage.check_writable(work.run_uri)
    with ray_session(job.compute):
        preflight(job)
        with track(job, verb="pssl", output=work.run_uri, dataset=source_record(work)) as tracked:
            storage.write_text(storage.join(work.run_uri, "job.json"), job.model_dump_json(indent=2))
            result = run_work(
                work,
                compute=job.compute,
                label="pssl",
                max_rejected=job.max_rejected,
                on_progress=lambda metrics, step: tracked.log_metrics(metrics, step=step),
            )
            table = finished(result, work, tracked)
            record(tracked, table, work)
    print(summary(result, work))
    return table


def plan_work(job: PsslJob) -> LabelWork:
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
    )


def show_plan(job: PsslJob, work: LabelWork) -> dict[str, Any]:
    """Print the resolved job and what it would do."""
    done = work.committed()
    plan = {
        "dataset": work.dataset.root,
        "labels": work.labels,
        "output": work.run_uri,
        "images": work.num_images,
        "shards": len(work.shards),
        "shards_done": sum(shard.key in done for shard in work.shards),
        "classes": work.space.num_classes,
        "classifiers": list(work.titles),
        "label_plan": work.plan,
    }
    result = {"job": job.model_dump(mode="json"), "plan": plan}
    print(json.dumps(result, indent=2))
    return result


def source_record(work: LabelWork) -> dict[str, str]:
    """Source and fingerprint as MLflow shows them."""
    name, root = work.dataset.info.name, work.dataset.root
    return {"name": name, "source": root, "fingerprint": work.plan["images"], "context": "images"}


def finished(result: PsslResult, work: LabelWork, tracked: Run) -> dict[str, Any]:
    """The result as it stands in `result.json`."""
    places = {"verb": "pssl", "dataset": work.dataset.root, "labels": work.labels, "split": work.split}
    return {**places, **result.as_dict(), "plan": work.plan, "mlflow": tracked.address}


def record(tracked: Run, table: Mapping[str, Any], work: LabelWork) -> None:
    """Write `result.json` and tell MLflow."""
    storage.write_text(storage.join(work.run_uri, "result.json"), json.dumps(table, indent=2))
    numbers = {key: table[key] for key in ("images_in", "labelled", "rejected", "seconds", "images_per_s")}
    numbers |= {metric_key("pixels", name): count for name, count in table["class_pixels"].items() if count}
    numbers |= {metric_key("skipped_maps", name): count for name, count in table["skipped_maps"].items()}
    tracked.log_metrics(numbers)
    tracked.log_dict(dict(table), "result.json")
    name = f"{work.dataset.info.name}/{work.labels}"
    labels = work.open()
    tracked.log_dataset({"name": name, "source": labels.uri, "fingerprint": table["digest"], "context": "output"})


def summary(result: PsslResult, work: LabelWork) -> str:
    """What was done, in a few lines."""
    lines = [
        f"labels {work.labels!r}: {result.labelled} of {result.images_in} images labelled, {result.rejected} rejected "
        f"({result.seconds:.1f} s, {result.images_per_s:.2f} images/s, {result.actors} actors)"
    ]
    lines += [f"  {count} x {reason}" for reason, count in result.reasons.items()]
    skipped = {name: count for name, count in result.skipped_maps.items() if count}
    lines += [f"  {count} maps without signal from {name}" for name, count in skipped.items()]
    return "\n".join([*lines, f"  SHA-256 over id and label: {result.digest}"])
