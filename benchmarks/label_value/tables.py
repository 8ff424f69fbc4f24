"""The tables of `docs/results.md`, from the records alone. mIoU is told in points, hundredths of 1."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.label_value.arms import Arm
from benchmarks.label_value.results import Results
from benchmarks.label_value.settings import Settings
from benchmarks.model_table import table

MIN_SEEDS = 2
"""A deviation needs two."""
NONE = "–"

Scores = Mapping[int, dict[str, Any]]
"""The record of each seed of an arm."""


def scores_of(arm: Arm, results: Results, settings: Settings, *, seeds: range) -> Scores:
    """The records of an arm that were measured with these settings, by seed."""
    found = {
        seed: results.get(f"{arm.name}/{seed}", fingerprint=arm.fingerprint(settings, seed=seed)) for seed in seeds
    }
    return {seed: record for seed, record in found.items() if record is not None}


def spread(values: Sequence[float], *, sign: bool = False) -> str:
    """Mean ± standard deviation (of a sample, n - 1) in points; the mean alone of one value."""
    if not values:
        return NONE
    form = "{:+.2f}" if sign else "{:.2f}"
    mean = form.format(100 * statistics.mean(values))
    return mean if len(values) < MIN_SEEDS else f"{mean} ± {100 * statistics.stdev(values):.2f}"


def gain(scores: Scores, baseline: Scores) -> str:
    """Differences of mIoU, seed by seed, to the baseline with the same seed."""
    return spread([scores[seed]["miou"] - baseline[seed]["miou"] for seed in scores if seed in baseline], sign=True)


def comparison(
    arms: Sequence[Arm], results: Results, settings: Settings, *, seeds: range, baselines: Sequence[Arm]
) -> str:
    """One row an arm: mIoU, the gain over each baseline, every seed."""
    of = {arm.name: scores_of(arm, results, settings, seeds=seeds) for arm in {*arms, *baselines}}
    columns = ("arm", "mIoU", *(f"over *{baseline.title}*" for baseline in baselines), "seeds", "pixel accuracy")

    def rows() -> Iterator[tuple[str, ...]]:
        for arm in arms:
            mine = of[arm.name]
            gains = (NONE if arm.name == baseline.name else gain(mine, of[baseline.name]) for baseline in baselines)
            each = ", ".join(f"{100 * record['miou']:.2f}" for _, record in sorted(mine.items())) or "not measured"
            accuracy = spread([record["pixel_accuracy"] for record in mine.values()])
            yield arm.title, spread([record["miou"] for record in mine.values()]), *gains, each, accuracy

    return table(columns, rows())


def class_table(arms: Sequence[Arm], results: Results, settings: Settings, *, seeds: range) -> str:
    """Mean IoU over seeds of every class, one row a class."""
    of = [scores_of(arm, results, settings, seeds=seeds) for arm in arms]
    classes = next((list(record["iou"]) for scores in of for record in scores.values()), [])

    def rows() -> Iterator[tuple[str, ...]]:
        for name in classes:
            found = [[record["iou"][name] for record in scores.values()] for scores in of]
            known = [[value for value in values if value is not None] for values in found]
            yield name, *(f"{100 * statistics.mean(values):.1f}" if values else NONE for values in known)

    return table(("class", *(f"`{arm.name}`" for arm in arms)), rows())


def label_table(results: Results, *, seeds: range) -> str:
    """How right the auto-labels are against the human labels of the same frames, which no arm with them saw."""

    def rows() -> Iterator[tuple[str, ...]]:
        for name in (*(f"self/{seed}" for seed in seeds), "cityscapes"):
            record = results.get(f"labels/{name}")
            if record is not None:
                scores = [f"{100 * record[key]:.1f}" for key in ("kept", "miou", "pixel_accuracy")]
                yield f"`{name}`", f"`{record['teacher']}`", *scores

    return table(("labels", "teacher", "pixels kept, %", "mIoU of those", "pixel accuracy of those"), rows())
