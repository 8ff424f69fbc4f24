"""What `segray pssl` and `segray autolabel` share: write a label set on Ray, tell MLflow, keep the result."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from jobs.cluster import ray_session
from jobs.dry_run import show_plan
from jobs.preflight import preflight
from jobs.specs import AutolabelJob, PsslJob
from jobs.tracked_run import Run, metric_key
from jobs.tracking import check_tracking, track
from pipelines import storage
from pipelines.label_run import LabelResult, LabelWork

ResultT = TypeVar("ResultT", bound=LabelResult)


def run_label_job(
    job: PsslJob | AutolabelJob,
    work: LabelWork,
    label: Callable[..., ResultT],
    *,
    dry_run: bool,
    facts: Mapping[str, Any],
    metrics: Callable[[ResultT], Mapping[str, float]],
    lines: Callable[[ResultT], list[str]],
    tags: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Write or continue a planned label set; `job.json` and `result.json` go into the run's folder.

    Args:
        label: `run_pssl` or `run_autolabel`, whichever takes this work.
        facts: what plan and result say of this kind of work beside what all have.
        metrics: numbers for MLflow beside those that all have.
        lines: what is printed beside what all print.

    Returns:
        The result, or the plan of a dry run.

    Raises:
        ValueError: the label set follows another plan, the place cannot be written, too many rows have no label.
    """
    done = work.committed()
    if dry_run:
        check_tracking(job, dry_run=True)
        return show_plan(job, _planned(work, facts=facts, num_done=sum(shard.key in done for shard in work.shards)))
    storage.check_writable(work.run_uri)
    check_tracking(job)
    with ray_session(job.compute):
        preflight(job)
        with track(job, verb=work.verb, output=work.run_uri, dataset=_images_record(work)) as tracked:
            storage.write_text(storage.join(work.run_uri, "job.json"), job.model_dump_json(indent=2))
            tracked.set_tags(dict(tags or {}))
            result = label(
                work,
                compute=job.compute,
                max_rejected=job.max_rejected,
                on_progress=lambda numbers, step: tracked.log_metrics(numbers, step=step),
            )
            places = {"verb": work.verb, "dataset": work.dataset.root, "labels": work.labels, "split": work.split}
            table = {**places, **result.as_dict(), **facts, "plan": work.plan, "mlflow": tracked.address}
            storage.write_text(storage.join(work.run_uri, "result.json"), json.dumps(table, indent=2))
            _record(tracked, table, work, metrics=metrics(result))
    print("\n".join(_summary(result, work, lines=lines(result))))
    return table


def _planned(work: LabelWork, *, facts: Mapping[str, Any], num_done: int) -> dict[str, Any]:
    return {
        **facts,
        "dataset": work.dataset.root,
        "labels": work.labels,
        "output": work.run_uri,
        "images": work.num_images,
        "shards": len(work.shards),
        "shards_done": num_done,
        "classes": work.space.num_classes,
        "label_plan": work.plan,
    }


def _images_record(work: LabelWork) -> dict[str, str]:
    """Source and fingerprint as MLflow shows them."""
    name, root = work.dataset.info.name, work.dataset.root
    return {"name": name, "source": root, "fingerprint": work.plan["images"], "context": "images"}


def _record(tracked: Run, table: dict[str, Any], work: LabelWork, *, metrics: Mapping[str, float]) -> None:
    numbers = {key: table[key] for key in ("images_in", "labelled", "rejected", "seconds", "images_per_s")}
    numbers |= {metric_key("pixels", name): count for name, count in table["class_pixels"].items() if count}
    tracked.log_metrics({**numbers, **metrics})
    tracked.log_dict(table, "result.json")
    name, labels = f"{work.dataset.info.name}/{work.labels}", work.open()
    tracked.log_dataset({"name": name, "source": labels.uri, "fingerprint": table["digest"], "context": "output"})


def _summary(result: LabelResult, work: LabelWork, *, lines: list[str]) -> list[str]:
    return [
        f"labels {work.labels!r}: {result.labelled} of {result.images_in} images labelled, {result.rejected} rejected "
        f"({_effort(result)})",
        *(f"  {line}" for line in lines),
        *(f"  {count} x {reason}" for reason, count in result.reasons.items()),
        f"  SHA-256 over id and label: {result.digest}",
    ]


def _effort(result: LabelResult) -> str:
    """What this run did, and what earlier runs had done before it."""
    earlier = f"{result.resumed_shards} of {result.num_shards} shards committed by earlier runs"
    if result.resumed_shards == result.num_shards:
        return f"nothing left to do: {earlier}"
    speed = f"{result.seconds:.1f} s, {result.images_per_s:.2f} images/s, {result.actors} actors"
    return f"{speed}; {earlier}" if result.resumed_shards else speed
