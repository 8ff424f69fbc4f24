"""Sections and charts of what an evaluation measures beside IoU: boundaries and calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jobs import report_page as html
from jobs.report_charts import curves

WIDTH, LEFT, RIGHT = 560, 50, 14
HEIGHT, TOP, BOTTOM = 300, 10, 230
"""Of the reliability diagram; the share of the pixels stands below BOTTOM, as high as SHARE_HEIGHT."""
SHARE_TOP, SHARE_HEIGHT = 240, 24


TITLES = {
    "iou": "IoU",
    "miou": "mIoU",
    "fwiou": "frequency-weighted IoU",
    "pixel_accuracy": "pixel accuracy",
    "mean_accuracy": "mean accuracy",
    "ece": "calibration error",
}


def figure_title(name: str) -> str:
    """How a figure is called on a page."""
    if name.startswith("boundary_f_"):
        return f"boundary F within {name.removeprefix('boundary_f_').removesuffix('px')} px"
    return TITLES.get(name, name.replace("_", " "))


def boundary_section(result: Mapping[str, Any]) -> str:
    """Boundary F of every width, as a chart and with precision and recall as a table."""
    rows = result.get("boundary") or []
    lines = {"F": "f", "precision": "precision", "recall": "recall"}
    series = {
        name: [(float(row["px"]), float(row[key])) for row in rows if row[key] is not None]
        for name, key in lines.items()
    }
    chart = curves(series, title="boundary F by width", x_label="width, pixels")
    header = ("width, pixels", "F", "precision", "recall", "F, mean over images")
    cells = [tuple(row[key] for key in ("px", *lines.values(), "published_f")) for row in rows]
    text = (
        "Shares of the boundary pixels of a class that have one of the same class in the other map within the width, "
        "over the whole split, averaged over classes. The last column averages over images, then classes, and counts "
        "1 for a class that an image lacks, as in Gated-SCNN's tables. F of every class stands with its IoU."
    )
    return html.section(
        "Boundary F",
        f'<div class="plot">{chart}</div>' if chart else "",
        html.table(header, cells),
        html.note(text) if rows else "",
    )


def calibration_section(result: Mapping[str, Any]) -> str:
    """The reliability diagram, the errors, and the bins as a table."""
    found = result.get("calibration")
    if not found:
        return ""
    bins = found["bins"]
    figures = {
        "expected calibration error": found["ece"],
        "largest error of a bin": found["largest_error"],
        "mean confidence": found["mean_confidence"],
        "pixel accuracy": result.get("pixel_accuracy"),
    }
    header = ("confidence", "pixels", "mean confidence", "accuracy")
    rows = [
        (f"{row['low']:.3f} to {row['high']:.3f}", row["pixels"], row["confidence"], row["accuracy"]) for row in bins
    ]
    text = (
        "On the diagonal a model is right as often as it is sure. Red: by how much it is surer than right; orange: by "
        "how much it is more often right than sure. Blue: share of the pixels."
    )
    return html.section(
        "Calibration",
        html.tiles({name: value for name, value in figures.items() if value is not None}, lead=1),
        reliability(bins),
        html.note(text),
        html.heading("Bins", html.table(header, rows)),
    )


def reliability(bins: Sequence[Mapping[str, Any]]) -> str:
    """Accuracy over confidence with the distance to the diagonal, and the share of the pixels below."""
    total = sum(row["pixels"] for row in bins)
    if not total:
        return ""
    bars = "".join(_bin(row, share=row["pixels"] / total) for row in bins if row["pixels"])
    return (
        f'<figure class="plot"><figcaption>accuracy by confidence</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="reliability diagram">{_axes()}{bars}'
        f'<line class="line s0" stroke-dasharray="5 4" x1="{_x(0)}" y1="{_y(0)}" x2="{_x(1)}" y2="{_y(1)}"/>'
        "</svg></figure>"
    )


def _bin(row: Mapping[str, Any], *, share: float) -> str:
    width = _x(row["high"]) - _x(row["low"])
    gap = min(1.0, width / 10)  # of many bins none is wider than two pixels
    x, width = _x(row["low"]) + gap, width - 2 * gap
    accuracy, confidence = float(row["accuracy"]), float(row["confidence"])
    tip = (
        f"confidence {confidence:.3f}, accuracy {accuracy:.3f}, {row['pixels']:,} pixels ({share:.1%}), "
        f"bin {row['low']:.3f} to {row['high']:.3f}"
    )
    upper, lower = max(accuracy, confidence), min(accuracy, confidence)
    high = SHARE_HEIGHT * share
    return (
        f"<g><title>{html.escape(tip)}</title>"
        f"{_bar('right', x, _y(lower), width, _y(0) - _y(lower))}"
        f"{_bar('wrong' if confidence > accuracy else 'careful', x, _y(upper), width, _y(lower) - _y(upper))}"
        f"{_bar('share', x, SHARE_TOP + SHARE_HEIGHT - high, width, high)}"
        f'<rect class="hit" x="{x:.1f}" y="{TOP}" width="{width:.1f}" height="{SHARE_TOP + SHARE_HEIGHT - TOP}"/></g>'
    )


def _bar(kind: str, x: float, y: float, width: float, height: float) -> str:
    return f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"/>'


def _axes() -> str:
    lines = []
    for tenth in range(0, 11, 2):
        value = tenth / 10
        lines.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{_y(value):.1f}" y2="{_y(value):.1f}"/>'
            f'<text x="{LEFT - 7}" y="{_y(value) + 4:.1f}" text-anchor="end">{value:g}</text>'
            f'<text x="{_x(value):.1f}" y="{HEIGHT - 18}" text-anchor="middle">{value:g}</text>'
        )
    middle = (LEFT + WIDTH - RIGHT) / 2
    lines.append(f'<text x="{middle:.0f}" y="{HEIGHT - 3}" text-anchor="middle">confidence</text>')
    return "".join(lines)


def _x(confidence: float) -> float:
    return LEFT + confidence * (WIDTH - LEFT - RIGHT)


def _y(share: float) -> float:
    return BOTTOM - share * (BOTTOM - TOP)
