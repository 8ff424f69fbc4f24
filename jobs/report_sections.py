"""The sections of a run's page that belong to one kind of work; each is empty for runs of another kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jobs import report_page as html
from jobs.report_charts import Points, bars, confusion, curves
from jobs.report_metrics import boundary_section, calibration_section, figure_title
from jobs.report_pictures import class_key, evaluated, label_examples
from jobs.training.points import read_points
from pipelines.labels import LabelSpace

MAX_BARS = 30
MAX_CONFUSION = 60  # classes up to which a matrix can be read
CURVES = {
    "train/loss": "training loss",
    "train/lr": "learning rate",
    "train/images_per_s": "images per second",
    "val/miou": "mIoU on the validation split",
}


def training_section(folder: str, result: Mapping[str, Any]) -> str:
    """Data, curves over the steps, and what was kept of an earlier model."""
    if result.get("verb") != "train":
        return ""
    points = read_points(folder)
    drawn = [curves({name: series_of(points, name)}, title=title) for name, title in CURVES.items()]
    validations = result.get("validations") or []
    drawn.append(curves({"mIoU": series_of(validations, "miou")}, title="mIoU of validations"))
    best = result.get("best")
    told = f"Best of {len(validations)} validations: step {best['step']}, in {best['checkpoint']}" if best else ""
    data = [(part["dataset"], part["labels"], part["split"], part["samples"]) for part in result.get("data", [])]
    sampled, classes = sampling_rows(result.get("sampling") or [])
    return html.section(
        "Training",
        html.table(("dataset", "labels", "split", "samples"), data),
        html.heading("Drawn from", html.table(("steps", "part", "how", "share", "epochs"), sampled)),
        html.heading(
            "Samples by class",
            html.table(("steps", "class", "centroids", "drawn around them per epoch"), classes),
        ),
        f'<div class="plots">{"".join(drawn)}</div>' if any(drawn) else "",
        html.note(told),
        html.folded("what was kept of the earlier model", str(result.get("transfer") or "")),
    )


def sampling_rows(phases: Sequence[Mapping[str, Any]]) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]:
    """Of every phase of a run, its parts with their shares, and its classes where it samples by class."""
    parts: list[tuple[Any, ...]] = []
    classes: list[tuple[Any, ...]] = []
    for phase in phases:
        steps = f"{phase['steps'][0]}–{phase['steps'][1]}"
        parts += [(steps, row["part"], row["drawn"], f"{row['share']:.1%}", row["epochs"]) for row in phase["parts"]]
        classes += [(steps, row["class"], row["centroids"], row["per_epoch"]) for row in phase.get("classes", [])]
    return parts, classes


def series_of(points: Sequence[Mapping[str, Any]], name: str) -> Points:
    """(step, value) of one metric."""
    return [(float(point["step"]), float(point[name])) for point in points if name in point]


def sources_section(result: Mapping[str, Any]) -> str:
    """Splits, image-level classes and sizes of a dataset."""
    images = {str(name): count for name, count in (result.get("class_images") or {}).items() if count}
    sizes = [(size.replace("x", " × "), count) for size, count in (result.get("sizes") or {}).items()]
    more = f"{len(sizes) - MAX_BARS} more sizes" if len(sizes) > MAX_BARS else ""
    return html.section(
        "Images",
        html.heading("Splits", bars(result.get("splits") or {})),
        html.heading("Images of each class", top_bars(images)),
        html.heading("Width × height", html.table(("pixels", "images"), sizes[:MAX_BARS]) + html.note(more)),
    )


def top_bars(values: Mapping[str, float], *, limit: float | None = None, suffix: str = "") -> str:
    """Bars of the largest values, and how many more there are."""
    ordered = dict(sorted(values.items(), key=lambda item: -item[1]))
    shown = dict(list(ordered.items())[:MAX_BARS])
    left = len(ordered) - len(shown)
    rest = f"{left} more, each at most {html.number(min(shown.values()))}{suffix}" if left else ""
    return bars(shown, limit=limit, suffix=suffix) + html.note(rest)


def classifiers_section(result: Mapping[str, Any]) -> str:
    """The ensemble of a pseudo-label set, and how often a classifier saw nothing."""
    skipped = result.get("skipped_maps") or {}
    rows = [(name, count) for name, count in skipped.items()]
    return html.section("Classifiers", html.table(("classifier", "maps without signal"), rows))


def labels_section(result: Mapping[str, Any]) -> str:
    """Label histogram, what was kept of a teacher's, and pictures of labels."""
    pixels = {name: count for name, count in (result.get("class_pixels") or {}).items() if count}
    total = sum(pixels.values()) or 1
    kept = {name: 100.0 * share for name, share in (result.get("kept_share") or {}).items() if share is not None}
    pictures = ""
    if isinstance(result.get("dataset"), str) and result.get("verb") in ("ingest", "pssl", "autolabel"):
        pictures = label_examples(result["dataset"], labels=result.get("labels"), split=result.get("split"))
    shares = {name: 100.0 * count / total for name, count in pixels.items()}
    return html.section(
        "Labels" if result.get("labels") or pixels else "Pictures",
        html.heading("Share of the pixels", top_bars(shares, suffix=" %")),
        html.heading("Share kept of the teacher's pixels of each class", bars(kept, limit=100.0, suffix=" %")),
        html.heading("Examples", pictures),
    )


def evaluation_sections(folder: str, result: Mapping[str, Any]) -> list[str]:
    """Per-class figures, boundaries, calibration, confusion matrix, fixed and worst pictures."""
    if "label_space" not in result:
        return []
    space = LabelSpace.model_validate(result["label_space"])
    pictures = result.get("pictures") or []
    fixed = [entry for entry in pictures if entry["kind"] != "worst"]
    worst = [entry for entry in pictures if entry["kind"] == "worst"]
    key = class_key(space)
    return [
        classes_section(result),
        boundary_section(result),
        calibration_section(result),
        confusion_section(result, space),
        html.section("Pictures", key, evaluated(folder, fixed)) if fixed else "",
        html.section("Worst images", key, evaluated(folder, worst)) if worst else "",
    ]


def classes_section(result: Mapping[str, Any]) -> str:
    """IoU of every class as bars and with all figures as a table."""
    classes = result.get("classes")
    if not isinstance(classes, list) or not classes or "iou" not in classes[0]:
        return ""
    iou = {row["class"]: float("nan") if row["iou"] is None else float(row["iou"]) for row in classes}
    header = [figure_title(name) for name in classes[0]]
    rows = [["–" if value is None else value for value in row.values()] for row in classes]
    chart = bars(iou, limit=1.0) if len(iou) <= MAX_CONFUSION else top_bars(iou, limit=1.0)
    return html.section("IoU of every class", chart, html.heading("All figures", html.table(header, rows)))


def confusion_section(result: Mapping[str, Any], space: LabelSpace) -> str:
    """The confusion matrix, where it can be read."""
    matrix = result.get("confusion")
    if not matrix or space.num_classes > MAX_CONFUSION:
        return ""
    text = "Truth in rows, prediction in columns; per cent of the pixels of each true class. Counts on hovering."
    return html.section("Confusion matrix", confusion(matrix, space.names), html.note(text))


def check_section(result: Mapping[str, Any]) -> str:
    """Errors and warnings of a dataset check, and its classes."""
    if result.get("verb") != "check":
        return ""
    lines = [("error", line) for line in result.get("errors", [])]
    lines += [("warning", line) for line in result.get("warnings", [])]
    classes = [
        (row["name"], row["index"], row["pixels"], f"{row['share']:.2%}", row["images"])
        for row in result.get("classes", [])
        if row["pixels"]
    ]
    return html.section(
        "Findings",
        html.table(("kind", "what"), lines) or '<p class="good">Nothing is wrong.</p>',
        html.heading("Classes", html.table(("class", "index", "pixels", "share", "images"), classes)),
    )


def export_section(result: Mapping[str, Any]) -> str:
    """Exported files and how far they are from the eager model."""
    rows = [
        (
            file["path"],
            f"{file['size'][0]} × {file['size'][1]}",
            f"{file['size_bytes'] / 1e6:.1f} MB",
            f"{file['max_abs_diff']:.1e}",
            f"{file['max_rel_diff']:.1e}",
        )
        for file in result.get("files", [])
        if isinstance(file, dict)
    ]
    header = ("file", "input", "size", "largest difference", "relative")
    return html.section("Exported files", html.table(header, rows))


def import_section(result: Mapping[str, Any]) -> str:
    """What became of the tensors of a published checkpoint."""
    account = result.get("account") or {}
    rows = [
        (what, str(len(account[key])), ", ".join(map(str, account[key][:3])) if key != "used" else "")
        for key, what in (
            ("used", "used"),
            ("unused", "without a place"),
            ("missing", "left fresh"),
            ("misshapen", "of another shape"),
            ("left_behind", "left behind on purpose"),
        )
        if account.get(key)
    ]
    return html.section("Tensors", html.table(("what", "tensors", "the first"), rows))
