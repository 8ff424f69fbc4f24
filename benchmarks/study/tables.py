"""Tables, plot and tests of the study."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter
from scipy.stats import wilcoxon

from benchmarks.study.photos import SETS
from benchmarks.study.rules import GUIDED, Rule

Row = dict[str, Any]
MEASURES = ("precision", "iou", "ap")
CHOSEN_ON = {"ecssd-500": 40, "weizmann-horse-164": 8}
"""How many of a set's first photographs the window and contrast of `fast` were chosen on."""
FAST_SMOOTHING = Rule(smoothing=GUIDED).smoothing_name


def write_tables(rows: Sequence[Row], output: Path) -> dict[str, Any]:
    """Write `study.md` and `study.png`; return what they say.

    Returns:
        `tables` (axis to rows of means), `passes_for_n50` and `tests`, by set; `held_out` has means and tests of the
        photographs that `fast` was not chosen on.
    """
    rows = with_purity(rows)
    tables = {axis: means(rows, axis=axis) for axis in dict.fromkeys(row["axis"] for row in rows)}
    summary = {"tables": tables, "passes_for_n50": passes_for_paper(tables), "tests": paired_tests(rows)}
    unseen = held_out(rows)
    if {row["set"] for row in unseen} == set(SETS):
        summary["held_out"] = {"passes": means(unseen, axis="passes"), "tests": paired_tests(unseen)}
    output.mkdir(parents=True, exist_ok=True)
    (output / "study.md").write_text("\n\n".join(_markdown(axis, table) for axis, table in tables.items()) + "\n")
    plot(tables["passes"]).savefig(output / "study.png", dpi=75)
    print(f"passes_for_n50 {summary['passes_for_n50']}\ntests {summary['tests']}")
    return summary


def held_out(rows: Sequence[Row]) -> list[Row]:
    """Rows of the photographs that `fast` was not chosen on."""
    order = {name: list(dict.fromkeys(row["photo"] for row in rows if row["set"] == name)) for name in SETS}
    unseen = {(name, photo) for name in SETS for photo in order[name][CHOSEN_ON[name] :]}
    return [row for row in rows if (row["set"], row["photo"]) in unseen]


def with_purity(rows: Sequence[Row]) -> list[Row]:
    """The rows, those of labels with how much of what is no label is no object either."""
    objects = {(row["set"], row["photo"]): row["precision"] for row in rows if row["axis"] == "control"}
    found = []
    for row in rows:
        if row["axis"] == "share":
            missed = objects[row["set"], row["photo"]] * (1 - row["recall"])
            row = row | {"purity": 1 - missed / (1 - row["share"]) if row["share"] < 1 else 1.0}
        found.append(row)
    return found


KEYS = ("set", "kind", "normalise", "smoothing", "models", "passes", "label")


def means(rows: Iterable[Row], *, axis: str) -> list[Row]:
    """Means over photographs (and over subsets of classifiers) of the rows of an axis."""
    groups: defaultdict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in rows:
        if row["axis"] == axis:
            groups[tuple(row.get(key) for key in KEYS)].append(row)
    return [_mean(key, group) for key, group in groups.items()]


def _mean(key: tuple[Any, ...], group: list[Row]) -> Row:
    named = {name: value for name, value in zip(KEYS, key, strict=True) if value is not None}
    numbers = [name for name in (*MEASURES, "share", "recall", "purity", "same") if name in group[0]]
    photos = len({row["photo"] for row in group})
    return named | {"photos": photos} | {name: float(np.mean([row[name] for row in group])) for name in numbers}


def paper_kind(kinds: Iterable[str]) -> str:
    """The published score at the largest number of samples."""
    return max((kind for kind in kinds if kind.startswith("probability")), key=_samples)


def _samples(kind: str) -> int:
    return int(kind.partition(".")[2])


def _is_paper(row: Row, paper: str) -> bool:
    return bool(row["kind"] == paper and row["smoothing"] == "none" and row["normalise"] == "l1")


def _is_fast(row: Row) -> bool:
    return bool(row["kind"].startswith("logit") and row["smoothing"] == FAST_SMOOTHING and row["normalise"] == "l1")


def passes_for_paper(tables: Mapping[str, list[Row]]) -> dict[str, Any]:
    """Passes of `paper` over the fewest at which `fast` is at least as good in precision and IoU, by set."""
    found: dict[str, Any] = {}
    for name in SETS:
        here = [row for axis in ("passes", "models") for row in tables.get(axis, []) if row["set"] == name]
        kind = paper_kind(row["kind"] for row in here)
        (paper,) = [row for row in here if _is_paper(row, kind) and row["models"] == max(r["models"] for r in here)]
        good = [row for row in here if _is_fast(row) and all(row[key] >= paper[key] for key in ("precision", "iou"))]
        whole = [row for row in good if row["models"] == paper["models"]]
        found[name] = {
            "paper": paper,
            "fast_all_models": min(whole, key=lambda row: row["passes"], default=None),
            "fast_any_models": min(good, key=lambda row: row["passes"], default=None),
        }
        for key in ("fast_all_models", "fast_any_models"):
            row = found[name][key]
            found[name][f"ratio_{key[5:]}"] = paper["passes"] / row["passes"] if row else 0.0
    return found


def paired_tests(rows: Sequence[Row]) -> dict[str, Any]:
    """Paired tests over photographs: `fast` at 1/12 and at 1/50 of the passes of `paper` against `paper`."""
    found: dict[str, Any] = {}
    whole = [row for row in rows if row["axis"] == "passes"]
    for name in SETS:
        here = [row for row in whole if row["set"] == name]
        kind = paper_kind(row["kind"] for row in here)
        paper = {row["photo"]: row for row in here if _is_paper(row, kind)}
        for fast in sorted({row["kind"] for row in here if _is_fast(row)}, key=_samples):
            ours = {row["photo"]: row for row in here if _is_fast(row) and row["kind"] == fast}
            share = next(iter(paper.values()))["passes"] / next(iter(ours.values()))["passes"]
            found[f"{name} {fast} at 1/{share:g} of {kind}"] = {key: _paired(ours, paper, key) for key in MEASURES}
    return found


def _paired(ours: Mapping[str, Row], paper: Mapping[str, Row], key: str) -> dict[str, float]:
    """Mean difference, and Wilcoxon's signed-rank test that it is above zero."""
    difference = np.array([ours[photo][key] - paper[photo][key] for photo in sorted(paper)])
    chance = float(wilcoxon(difference, alternative="greater").pvalue) if difference.any() else 1.0
    return {"difference": float(difference.mean()), "p": chance}


def _markdown(axis: str, table: Sequence[Row]) -> str:
    if not table:
        return ""
    columns = list(dict.fromkeys(key for row in table for key in row))
    lines = [f"## {axis}", "", "| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    lines += ["| " + " | ".join(_cell(row.get(column, "")) for column in columns) + " |" for row in table]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def plot(table: Sequence[Row]) -> Figure:
    """Precision and IoU over passes, for every smoothing, with all classifiers."""
    figure = Figure(figsize=(11, 4.2 * len(SETS)), layout="constrained")
    axes = figure.subplots(len(SETS), 2, squeeze=False)
    for name, pair in zip(SETS, axes, strict=True):
        for measure, axis in zip(("precision", "iou"), pair, strict=True):
            for score in ("probability", "logit"):
                for smoothing, style in zip(_smoothings(table), ("-", "--", ":"), strict=False):
                    line = _line(table, name, score, smoothing)
                    marker = "o" if score == "logit" else "s"
                    label = f"{score}, {smoothing}"
                    axis.plot(
                        [r["passes"] for r in line], [r[measure] for r in line], style, marker=marker, label=label
                    )
            axis.set(xscale="log", xlabel="gradient passes per image", ylabel=measure, title=name)
            axis.set_xticks(sorted({row["passes"] for row in table}), minor=False)
            axis.get_xaxis().set_major_formatter(ScalarFormatter())
            axis.get_xaxis().set_minor_formatter(NullFormatter())
            axis.grid(alpha=0.3)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=9)
    return figure


def _smoothings(table: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row["smoothing"] for row in table))


def _line(table: Sequence[Row], name: str, score: str, smoothing: str) -> list[Row]:
    chosen = [row for row in table if (row["set"], row["smoothing"]) == (name, smoothing)]
    return sorted((row for row in chosen if row["kind"].startswith(score)), key=lambda row: row["passes"])
