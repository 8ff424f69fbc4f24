"""One self-contained HTML page per run: what went in and out, figures, curves and pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jobs import report_page as html
from jobs.specs import ReportJob
from jobs.training.points import read_points
from pipelines import storage
from pipelines.images import decode_image
from pipelines.labels import LabelSpace, decode_label
from pipelines.pictures import overlay, png
from pipelines.tables import Dataset

NUM_EXAMPLES = 8
PICTURE_SIDE = 320  # px
TITLES = {
    "ingest": "Ingest",
    "pssl": "Pseudo-labels",
    "autolabel": "Auto-labels",
    "train": "Training",
    "evaluate": "Evaluation",
    "predict": "Prediction",
    "check": "Dataset check",
    "export": "Export",
}


def run(job: ReportJob, *, dry_run: bool = False) -> dict[str, Any]:
    """Write the page of a finished run again and print its address.

    Raises:
        ValueError: the folder holds no finished run.
    """
    folder = storage.normalise(job.run)
    if dry_run:
        print(f"would write {storage.join(folder, 'report.html')} from a {read_result(folder).get('verb')} run")
        return {"run": folder}
    place = write_report(folder)
    print(f"report: {place}")
    return {"report": place}


def write_report(folder: str) -> str:
    """Write `report.html` into a run's folder, from the files the run left there; return its place.

    Raises:
        ValueError: the folder holds no finished run.
    """
    result = read_result(folder)
    verb = str(result.get("verb", "run"))
    sections = [*run_sections(folder, result), _settings(folder)]
    title = f"{TITLES.get(verb, verb)}: {folder.rstrip('/').rpartition('/')[2]}"
    place = storage.join(folder, "report.html")
    storage.write_text(place, html.page(title, folder, sections))
    return place


def report_of(verb: str, job: Any) -> str:
    """Write the page of a job that has just ended, wherever that verb leaves its result; return its place."""
    if verb == "train":
        return write_report(storage.join(storage.normalise(job.output), job.name))
    if hasattr(job, "output"):
        return write_report(storage.normalise(job.output))
    folders = [f"{verb}-{job.labels}", f"{verb}-images"]
    runs = [storage.join(storage.normalise(job.dataset), "runs", folder) for folder in folders]
    return write_report(next(run for run in runs if storage.exists(storage.join(run, "result.json"))))


def read_result(folder: str) -> dict[str, Any]:
    """The figures of a finished run.

    Raises:
        ValueError: there are none.
    """
    place = storage.join(folder, "result.json")
    if not storage.exists(place):
        storage.require_dir(folder)
        raise ValueError(f"{folder}: no finished run here (result.json is missing)")
    result: dict[str, Any] = json.loads(storage.read_bytes(place))
    return result


def run_sections(folder: str, result: Mapping[str, Any]) -> list[str]:
    """The sections of one run; those it has nothing for are empty."""
    return [
        _numbers(result),
        _rejected(result),
        training_section(folder, result),
        labels_section(result),
        *evaluation_sections(folder, result),
    ]


def _numbers(result: Mapping[str, Any], *, title: str = "Figures") -> str:
    names = {
        "miou": "mIoU",
        "pixel_accuracy": "pixel accuracy",
        "images_in": "images in",
        "good": "good",
        "labelled": "labelled",
        "evaluated": "evaluated",
        "predicted": "predicted",
        "rejected": "rejected",
        "steps": "steps",
        "samples_per_s": "samples per second",
        "images_per_s": "images per second",
        "seconds": "seconds",
    }
    figures = {shown: result[key] for key, shown in names.items() if isinstance(result.get(key), (int, float))}
    return html.section(title, html.tiles(figures))


def _rejected(result: Mapping[str, Any]) -> str:
    reasons = result.get("reasons") or {}
    rows = result.get("rejected_rows") or []
    return html.section(
        "Not used, and why",
        html.table(("reason", "images"), [(reason, count) for reason, count in reasons.items()]),
        html.table(("id", "reason"), [(row["id"], row["reason"]) for row in rows[:50]]),
    )


def training_section(folder: str, result: Mapping[str, Any]) -> str:
    """Loss and learning rate over the steps, and what was kept of an earlier model."""
    if result.get("verb") != "train":
        return ""
    points = read_points(folder)
    charts = [
        html.curves(series_of(points, ("train/loss", "loss")), title="training loss"),
        html.curves(series_of(points, ("train/lr", "lr")), title="learning rate"),
        html.curves(series_of(points, ("val/miou",)), title="validation mIoU"),
    ]
    transfer = str(result.get("transfer") or "")
    return html.section(
        "Training", *charts, html.folded("what was kept of the earlier model", transfer) if transfer else ""
    )


def series_of(points: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, list[tuple[float, float]]]:
    """The points of the metrics that exist, by name."""
    found = {name: [(float(p["step"]), float(p[name])) for p in points if name in p] for name in names}
    return {name: values for name, values in found.items() if values}


def labels_section(result: Mapping[str, Any]) -> str:
    """Label histogram and example pictures of a label set."""
    pixels = {name: count for name, count in (result.get("class_pixels") or {}).items() if count}
    total = sum(pixels.values()) or 1
    most = dict(sorted(pixels.items(), key=lambda item: -item[1])[:30])
    parts = [html.bars({name: 100.0 * count / total for name, count in most.items()}, suffix=" %")]
    if len(pixels) > len(most):
        parts.append(f"<p>{len(pixels) - len(most)} more classes below {100.0 * min(most.values()) / total:.3f} %.</p>")
    kept = result.get("kept_share") or {}
    parts.append("<h3>Share of each class's pixels kept by the threshold</h3>" if kept else "")
    parts.append(html.bars({name: float(value) for name, value in kept.items() if value is not None}, limit=1.0))
    if isinstance(result.get("dataset"), str) and result.get("labels"):
        parts.append(example_pictures(result["dataset"], labels=result["labels"], split=result.get("split")))
    return html.section("Labels", *parts)


def example_pictures(dataset: str, *, labels: str, split: str | None = None, count: int = NUM_EXAMPLES) -> str:
    """Images with a label set laid over them, the first good rows of its first shards."""
    data = Dataset.open(dataset)
    table = data.labels(labels)
    space = table.label_space
    pictures: list[str] = []
    seen: set[int] = set()
    for file in table.files(split=split):
        images = data.images.read(file.key, columns=("id", "image", "class")).to_pylist()
        for image, label in zip(images, table.read(file.key, columns=("id", "label")).to_pylist(), strict=True):
            if image["image"] is None or label["label"] is None:
                continue
            index = decode_label(label["label"])
            pixels = decode_image(image["image"])
            seen |= {int(value) for value in np.unique(index)}
            name = space.names[image["class"]] if image["class"] is not None else image["id"]
            shown = np.concatenate([pixels, overlay(pixels, index, space)], axis=1)
            pictures.append(html.picture(png(shown, max_side=2 * PICTURE_SIDE), f"{image['id']} ({name})"))
            if len(pictures) == count:
                return html.row(pictures) + _key(space, seen)
    return (html.row(pictures) + _key(space, seen)) if pictures else ""


def _key(space: LabelSpace, seen: set[int]) -> str:
    return html.legend({space.names[i]: space.colors[i] for i in sorted(seen) if i < space.num_classes})


def evaluation_sections(folder: str, result: Mapping[str, Any]) -> list[str]:
    """Per-class IoU, confusion matrix, fixed and worst pictures."""
    classes = result.get("classes")
    if not isinstance(classes, list) or not classes or "iou" not in classes[0]:
        return []
    iou = {row["class"]: float("nan") if row["iou"] is None else float(row["iou"]) for row in classes}
    rows = [["–" if value is None else value for value in row.values()] for row in classes]
    space = LabelSpace.model_validate(result["label_space"])
    matrix = result.get("confusion")
    chart = html.confusion(matrix, space.names) if matrix and space.num_classes <= 60 else ""
    return [
        html.section("IoU of every class", html.bars(iou, limit=1.0), html.table(list(classes[0]), rows)),
        html.section("Confusion: truth in rows, prediction in columns", chart),
        pictures_section(folder, result, "fixed", "Pictures: image, truth, prediction"),
        pictures_section(folder, result, "worst", "Worst images: image, truth, prediction"),
    ]


def pictures_section(folder: str, result: Mapping[str, Any], start: str, title: str, *, most: int = 8) -> str:
    """The stored pictures whose name begins with `start`, three side by side."""
    space = LabelSpace.model_validate(result["label_space"])
    chosen = [entry for entry in result.get("pictures", []) if entry["kind"] == start][:most]
    lines = [html.row(_parts(folder, entry)) for entry in chosen]
    return html.section(title, _key(space, set(range(space.num_classes))) if lines else "", *lines)


def _parts(folder: str, entry: Mapping[str, Any]) -> list[str]:
    score = entry.get("miou")
    captions = {"image": entry["id"] + ("" if score is None else f", IoU {score:.3f}"), "truth": "truth"}
    captions["prediction"] = "prediction"
    files = {part: storage.join(folder, "pictures", entry[part]) for part in captions}
    return [html.picture(storage.read_bytes(file), captions[part]) for part, file in files.items()]


def _settings(folder: str) -> str:
    place = storage.join(folder, "job.json")
    if not storage.exists(place):
        return ""
    return html.section(
        "Job", html.folded("resolved settings; run again with this file", storage.read_bytes(place).decode())
    )
