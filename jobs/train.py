"""`segray train`: datasets and a recipe -> a checkpoint."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import ray

from jobs.cluster import ray_session
from jobs.dry_run import show_plan
from jobs.evaluate import log_evaluation, result_table, write_evaluation
from jobs.preflight import preflight
from jobs.specs import TrainJob
from jobs.tracked_run import Run, now_ms
from jobs.tracking import check_tracking, deliver, track
from jobs.training.groups import read_groups
from jobs.training.holder import hold_run, require_free
from jobs.training.launch import launch
from jobs.training.points import read_points
from jobs.training.publish import BEST_FOLDER, MODEL_FOLDER
from jobs.training.resources import Allocation, nodes_of
from jobs.training.resume import newest_facts
from jobs.training.sampling_table import sampling_table
from jobs.training.validator import FIGURES, Validator
from jobs.training.work import (
    TrainWork,
    check_job,
    dataset_records,
    find_first_weights,
    finished_result,
    look_at_labels,
    make_plan,
    parts_table,
    plan_table,
)
from pipelines import storage
from pipelines.batches import STORE_BYTES
from pipelines.evaluation import plan_evaluation, run_evaluation

EVALUATION_KEYS = (
    *("miou", "fwiou", "pixel_accuracy", "mean_accuracy", "classes", "confusion", "pictures", "worst"),
    *("evaluated", "skipped", "reasons", "label_space"),
)
NUM_PICTURES = 8


def run(job: TrainJob, *, dry_run: bool = False) -> dict[str, Any]:
    """Train, or go on where an earlier run of that name stopped; evaluate on `validate_on`.

    Writes into `<output>/<name>`: `model/`, `checkpoints/`, `metrics.jsonl`, `groups.json`, `drivers/`, `job.json`,
    `result.json`, and with `validate_every` also `validation.json`, `validation/` and perhaps `best/`.

    Returns:
        The result, or the plan of a dry run.

    Raises:
        ValueError: what is wrong with the job, before work starts, or with its data; another driver trains the run.
        RuntimeError: the workers died more often than `max_failures` allows.
    """
    work = check_job(job)
    finished = finished_result(work)
    if finished is not None:
        print(f"{work.run}: finished, {finished['steps']} steps; nothing to do (another name starts another run)")
        if not dry_run:  # the server may have been away when the training ended, or its driver killed
            deliver(job, verb="train", output=work.run, curve=read_points(work.run))
        return finished
    find_first_weights(work, fetch=not dry_run)
    if not dry_run:
        storage.check_writable(work.run)
        require_free(work.run)
    check_tracking(job, dry_run=dry_run, output=work.run)
    if dry_run:
        return show_plan(job, plan_table(work))
    with ray_session(job.compute, pixels_bytes=job.data_workers * STORE_BYTES):
        preflight(job)
        allocation = work.allocate(nodes_of(ray.nodes()))
        with (
            hold_run(work.run, say=say),
            track(job, verb="train", output=work.run, dataset=dataset_records(work)) as tracked,
        ):
            storage.write_text(storage.join(work.run, "job.json"), job.model_dump_json(indent=2))
            return train(work, allocation, tracked)


def say(text: str) -> None:
    """Print a line at once."""
    print(text, flush=True)


def train(work: TrainWork, allocation: Allocation, tracked: Run) -> dict[str, Any]:
    """Train and evaluate on a running Ray; write `result.json` last."""
    work, recipe = look_at_labels(work), work.job.recipe
    print(f"{work.run}: {recipe.steps} steps of {recipe.global_batch} images, {allocation.text()}", flush=True)
    tracked.set_tags({"architecture": recipe.model.arch})
    plan = make_plan(work, allocation, tracked)
    validator = _validator(work, tracked)
    try:
        with validator or contextlib.nullcontext():
            figures = launch(
                plan,
                allocation,
                name=work.job.name,
                max_failures=work.job.max_failures,
                look_every_s=work.job.look_every_s,
            )
            if validator is not None:
                validator.finish(timeout_s=work.job.validate_timeout_s)
    finally:  # of a failed training too
        tracked.log_curve(read_points(work.run))
    table = train_table(work, figures, tracked)
    tracked.log_metrics({"seconds": table["seconds"], "images_per_s": table["images_per_s"]}, step=table["steps"])
    tracked.set_tags({"checkpoint": table["checkpoint"]})
    table |= evaluate(work, tracked, table)
    if validator is not None:
        table |= validations_table(work, validator, table)
    tracked.log_dict(table, "result.json")
    storage.write_text(storage.join(work.run, "result.json"), json.dumps(table, indent=2))  # from here on it is done
    print(summary(table))
    return table


def _validator(work: TrainWork, tracked: Run) -> Validator | None:
    """Who validates beside the training, where the job asks for it."""
    job = work.job
    if job.validate_every is None or job.validate_on is None:
        return None
    facts = newest_facts(work.run, log=lambda _: None)
    return Validator(
        work.run,
        data=job.validate_on,
        metric=job.validate_metric,
        keep_best=job.keep_best,
        compute=job.compute,
        tracked=tracked,
        saved=[] if facts is None else facts["validations"],
        say=say,
    )


def validations_table(work: TrainWork, validator: Validator, table: dict[str, Any]) -> dict[str, Any]:
    """What `result.json` holds of the validations, of which the one after the last step is the last."""
    last = {"step": table["steps"], "time_ms": now_ms()}
    validator.add(last | {key: table[key] for key in FIGURES}, source=MODEL_FOLDER)
    best = validator.best_kept()
    found: dict[str, Any] = {"validations": validator.rows}
    if work.job.keep_best and best is not None:
        found["best"] = {**best, "checkpoint": storage.join(work.run, BEST_FOLDER)}
    return found


def train_table(work: TrainWork, figures: dict[str, Any], tracked: Run) -> dict[str, Any]:
    """What `result.json` holds of the training."""
    curve = [[point["step"], point["train/loss"]] for point in read_points(work.run) if "train/loss" in point]
    return {
        "verb": "train",
        **figures,
        "checkpoint": storage.join(work.run, MODEL_FOLDER),
        "groups": read_groups(work.run),
        "samples": work.index.num_samples,
        "data": parts_table(work),
        "sampling": sampling_table(work.job.recipe, work.index),
        "loss": curve[-1][1],
        "curve": curve,
        "identity": work.identity,
        "mlflow": tracked.address,
    }


def evaluate(work: TrainWork, tracked: Run, table: dict[str, Any]) -> dict[str, Any]:
    """Evaluate the trained model on `validate_on`, where the job names it; the figures for `result.json`."""
    data = work.job.validate_on
    if data is None:
        return {}
    planned = plan_evaluation(
        table["checkpoint"], dataset=data.dataset, labels=data.labels, split=data.split, predictor=data.predictor
    )
    result = run_evaluation(planned, compute=work.job.compute, num_pictures=NUM_PICTURES, num_worst=NUM_PICTURES)
    scores = result_table(result, planned)
    write_evaluation(result, output=work.run)
    log_evaluation(tracked, result, step=table["steps"])
    return {key: scores[key] for key in EVALUATION_KEYS if key in scores}


def summary(table: dict[str, Any]) -> str:
    """What was done, in a few lines."""
    lines = [
        f"trained {table['steps']} steps in {table['seconds']:.1f} s ({table['images_per_s']:.1f} images/s, "
        f"{table['workers']} workers), loss {table['loss']:.4f}: {table['checkpoint']}"
    ]
    if table["reason"]:
        lines.append(f"  ended early: {table['reason']}")
    if table["transfer"]:
        lines.append(f"  first weights: {table['transfer']}")
    if "miou" in table:
        lines.append(f"  mIoU {table['miou']:.4f}, pixel accuracy {table['pixel_accuracy']:.4f}")
    return "\n".join(lines)
