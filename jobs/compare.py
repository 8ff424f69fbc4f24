"""`segray compare`: two evaluations of the same images -> what each class gained, as table, chart and page.

CFT shows its gains over SemFPN so (arXiv 2308.05581, figure 1).
"""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from jobs.compare_figures import changes
from jobs.dry_run import show_plan
from jobs.specs import CompareJob
from jobs.tracked_run import metric_key
from jobs.tracking import check_tracking, track
from pipelines import storage
from seg_models.names import did_you_mean

SAME = ("uri", "labels", "split", "fingerprint")
"""What two evaluations of the same pixels have in common."""


@dataclass(frozen=True)
class Evaluation:
    """What `segray evaluate` left in a folder."""

    folder: str
    result: dict[str, Any]
    images: dict[str, dict[str, float | None]]
    """Image id -> figures of that image; None where one is undefined."""

    @property
    def figures(self) -> dict[str, float | None]:
        """The figures that single images have too, of the whole split."""
        names = next(iter(self.images.values()), {"miou": None})
        return {name: self.result[name] for name in names if name in self.result}

    @property
    def iou(self) -> dict[str, float | None]:
        """Class -> IoU; None where it occurs neither in truth nor in prediction."""
        return {row["class"]: row["iou"] for row in self.result["classes"]}


def run(job: CompareJob, *, dry_run: bool = False) -> dict[str, Any]:
    """Compare; write `gains.csv`, `gains.png`, `job.json` and `result.json`.

    Returns:
        The result, or the plan of a dry run.

    Raises:
        ValueError: a folder holds no evaluation, the two looked at different data, or one would be written over.
    """
    before, after = (read_evaluation(getattr(job, key), key=key) for key in ("baseline", "evaluation"))
    check_same_data(before, after)
    output = storage.normalise(job.output)
    if output in (before.folder, after.folder):
        raise ValueError(f"output: {output}: holds an evaluation that is compared; name another folder")
    if dry_run:
        check_tracking(job, dry_run=True)
        return show_plan(job, {"classes": len(before.iou), "images": len(before.images), "writes": output})
    storage.check_writable(output)
    check_tracking(job)
    with track(job, verb="compare", output=output) as tracked:
        table = compare(before, after) | {"verb": "compare", "mlflow": tracked.address}
        storage.write_text(storage.join(output, "job.json"), job.model_dump_json(indent=2))
        storage.write_text(storage.join(output, "gains.csv"), as_csv(table))
        storage.write_bytes(storage.join(output, "gains.png"), chart(table))
        storage.write_text(storage.join(output, "result.json"), json.dumps(table, indent=2))
        gains = {metric_key("compare", "gain", row["class"]): row["gain"] for row in ordered(table)}
        gains |= {metric_key("compare", f"{row['figure']}_gain"): row["change"] for row in table["figures"]}
        tracked.log_metrics({"compare/miou_gain": table["miou_gain"]} | gains)
        tracked.log_dict(table, "result.json")
    print(summary(table))
    return table


def read_evaluation(folder: str, *, key: str) -> Evaluation:
    """The figures of an evaluation.

    Raises:
        ValueError: the folder holds no finished run, a damaged one, or one of another verb.
    """
    place = storage.normalise(folder)
    path = storage.join(place, "result.json")
    if not storage.exists(path):
        above = storage.parent(place)
        beside = storage.list_dirs(above) if storage.is_dir(above) and not storage.is_dir(place) else []
        hint = did_you_mean(place.rpartition("/")[2], beside)
        raise ValueError(f"{key}: {place}: no finished evaluation here (result.json is missing){hint}")
    try:
        result = json.loads(storage.read_bytes(path))
    except ValueError as error:
        raise ValueError(f"{key}: {path}: cannot be read: {error}") from error
    if not isinstance(result, dict):
        raise ValueError(f"{key}: {path}: a table is needed, found {type(result).__name__}")
    if result.get("verb") != "evaluate":
        raise ValueError(f"{key}: {place}: found a run of {result.get('verb')!r}, one of 'evaluate' is needed")
    rows = csv.DictReader(io.StringIO(storage.read_bytes(storage.join(place, "per_image.csv")).decode()))
    images = {row.pop("id"): {name: float(value) if value else None for name, value in row.items()} for row in rows}
    return Evaluation(place, result, images)


def check_same_data(before: Evaluation, after: Evaluation) -> None:
    """Refuse figures that say nothing about each other.

    Raises:
        ValueError: other classes, another data set, label set, split or state of them, calibration by other bins, or
            the same evaluation twice.
    """
    if tuple(before.iou) != tuple(after.iou):
        raise ValueError(
            f"evaluation: {after.folder}: its classes ({', '.join(after.iou)}) are not those of the baseline "
            f"({', '.join(before.iou)})"
        )
    if before.folder == after.folder:
        raise ValueError(f"evaluation: {after.folder}: is the baseline itself; name another evaluation")
    for key in SAME:
        was, now = (one.result["dataset"][key] for one in (before, after))
        if was != now:
            raise ValueError(f"evaluation: {after.folder}: looked at {key} {now!r}, the baseline at {was!r}")
    bins = [len(one.result["calibration"]["bins"]) for one in (before, after) if "calibration" in one.result]
    if len(set(bins)) > 1:
        raise ValueError(
            f"evaluation: {after.folder}: calibration was measured in {bins[1]} bins, in the baseline in {bins[0]}: "
            "their errors cannot be compared; evaluate one again with the other's metrics.calibration_bins"
        )


def compare(before: Evaluation, after: Evaluation) -> dict[str, Any]:
    """Gains of every class, and changes of every figure with the interval of a paired bootstrap over images."""
    figures = changes(before.figures, after.figures, images_before=before.images, images_after=after.images)
    return {
        "baseline": {"uri": before.folder, "miou": before.result["miou"], "checkpoint": before.result["checkpoint"]},
        "evaluation": {"uri": after.folder, "miou": after.result["miou"], "checkpoint": after.result["checkpoint"]},
        "miou_gain": after.result["miou"] - before.result["miou"],
        "gains": class_gains(before.result["classes"], after.result["classes"]),
        "figures": figures,
        "per_image": next((row["per_image"] for row in figures if row["figure"] == "miou"), None),
    }


def class_gains(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per class: class, IoU of both and its gain, and the gain in boundary F of every width that both know."""
    widths = [key for key in before[0] if key.startswith("boundary_f_") and key in after[0]]
    rows = []
    for was, now in zip(before, after, strict=True):
        row = {"class": was["class"], "baseline": was["iou"], "evaluation": now["iou"], "gain": _gain(was, now, "iou")}
        rows.append(row | {f"{key}_gain": _gain(was, now, key) for key in widths})
    return rows


def _gain(before: dict[str, Any], after: dict[str, Any], key: str) -> float | None:
    return None if before[key] is None or after[key] is None else after[key] - before[key]


def ordered(table: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of the classes that both know, the largest gain first."""
    return sorted((row for row in table["gains"] if row["gain"] is not None), key=lambda row: -row["gain"])


def as_csv(table: dict[str, Any]) -> str:
    """Class, IoU of both and gain, in the order of the class list."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(table["gains"][0]))
    writer.writeheader()
    writer.writerows(table["gains"])
    return text.getvalue()


def chart(table: dict[str, Any]) -> bytes:
    """A PNG with one bar a class, the largest gain first."""
    rows = ordered(table)
    figure = Figure(figsize=(max(4.0, 0.28 * len(rows) + 1.5), 3.4), layout="constrained")
    axes = figure.add_subplot()
    gains = [100 * row["gain"] for row in rows]
    axes.bar(range(len(rows)), gains, color=["#2a7f62" if gain >= 0 else "#b5473c" for gain in gains])
    axes.set_xticks(range(len(rows)), [row["class"] for row in rows], rotation=90, fontsize=7)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_ylabel("gain in IoU, points")
    axes.margins(x=0.01)
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=200)
    return data.getvalue()


def summary(table: dict[str, Any]) -> str:
    """What a person wants to know first."""
    was, now = table["baseline"]["miou"], table["evaluation"]["miou"]
    lines = [f"mIoU {was:.4f} -> {now:.4f} ({table['miou_gain']:+.4f})"]
    rows = ordered(table)
    for what, row in (("most", rows[0]), ("least", rows[-1])) if rows else ():
        lines.append(
            f"{what} gained: {row['class']} {row['baseline']:.4f} -> {row['evaluation']:.4f} ({row['gain']:+.4f})"
        )
    if (single := table["per_image"]) is not None:
        low, high = single["interval"]
        lines.append(
            f"images: {single['better']} better, {single['worse']} worse of {single['images']}; mean of their mIoU "
            f"{single['mean_gain']:+.4f}, 95 % interval {low:+.4f} to {high:+.4f}"
        )
    lines += [
        f"{row['figure']:<20} {row['baseline']:.4f} -> {row['evaluation']:.4f} ({row['change']:+.4f})"
        for row in table["figures"]
        if row["figure"] != "miou"
    ]
    return "\n".join(lines)
