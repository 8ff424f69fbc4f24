"""CPU-seconds of a process and everything below it, from /proc: what a job costs, whichever processes do its work."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Process:
    """A running process."""

    pid: int
    parent: int
    cpu_s: float
    """User and system time of all its threads since it started."""
    command: str
    """Its command line, or the title it gave itself."""


def family(root: int) -> dict[int, Process]:
    """The process `root` and all below it, by process id."""
    running = {process.pid: process for entry in PROC.glob("[0-9]*") if (process := _read(entry)) is not None}
    found = {root: running[root]}
    while more := {pid: one for pid, one in running.items() if one.parent in found and pid not in found}:
        found |= more
    return found


def _read(folder: Path) -> Process | None:
    """A process by its folder in /proc; None where it has just ended."""
    try:
        stat, command = (folder / "stat").read_text(), (folder / "cmdline").read_bytes()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()  # behind the name, which may hold anything: state, parent, …
    ticks = int(fields[11]) + int(fields[12])
    return Process(
        int(folder.name), int(fields[1]), ticks / _TICKS_PER_S, command.replace(b"\0", b" ").decode().strip()
    )
