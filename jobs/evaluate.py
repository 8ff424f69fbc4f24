"""`segray evaluate`: a checkpoint and a labelled split -> metrics, pictures and a report."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jobs.cluster import ray_session
from jobs.dry_run import show_plan
from jobs.preflight import preflight
from jobs.specs import EvaluateJob
from jobs.tracked_run import Run, metric_key
from jobs.tracking import check_tracking, track
from pipelines import storage
from pipelines.evaluation import EvaluationResult, EvaluationWork, plan_evaluation, run_evaluation

MAX_CLASSES_IN_JSON = 256  # the confusion matrix of more classes is in confusion.csv alone


def run(job: EvaluateJob, *, dry_run: bool = False) -> dict[str, Any]:
    """Evaluate; write `job.json`, `result.json`, `per_class.csv`, `per_image.csv`, `confusion.csv` and `pictures/`.

    Returns:
        The result, or the plan of a dry run.

    Raises:
        ValueError: what is wrong with the job, before work starts.
        ShardError: a worker failed.
    """
    work = plan_evaluation(
        job.checkpoint, dataset=job.dataset, labels=job.labels, split=job.split, predictor=job.predictor
    )
    output = storage.normalise(job.output)
    if dry_run:
        check_tracking(job, dry_run=True)
        return show_plan(job, planned(work))
    storage.check_writable(output)
    check_tracking(job)
    with ray_session(job.compute):
        preflight(job)
        with track(job, verb="evaluate", output=output, dataset=dataset_record(work)) as tracked:
            tracked.set_tags({"checkpoint": work.checkpoint.uri, "architecture": work.checkpoint.arch})
            result = run_evaluation(
                work,
                metrics=job.metrics,
                compute=job.compute,
                num_pictures=job.num_pictures,
                num_worst=job.num_worst,
            )
            table = result_table(result, work) | {"mlflow": tracked.address}
            forget_result(output)
            storage.write_text(storage.join(output, "job.json"), job.model_dump_json(indent=2))
            write_evaluation(result, output=output)
            log_evaluation(tracked, result, step=trained_steps(work))
            tracked.log_dict(table, "result.json")
            storage.write_text(storage.join(output, "result.json"), json.dumps(table, indent=2))
    print(summary(table))
    return table


def planned(work: EvaluationWork) -> dict[str, Any]:
    """What would be evaluated."""
    return {
        "checkpoint": work.checkpoint.record,
        "parameters": work.checkpoint.info.get("params"),
        "images": work.num_images,
        "shards": len(work.shards),
        "classes": work.space.num_classes,
    }


def dataset_record(work: EvaluationWork) -> dict[str, str]:
    """Source and fingerprint as MLflow shows them."""
    name = f"{work.dataset.rstrip('/').rpartition('/')[2]}/{work.split}"
    return {"name": name, "source": work.dataset, "fingerprint": work.fingerprint, "context": "test"}


def trained_steps(work: EvaluationWork) -> int:
    """Steps after which the checkpoint was taken; 0 where it does not say."""
    return int(work.checkpoint.info.get("provenance", {}).get("step", 0))


def result_table(result: EvaluationResult, work: EvaluationWork) -> dict[str, Any]:
    """What `result.json` holds."""
    table = {
        "verb": "evaluate",
        **result.as_dict(),
        "checkpoint": work.checkpoint.record,
        "dataset": {"uri": work.dataset, "labels": work.labels, "split": work.split, "fingerprint": work.fingerprint},
        "label_space": work.space.model_dump(mode="json"),
        "worst": [{"id": p.id, "miou": p.miou} for p in result.pictures if p.name.startswith("worst")],
    }
    if work.space.num_classes <= MAX_CLASSES_IN_JSON:
        table["confusion"] = result.confusion.tolist()
    return table


def forget_result(output: str) -> None:
    """Remove what says that an earlier evaluation in this folder was done, and its pictures: no mixture ever counts."""
    for name in ("result.json", "pictures"):
        storage.delete(storage.join(output, name))


def write_evaluation(result: EvaluationResult, *, output: str) -> None:
    """Write all files of an evaluation but `result.json`, which says that all is done."""
    for picture in result.pictures:
        for name, data in picture.files().items():
            storage.write_bytes(storage.join(output, "pictures", name), data)
    names = [row["class"] for row in result.classes]
    classes = [row.values() for row in result.classes]
    images = [(score.id, *score.figures.values()) for score in result.scores]
    confusion = [(name, *row) for name, row in zip(names, result.confusion.tolist(), strict=True)]
    _write_csv(storage.join(output, "per_class.csv"), list(result.classes[0]), classes)
    _write_csv(storage.join(output, "per_image.csv"), ["id", *result.figures], images)
    _write_csv(storage.join(output, "confusion.csv"), ["truth \\ prediction", *names], confusion)


def log_evaluation(tracked: Run, result: EvaluationResult, *, step: int = 0) -> None:
    """Metrics, the per-class table and the fixed pictures of an evaluation in MLflow."""
    metrics = {metric_key("val", name): value for name, value in result.figures.items() if value is not None}
    metrics |= {metric_key("val", "iou", row["class"]): row["iou"] for row in result.classes if row["iou"] is not None}
    tracked.log_metrics(metrics, step=step)
    tracked.log_metrics({"images": result.evaluated, "skipped": result.skipped, "seconds": result.seconds}, step=step)
    columns = {key: [row[key] for row in result.classes] for key in result.classes[0]}
    tracked.log_table("per_class.json", columns)
    for picture in result.pictures:
        if picture.name.startswith("fixed"):
            tracked.log_image(f"pictures/{picture.name}", picture.strip(), step=step)


def summary(table: Mapping[str, Any]) -> str:
    """A few lines for a person, and a table of the classes."""
    lines = [
        f"mIoU {table['miou']:.4f}, pixel accuracy {table['pixel_accuracy']:.4f} over {table['evaluated']} of "
        f"{table['images_in']} images in {table['seconds']:.1f} s",
        f"frequency-weighted IoU {table['fwiou']:.4f}, mean accuracy {table['mean_accuracy']:.4f}",
    ]
    lines += [
        f"boundary F within {row['px']:>2} px {_shown(row['f'])} (precision {_shown(row['precision'])}, recall "
        f"{_shown(row['recall'])})"
        for row in table.get("boundary", ())
    ]
    if "calibration" in table:
        sure = table["calibration"]
        lines.append(
            f"calibration error {_shown(sure['ece'])}, largest {_shown(sure['largest_error'])}, mean confidence "
            f"{_shown(sure['mean_confidence'])}"
        )
    lines += [f"{count:>8} skipped: {reason}" for reason, count in table["reasons"].items()]
    return "\n".join([*lines, *class_lines(table["classes"])])


def class_lines(classes: Sequence[Mapping[str, Any]]) -> list[str]:
    """One line a class: IoU, accuracy, and boundary F where it was measured."""
    widths = [key for key in classes[0] if key.startswith("boundary_f_")]
    heads = {"iou": "IoU", "accuracy": "accuracy"} | {key: f"F {key.removeprefix('boundary_f_')}" for key in widths}
    lines = [f"{'class':<24}" + "".join(f"{head:>10}" for head in heads.values())]
    return lines + [f"{row['class']:<24}" + "".join(f"{_shown(row[key]):>10}" for key in heads) for row in classes]


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _write_csv(uri: str, header: Sequence[str], rows: Iterable[Iterable[Any]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    storage.write_text(uri, text.getvalue())
