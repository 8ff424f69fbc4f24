"""What a tracking server has not taken yet: a file of JSON lines beside the run, sent again later."""

from __future__ import annotations

import base64
import json
import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """One thing to tell the tracking server."""

    run_id: str
    kind: str
    """metrics, curve, params, tags, text, file, image, dataset or status."""
    payload: dict[str, Any]


class Journal:
    """Append-only file of entries, safe to use from several threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()

    def append(self, entry: Entry) -> None:
        """Write one entry. A disk that takes nothing loses it with a warning: tracking never stops a job."""
        try:
            with self._lock:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(_to_line(entry))
        except OSError as error:
            log.warning("lost for tracking: %s cannot be written (%s)", self.path, error.strerror)

    def entries(self) -> list[Entry]:
        """All entries in the order they were written; a half-written last line (a killed process) is left out."""
        if not self.path.exists():
            return []
        found = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                found.append(Entry(**json.loads(line, object_hook=_restore)))
            except json.JSONDecodeError:
                continue
        return found

    def replay(self, send: Callable[[Entry], None]) -> int:
        """Send every entry again, oldest first, and keep those that fail; returns how many were sent.

        Raises:
            Exception: what `send` raised for two entries in a row; both and all later ones are kept.
        """
        waiting = deque(self.entries())
        kept: list[Entry] = []
        sent, failed_before = 0, False
        try:
            while waiting:
                try:
                    send(waiting[0])
                except Exception:
                    if failed_before:
                        raise
                    kept.append(waiting.popleft())
                    failed_before = True
                else:
                    waiting.popleft()
                    sent, failed_before = sent + 1, False
        finally:
            self._keep([*kept, *waiting])
        return sent

    def _keep(self, entries: list[Entry]) -> None:
        with self._lock:
            if entries:
                scratch = self.path.with_suffix(".tmp")
                scratch.write_text("".join(map(_to_line, entries)), encoding="utf-8")
                scratch.replace(self.path)
            else:
                self.path.unlink(missing_ok=True)


def _to_line(entry: Entry) -> str:
    return json.dumps(vars(entry), default=_as_text) + "\n"


def _as_text(value: object) -> dict[str, str]:
    if isinstance(value, bytes):
        return {"base64": base64.b64encode(value).decode()}
    raise TypeError(f"{type(value).__name__} cannot be written to the tracking journal")


def _restore(table: dict[str, Any]) -> Any:
    return base64.b64decode(table["base64"]) if set(table) == {"base64"} else table
