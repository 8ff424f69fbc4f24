"""The groups of workers that trained a run, one after the other: when each began, where, and from which step.

<run>/groups.json   written by rank 0 whenever a group begins
"""

from __future__ import annotations

import json
import os
import socket
from typing import Any

from jobs.tracked_run import now_ms
from jobs.training.plan import Worker
from jobs.training.reductions import gather_objects
from pipelines import storage

FILE = "groups.json"


def note_group(run: str, worker: Worker, *, from_step: int) -> None:
    """Note that a group begins. Every worker takes part, rank 0 writes."""
    members = gather_objects({"host": socket.gethostname(), "pid": os.getpid()})
    if worker.rank == 0:
        group = {"time_ms": now_ms(), "from_step": from_step, "workers": members}
        storage.write_text(storage.join(run, FILE), json.dumps([*read_groups(run), group], indent=1))


def read_groups(run: str) -> list[dict[str, Any]]:
    """The groups of a run so far, in order: time_ms, from_step, and the workers in rank order (host, pid)."""
    place = storage.join(run, FILE)
    return list(storage.read_json(place)) if storage.exists(place) else []
