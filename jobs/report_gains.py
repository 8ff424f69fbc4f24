"""The section of a comparison: what each class and each figure gained from one evaluation to another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jobs import report_page as html
from jobs.report_charts import gains
from jobs.report_metrics import figure_title

WIDTH_KEY = "boundary_f_"


def gains_section(result: Mapping[str, Any]) -> str:
    """Gains in IoU of every class, the largest first, changes of every figure, gains in boundary F."""
    if result.get("verb") != "compare":
        return ""
    known = sorted((row for row in result["gains"] if row["gain"] is not None), key=lambda row: -row["gain"])
    rows = [(row["class"], row["baseline"], row["evaluation"], row["gain"]) for row in known]
    unknown = [row["class"] for row in result["gains"] if row["gain"] is None]
    text = "Classes that one of the two does not know: " + ", ".join(unknown) if unknown else ""
    return html.section(
        "Gain of every class",
        html.table(
            ("", "evaluation", "mIoU"),
            [(key, result[key]["uri"], result[key]["miou"]) for key in ("baseline", "evaluation")],
        ),
        html.heading("Gain in IoU, points", gains({row["class"]: 100.0 * row["gain"] for row in known})),
        html.note(" ".join(part for part in (images_text(result.get("per_image")), text) if part)),
        figures_table(result.get("figures", ())),
        html.heading("All figures", html.table(("class", "baseline IoU", "evaluation IoU", "gain"), rows)),
        boundary_gains(known),
    )


def images_text(single: Mapping[str, Any] | None) -> str:
    """Whether the change of mIoU over images could be chance."""
    if not single:
        return ""
    low, high = single["interval"]
    return (
        f"Of {single['images']} images {single['better']} became better and {single['worse']} worse; the mean of "
        f"their mIoU changed by {single['mean_gain']:+.4f} (95 % interval {low:+.4f} to {high:+.4f}, paired "
        "bootstrap)."
    )


def figures_table(changes: Sequence[Mapping[str, Any]]) -> str:
    """Every figure of both evaluations, and its change over single images."""
    header = (
        "",
        "baseline",
        "evaluation",
        "change",
        "images better",
        "worse",
        "mean change of an image",
        "95 % interval",
    )
    rows = [
        (
            figure_title(row["figure"]),
            row["baseline"],
            row["evaluation"],
            f"{row['change']:+.4f}",
            *_images(row["per_image"]),
        )
        for row in changes
    ]
    less = any(row["figure"] == "ece" for row in changes)
    return html.heading("Figures of the whole split", html.table(header, rows)) + html.note(
        "Of the calibration error less is better." if less else ""
    )


def _images(single: Mapping[str, Any] | None) -> tuple[object, ...]:
    if not single:
        return ("–", "–", "–", "–")
    low, high = single["interval"]
    return single["better"], single["worse"], f"{single['mean_gain']:+.4f}", f"{low:+.4f} to {high:+.4f}"


def boundary_gains(rows: Sequence[Mapping[str, Any]]) -> str:
    """Gain in boundary F of every class at every width, where both evaluations measured it."""
    keys = [key for key in (rows[0] if rows else ()) if key.startswith(WIDTH_KEY)]
    header = ("class", *(figure_title(key.removesuffix("_gain")) for key in keys))
    cells = [(row["class"], *("–" if row[key] is None else f"{row[key]:+.4f}" for key in keys)) for row in rows]
    return html.heading("Gain in boundary F", html.table(header, cells)) if keys else ""
