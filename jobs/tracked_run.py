"""What a job says about itself while it runs: metrics, settings, files, pictures. Knows no tracker."""

from __future__ import annotations

import io
import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from jobs.journal import Entry
from jobs.outbox import BATCH_METRICS, Outbox, Point

MAX_VALUE_CHARS = 500

DatasetRecord = Mapping[str, str]
"""`name`, `source` (an address), `fingerprint`, and perhaps `context`: train, test, output …"""


def metric_key(*parts: str) -> str:
    """A metric name `a/b/c`; characters that MLflow does not take, and `/` inside a part, become `_`."""
    return "/".join(re.sub(r"[^A-Za-z0-9_\-. ]", "_", part) for part in parts)


class Run:
    """An open run. Nothing here raises because a server is down; with tracking disabled nothing happens at all."""

    def __init__(self, run_id: str, tracking_uri: str, outbox: Outbox | None) -> None:
        self.run_id = run_id
        """Empty where tracking is disabled."""
        self.tracking_uri = tracking_uri
        self._outbox = outbox

    @property
    def address(self) -> dict[str, str]:
        """Id and tracking URI, as they stand in `result.json`."""
        return {"run_id": self.run_id, "tracking_uri": self.tracking_uri}

    @property
    def journal(self) -> str:
        """File of what the server has not taken; it is sent when the run is closed."""
        return str(self._outbox.journal.path) if self._outbox else ""

    def log_metrics(self, metrics: Mapping[str, float], *, step: int = 0) -> None:
        """Log numbers of one step."""
        points = points_of(metrics, step)
        for start in range(0, len(points), BATCH_METRICS):
            self._send("metrics", points=points[start : start + BATCH_METRICS])

    def log_curve(self, curve: Sequence[Mapping[str, Any]]) -> None:
        """Log what the server lacks of a training curve: points with `step`, `time_ms` and numbers.

        Workers send their points without waiting for the server; those of a dead worker or server are missing there.
        """
        points = curve_points(curve)
        if points:
            self._send("curve", points=points)

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log settings, nested tables as dotted keys; a value that has changed since becomes a tag `changed.<key>`."""
        self._send("params", params=flatten(params))

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags; empty values are left out."""
        self._send("tags", tags={key: value for key, value in tags.items() if value})

    def log_dict(self, value: Any, name: str) -> None:
        """Log a JSON-serialisable object as a file."""
        self.log_text(json.dumps(value, indent=2), name)

    def log_text(self, text: str, name: str) -> None:
        """Log a text file."""
        self._send("text", text=text, name=name)

    def log_file(self, path: str | Path, *, folder: str | None = None) -> None:
        """Log a local file, perhaps into a folder."""
        self._send("file", path=os.path.abspath(path), folder=folder)

    def log_image(self, key: str, image: npt.NDArray[np.uint8], *, step: int = 0) -> None:
        """Log an image (H, W, 3) uint8 under a key, so that the interface shows it over the steps."""
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        self._send("image", key=metric_key(*key.split("/")), step=step, timestamp=now_ms(), png=buffer.getvalue())

    def log_table(self, name: str, columns: Mapping[str, Sequence[Any]]) -> None:
        """Log a table, `name` ending in .json, in the form of `mlflow.log_table`; an older one is replaced."""
        rows = [list(row) for row in zip(*columns.values(), strict=True)]
        self.log_text(json.dumps({"columns": list(columns), "data": rows}), name)
        self.set_tags({"mlflow.loggedArtifacts": json.dumps([{"path": name, "type": "table"}])})

    def log_dataset(self, dataset: DatasetRecord) -> None:
        """Log source and fingerprint of a data set the job reads or writes, never its content."""
        self._send("dataset", **dict(dataset))
        self.set_tags({f"dataset.fingerprint.{dataset.get('context', 'input')}": dataset["fingerprint"]})

    def drain(self) -> None:
        """Send what waits in the journal."""
        if self._outbox is not None:
            self._outbox.drain()

    def close(self, status: str) -> None:
        """Send what waits and end the run as FINISHED, FAILED or KILLED; `track` does this."""
        if self._outbox is not None:
            self._outbox.drain()
            self._send("status", status=status, end_time=now_ms())

    def _send(self, kind: str, **payload: Any) -> None:
        if self._outbox is not None:
            self._outbox.send(Entry(self.run_id, kind, payload))


def flatten(table: Mapping[str, Any], *, prefix: str = "") -> dict[str, str]:
    """Nested settings as dotted keys with text values of at most 500 characters."""
    flat: dict[str, str] = {}
    for key, value in table.items():
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, prefix=f"{prefix}{key}."))
        elif isinstance(value, (list, tuple)) and any(isinstance(item, Mapping) for item in value):
            flat.update(flatten({str(index): item for index, item in enumerate(value)}, prefix=f"{prefix}{key}."))
        else:
            text = value if isinstance(value, str) else json.dumps(value)
            flat[f"{prefix}{key}"] = text[:MAX_VALUE_CHARS]
    return flat


def points_of(metrics: Mapping[str, float], step: int, time_ms: int | None = None) -> list[Point]:
    """The numbers of one step, as an outbox sends them; without a time that of now."""
    time_ms = now_ms() if time_ms is None else time_ms
    return [[metric_key(*key.split("/")), float(value), time_ms, step] for key, value in metrics.items()]


def curve_points(curve: Sequence[Mapping[str, Any]]) -> list[Point]:
    """The numbers of a curve (points with `step`, `time_ms` and numbers), as an outbox sends them."""
    points: list[Point] = []
    for point in curve:
        numbers = {key: value for key, value in point.items() if key not in ("step", "time_ms")}
        points += points_of(numbers, point["step"], point.get("time_ms"))
    return points


def now_ms() -> int:
    """The present time as MLflow counts it."""
    return int(time.time() * 1000)
