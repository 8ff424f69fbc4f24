"""The page of models holds every figure of the sheets beside ours."""

from __future__ import annotations

from pathlib import Path

from benchmarks.model_table import multiply_adds, parameters, table
from benchmarks.sheet_figures import COUNTS, GMACS

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "models.md").read_text()


def test_the_page_has_every_row_of_the_sheets() -> None:
    for name, classes, main, aux in COUNTS:
        assert f"| `{name}` | {classes} | {main:,} | {main:,} | {aux:,} | {aux:,} |" in PAGE
    for name, classes, (height, width), gmac in GMACS:
        assert any(
            line.startswith(f"| `{name}` | {classes} | {height}×{width} | ") and f" | {gmac:g} | " in line
            for line in PAGE.splitlines()
        )


def test_a_row_tells_ours_and_the_sheets() -> None:
    first = next(parameters())
    assert first[2:] == (first[2], first[2], first[4], first[4])
    assert next(multiply_adds())[5].endswith("%")
    assert table(("a", "b"), iter([("1", "2")])) == "| a | b |\n|---|---|\n| 1 | 2 |"
