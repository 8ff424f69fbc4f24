"""Charts of the HTML pages."""

from __future__ import annotations

import re

import pytest

from jobs.report_charts import bars, confusion, curves, parts, round_step
from jobs.report_metrics import reliability


def test_curves_leave_out_what_cannot_be_drawn() -> None:
    assert curves({"loss": [(1, 2.0)]}, title="t") == ""
    text = curves({"loss": [(1, 2.0), (2, float("nan")), (3, 1.0)]}, title="t")
    assert text.count("<polyline") == 1
    assert "nan" not in text


def test_a_long_curve_keeps_its_ends() -> None:
    points = [(step, 100.0 - step) for step in range(1, 5001)]
    text = curves({"loss": points}, title="t")
    drawn = re.findall(r'points="([^"]+)"', text)[0].split()
    assert len(drawn) <= 241
    first, last = (tuple(map(float, drawn[place].split(","))) for place in (0, -1))
    assert first[0] < last[0]
    assert first[1] < last[1]
    assert "step 5,000: -4900" in text


def test_a_flat_curve_can_be_drawn() -> None:
    assert "<polyline" in curves({"lr": [(0, 0.1), (5, 0.1)]}, title="t")
    assert "<polyline" in curves({"lr": [(0, 0.0), (5, 0.0)]}, title="t")


@pytest.mark.parametrize(("span", "step"), [(1.0, 0.5), (0.8, 0.2), (7.0, 2.0), (3000.0, 1000.0), (2e-4, 5e-5)])
def test_axes_have_round_steps(span: float, step: float) -> None:
    assert round_step(span, parts=4) == pytest.approx(step)


def test_bars_are_as_long_as_their_values() -> None:
    widths = re.findall(r"width:([0-9.]+)%", bars({"a": 1.0, "b": 0.25, "c": float("nan"), "d": 9.0}, limit=1.0))
    assert [float(width) for width in widths] == [100.0, 25.0, 0.0, 100.0]
    assert bars({"a": float("nan")}) == ""


def test_parts_fill_the_whole_bar() -> None:
    text = parts({"good": 3, "bad": 1}, colors=["c3", "cbad"])
    assert sum(float(width) for width in re.findall(r"width:([0-9.]+)%", text)) == pytest.approx(100)
    assert "bad: 1 (25.0%)" in text
    assert parts({"good": 0}, colors=["c3"]) == ""


def test_rows_of_a_confusion_matrix_are_shares_of_the_truth() -> None:
    text = confusion([[75, 25], [0, 0]], ("a", "b<"))
    assert re.findall(r"<title>(.*?)</title>", text) == [
        "a seen as a: 75.0% (75 pixels)",
        "a seen as b&lt;: 25.0% (25 pixels)",
        "b&lt; seen as a: 0.0% (0 pixels)",
        "b&lt; seen as b&lt;: 0.0% (0 pixels)",
    ]
    assert text.count('class="cell right"') == 2


def test_a_large_confusion_matrix_has_no_figures_in_its_cells() -> None:
    size = 20
    matrix = [[100 if row == column else 0 for column in range(size)] for row in range(size)]
    assert 'class="in' not in confusion(matrix, [str(index) for index in range(size)])


def test_a_reliability_diagram_shows_accuracy_and_the_gap_to_the_confidence() -> None:
    sure = {"low": 0.5, "high": 1.0, "pixels": 3, "confidence": 0.9, "accuracy": 0.6}
    modest = {"low": 0.0, "high": 0.5, "pixels": 1, "confidence": 0.3, "accuracy": 0.4}
    text = reliability([modest, sure])
    found = re.findall(r'<rect class="(\w+)" x="[^"]+" y="[^"]+" width="[^"]+" height="([^"]+)"', text)
    drawn = [(kind, float(height)) for kind, height in found if kind != "hit"]
    full, share = 220.0, 24.0
    assert [kind for kind, _ in drawn] == ["right", "careful", "share", "right", "wrong", "share"]
    assert [height for _, height in drawn] == pytest.approx(
        [0.3 * full, 0.1 * full, 0.25 * share, 0.6 * full, 0.3 * full, 0.75 * share]
    )
    assert reliability([{**sure, "pixels": 0}]) == ""


def test_no_bar_of_a_reliability_diagram_of_very_many_bins_has_a_negative_width() -> None:
    bins = [
        {"low": place / 1024, "high": (place + 1) / 1024, "pixels": 1, "confidence": 0.5, "accuracy": 0.6}
        for place in range(1024)
    ]
    widths = [float(width) for width in re.findall(r'<rect [^>]*width="([^"]+)"', reliability(bins))]
    assert len(widths) == 4 * 1024
    assert min(widths) > 0
