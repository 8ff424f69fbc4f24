"""Validations of a run: which weights wait for one, what came out, and whether there is still a gain.

    <run>/validation/step-00000500/   weights of that step, published by rank 0, taken away after their validation
    <run>/validation.json             what every finished validation found; the driver alone writes it

What is decided from them (the best step, the end of the run) is a function of the finished validations alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jobs.training.notice import Stop
from jobs.training.plan import Metric
from jobs.training.publish import is_published
from pipelines import storage

FILE, FOLDER = "validation.json", "validation"
Row = dict[str, Any]
"""One finished validation: step, time_ms, seconds, and the metrics by name."""

_NAME = re.compile(r"^step-(\d{8,})$")


def copy_folder(step: int) -> str:
    """Where the weights of a step lie, below the run's folder."""
    return f"{FOLDER}/step-{step:08d}"


def waiting_steps(run: str) -> list[int]:
    """Steps whose weights lie there whole, in order."""
    place = storage.join(run, FOLDER)
    names = storage.list_dirs(place) if storage.is_dir(place) else []
    steps = sorted(int(match.group(1)) for match in map(_NAME.match, names) if match)
    return [step for step in steps if is_published(run, copy_folder(step))]


def read_rows(run: str) -> list[Row]:
    """The finished validations of a run, in the order of their steps."""
    place = storage.join(run, FILE)
    return list(storage.read_json(place)["validations"]) if storage.exists(place) else []


def write_rows(run: str, rows: Sequence[Row], *, metric: Metric) -> None:
    """Keep the finished validations, and which one is the best."""
    best = best_row(rows, metric)
    table = {"metric": metric, "best": None if best is None else best["step"], "validations": list(rows)}
    storage.write_text(storage.join(run, FILE), json.dumps(table, indent=2))


def merge_rows(*tables: Iterable[Row]) -> list[Row]:
    """All validations in the order of their steps; of two for one step the first counts."""
    merged: dict[int, Row] = {}
    for row in (row for table in tables for row in table):
        merged.setdefault(row["step"], row)
    return [merged[step] for step in sorted(merged)]


def best_row(rows: Sequence[Row], metric: Metric) -> Row | None:
    """The validation with the largest metric, the earliest of equal ones; one that is no number is never the best."""
    scored = [row for row in rows if row[metric] == row[metric]]
    return max(scored, key=lambda row: (row[metric], -row["step"]), default=None)


def no_gain(rows: Sequence[Row], *, metric: Metric, patience: int) -> str | None:
    """Why the run is at its end: `patience` validations after the best one brought nothing. None while it goes on."""
    best = best_row(rows, metric)
    since = [row for row in rows if best is None or row["step"] > best["step"]]
    if len(since) < patience:
        return None
    found = "never was a number" if best is None else f"was best at step {best['step']} ({best[metric]:.4f})"
    return f"{metric} {found}, and {len(since)} validation{'s' if len(since) > 1 else ''} since brought nothing better"


def points_of_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """A validation as a record of the curve, with the time it was found at."""
    stamps = {"step": row["step"], "time_ms": row["time_ms"]}
    return stamps | {f"val/{key}": value for key, value in row.items() if key not in stamps}


class ValidationNews:
    """What rank 0 knows of the validations, which other processes do meanwhile."""

    def __init__(self, run: str, *, metric: Metric, patience: int | None, saved: Sequence[Row]) -> None:
        self._run, self._metric, self._patience = run, metric, patience
        self.rows = merge_rows(read_rows(run), saved)

    def check(self) -> tuple[Stop, str]:
        """Look again, and say whether the run is at its end. A store that is away is asked again later."""
        try:
            self.rows = merge_rows(read_rows(self._run), self.rows)
        except OSError:
            return Stop.NONE, ""
        reason = None if self._patience is None else no_gain(self.rows, metric=self._metric, patience=self._patience)
        return (Stop.NONE, "") if reason is None else (Stop.NO_GAIN, reason)
