"""The training curve: every point is in a file before anybody else hears of it, and the file is what counts.

Points carry their own time, and what was recorded once is never recorded again: a step that is trained a second time,
after a fault, leaves its first point as it is. So whatever is sent again is identical.
"""

from __future__ import annotations

import json
import logging
import tempfile
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from jobs.tracked_run import now_ms
from pipelines import storage

log = logging.getLogger(__name__)

FILE = "metrics.jsonl"
STAMPS = ("step", "time_ms")

Record = dict[str, Any]
"""One line of the file: `step`, `time_ms`, and numbers by name."""


class Sender(Protocol):
    """What passes points on in the background; never waits, and may lose some: they are in the file."""

    def catch_up(self, curve: Sequence[Mapping[str, Any]]) -> None:
        """Queue what was recorded earlier, of which some may never have been sent."""

    def log(self, metrics: Mapping[str, float], step: int, time_ms: int) -> None:
        """Queue the numbers of one step."""

    def close(self) -> object:
        """Send what is queued, for a bounded time."""


class PointLog:
    """Appends points to `<run>/metrics.jsonl` and hands them to a sender; safe to use from several threads.

    An object store cannot append, so there the file lies on the local disk and `flush` uploads it. The curve also lies
    in every checkpoint: `saved` is that of the one the run goes on from, with `from_step` steps done, for the machine
    that kept the file may be gone.
    """

    def __init__(self, run: str, *, from_step: int, saved: str = "", sender: Sender | None = None) -> None:
        self._uri = storage.join(run, FILE)
        self._sender = sender
        self._lock, self._warned = threading.Lock(), False
        earlier = merge_points(read_points(run), parse_points(saved))
        self._recorded = {(record["step"], key) for record in earlier if record["step"] > from_step for key in record}
        self._lines = [_line(record) for record in earlier]
        storage.write_text(self._uri, self.text())
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        path = Path(self._uri)
        if storage.is_remote(self._uri):
            self._scratch = tempfile.TemporaryDirectory()
            path = Path(self._scratch.name, FILE)
            path.write_text(self.text())
        self._file = path.open("a", buffering=1, encoding="utf-8")
        if sender is not None and earlier:
            sender.catch_up(earlier)

    def log(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Record the numbers of one step and the present time; those that the step has already stay as they are."""
        with self._lock:
            new = {key: value for key, value in metrics.items() if (step, key) not in self._recorded}
            if not new:
                return
            time_ms = now_ms()
            self._lines.append(_line({"step": step, "time_ms": time_ms, **new}))
            is_written = self._write(self._lines[-1])
        if self._sender is not None and is_written:
            self._sender.log(new, step, time_ms)

    def _write(self, line: str) -> bool:
        """Append a line; whether it is in the file. A full disk stops no training: the line waits, and is in the next
        checkpoint anyway.
        """
        try:
            self._file.write(line)
        except OSError as error:
            self._warn(error)
            return False
        return True

    def _warn(self, error: OSError) -> None:
        if not self._warned:
            self._warned = True
            log.warning("%s cannot be written (%s); the training goes on", self._uri, error.strerror or error)

    def text(self) -> str:
        """The whole curve so far, as a checkpoint takes it along."""
        return "".join(self._lines)

    def flush(self) -> None:
        """Make what was recorded visible in the run's folder."""
        with self._lock:
            self._file.flush()
            text = self.text()
        if self._scratch is not None:
            storage.write_text(self._uri, text)

    def close(self) -> None:
        """Flush, and let the sender finish."""
        for end in (self.flush, self._file.close):
            try:
                end()
            except OSError as error:
                self._warn(error)
        if self._scratch is not None:
            self._scratch.cleanup()
        if self._sender is not None:
            self._sender.close()


def read_points(run: str) -> list[Record]:
    """The points of a run, in the order of their steps; a line cut off by a crash is left out."""
    uri = storage.join(run, FILE)
    return merge_points(parse_points(storage.read_bytes(uri).decode(errors="replace"))) if storage.exists(uri) else []


def parse_points(text: str) -> list[Record]:
    """The records of a file's lines; a line that a crash cut off, or that is no record, is left out."""
    records: list[Record] = []
    for line in text.splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            records.append(record)
    return records


def merge_points(*curves: Iterable[Record]) -> list[Record]:
    """One curve of several, in the order of the steps: of a number given twice for a step the first one counts."""
    merged: dict[int, list[Record]] = {}
    seen: set[tuple[int, str]] = set()
    for record in (record for curve in curves for record in curve):
        step = record["step"]
        new = {key for key in record if key not in STAMPS and (step, key) not in seen}
        if new:
            seen.update((step, key) for key in new)
            kept = {key: value for key, value in record.items() if key in new or key in STAMPS}
            merged.setdefault(step, []).append(kept)
    return [record for step in sorted(merged) for record in merged[step]]


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(dict(record)) + "\n"
