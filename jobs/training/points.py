"""The training curve: every point is in a file before anybody else hears of it, and the file is what counts."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from jobs.tracked_run import now_ms
from pipelines import storage

FILE = "metrics.jsonl"


class Sender(Protocol):
    """What passes points on in the background; never waits, and may lose some: they are in the file."""

    def log(self, metrics: Mapping[str, float], step: int, time_ms: int) -> None:
        """Queue the numbers of one step."""

    def close(self) -> object:
        """Send what is queued, for a bounded time."""


class PointLog:
    """Appends points to `<run>/metrics.jsonl` and hands them to a sender.

    An object store cannot append, so there the file lies on the local disk and `flush` uploads it. Points after
    `from_step` are forgotten (they will come again); the sender does not get a step twice.
    """

    def __init__(self, run: str, *, from_step: int, sender: Sender | None = None) -> None:
        self._uri = storage.join(run, FILE)
        self._sender = sender
        earlier = read_points(run)
        self._sent_step = max((int(point["step"]) for point in earlier), default=0)
        kept = [point for point in earlier if point["step"] <= from_step]
        storage.write_text(self._uri, "".join(map(_line, kept)))
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        path = Path(self._uri)
        if storage.is_remote(self._uri):
            self._scratch = tempfile.TemporaryDirectory()
            path = Path(self._scratch.name, FILE)
            path.write_text("".join(map(_line, kept)))
        self._file = path.open("a", buffering=1, encoding="utf-8")

    def log(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Record the numbers of one step and the present time."""
        time_ms = now_ms()
        self._file.write(_line({"step": step, "time_ms": time_ms, **metrics}))
        if self._sender is not None and step > self._sent_step:
            self._sender.log(metrics, step, time_ms)

    def flush(self) -> None:
        """Make what was recorded visible in the run's folder."""
        self._file.flush()
        if self._scratch is not None:
            storage.write_bytes(self._uri, Path(self._file.name).read_bytes())

    def close(self) -> None:
        """Flush, and let the sender finish."""
        self.flush()
        self._file.close()
        if self._scratch is not None:
            self._scratch.cleanup()
        if self._sender is not None:
            self._sender.close()


def read_points(run: str) -> list[dict[str, Any]]:
    """The points of a run, in the order of their steps; a line cut off by a crash is left out."""
    uri = storage.join(run, FILE)
    if not storage.exists(uri):
        return []
    points = []
    for line in storage.read_bytes(uri).decode(errors="replace").splitlines():
        try:
            point = json.loads(line)
        except json.JSONDecodeError:
            continue
        points.append(point)
    return points


def _line(point: Mapping[str, Any]) -> str:
    return json.dumps(dict(point)) + "\n"
