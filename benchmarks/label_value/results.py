"""What was measured, in one small file that is kept with the code; what stands there is not measured again."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def alone(place: Path) -> Iterator[None]:
    """Wait until no other process is in a block of this name: several may share one output folder."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class Results:
    """Records by name, each with the fingerprint of the settings that it was measured with.

    Args:
        path: the JSON file; made with the first record.
        lock: a file that writers wait for.
    """

    def __init__(self, path: Path, *, lock: Path) -> None:
        self.path, self._lock = path, lock

    def get(self, name: str, *, fingerprint: str | None = None) -> dict[str, Any] | None:
        """The record of that name, where it was measured with these settings (default: with any)."""
        record: dict[str, Any] | None = self._read().get(name)
        if record is None or (fingerprint is not None and record["fingerprint"] != fingerprint):
            return None
        return record

    def add(self, name: str, record: dict[str, Any]) -> None:
        """Write a record, in the place of one with other settings."""
        with alone(self._lock):
            table = self._read() | {name: record}
            self.path.parent.mkdir(parents=True, exist_ok=True)
            partial = self.path.with_suffix(".partial")
            lines = [f"{json.dumps(key)}: {json.dumps(table[key])}" for key in sorted(table)]
            partial.write_text("{\n" + ",\n".join(lines) + "\n}\n")
            os.replace(partial, self.path)

    def _read(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.path.read_text()) if self.path.exists() else {}
        return found
