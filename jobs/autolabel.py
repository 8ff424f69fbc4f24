"""`segray autolabel`: a teacher checkpoint and images -> a label set with confidence."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from jobs.cluster import ray_session
from jobs.fits import fits
from jobs.preflight import preflight
from jobs.specs import AutolabelJob
from jobs.tracked_run import Run, metric_key
from jobs.tracking import check_tracking, track
from pipelines import storage
from pipelines.autolabel import AutolabelResult, TeacherWork, plan_autolabel, run_autolabel


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
    done = work.committed()
    check_tracking(job, work.run_uri, dry_run=dry_run)
    if dry_run:
        return show_plan(job, work, num_done=sum(shard.key in done for shard in work.shards))
    with ray_session(job.compute):
        preflight(job)
        with track(job, verb="autolabel", output=work.run_uri, dataset=source_record(work)) as tracked:
            storage.write_text(storage.join(work.run_uri, "job.json"), job.model_dump_json(indent=2))
            tracked.set_tags({"checkpoint": work.teacher.uri, "architecture": work.teacher.arch})
            result = run_autolabel(
                work,
                compute=job.compute,
                max_rejected=job.max_rejected,
                on_progress=lambda metrics, step: tracked.log_metrics(metrics, step=step),
            )
            table = finished(result, work, tracked)
            record(tracked, table, work)
    print(summary(result, work))
    return table


def show_plan(job: AutolabelJob, work: TeacherWork, *, num_done: int) -> dict[str, Any]:
    """Print the resolved job and what it would do."""
    plan = {
        "teacher": work.teacher.record,
        "parameters": work.teacher.info.get("params"),
        "dataset": work.dataset.root,
        "labels": work.labels,
        "output": work.run_uri,
        "images": work.num_images,
        "shards": len(work.shards),
        "shards_done": num_done,
        "classes": work.space.num_classes,
        "label_plan": work.plan,
        "compute": fits(job.compute),
    }
    table = {"job": job.model_dump(mode="json"), "plan": plan}
    print(json.dumps(table, indent=2))
    return table


def source_record(work: TeacherWork) -> dict[str, str]:
    """Source and fingerprint as MLflow shows them."""
    name, root = work.dataset.info.name, work.dataset.root
    return {"name": name, "source": root, "fingerprint": work.plan["images"], "context": "images"}


def finished(result: AutolabelResult, work: TeacherWork, tracked: Run) -> dict[str, Any]:
    """The result as it stands in `result.json`."""
    places = {"verb": "autolabel", "dataset": work.dataset.root, "labels": work.labels, "split": work.split}
    teacher = {"checkpoint": work.teacher.record, "threshold": work.plan["threshold"], "plan": work.plan}
    return {**places, **result.as_dict(), **teacher, "mlflow": tracked.address}


def record(tracked: Run, table: Mapping[str, Any], work: TeacherWork) -> None:
    """Write `result.json` and tell MLflow."""
    storage.write_text(storage.join(work.run_uri, "result.json"), json.dumps(table, indent=2))
    numbers = {key: table[key] for key in ("images_in", "labelled", "rejected", "kept", "seconds", "images_per_s")}
    numbers |= {metric_key("kept", name): share for name, share in table["kept_share"].items()}
    numbers |= {metric_key("pixels", name): count for name, count in table["class_pixels"].items() if count}
    tracked.log_metrics(numbers)
    tracked.log_dict(dict(table), "result.json")
    name, labels = f"{work.dataset.info.name}/{work.labels}", work.open()
    tracked.log_dataset({"name": name, "source": labels.uri, "fingerprint": table["digest"], "context": "output"})


def summary(result: AutolabelResult, work: TeacherWork) -> str:
    """What was done, in a few lines."""
    lines = [
        f"labels {work.labels!r}: {result.labelled} of {result.images_in} images labelled, {result.rejected} rejected "
        f"({result.seconds:.1f} s, {result.images_per_s:.2f} images/s, {result.actors} actors)",
        f"  {result.kept:.1%} of the pixels reach confidence {work.plan['threshold']:g}, the others are void",
    ]
    lines += [f"  {share:>6.1%} kept of {name}" for name, share in result.kept_share.items()]
    lines += [f"  {count} x {reason}" for reason, count in result.reasons.items()]
    return "\n".join([*lines, f"  SHA-256 over id and label: {result.digest}"])
