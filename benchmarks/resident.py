"""Resident memory that work takes, measured in a process of its own.

python -m benchmarks.resident benchmarks.position_attention:prepare_ours 97
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.processes import PROC

ROOT = Path(__file__).resolve().parents[1]


def peak_bytes(prepare: str, *arguments: int) -> float:
    """Bytes by which a fresh process with one torch thread grows at most while it works.

    Args:
        prepare: `module:function`; called with the arguments it makes the inputs and returns the work to do.
    """
    command = [sys.executable, "-m", "benchmarks.resident", prepare, *map(str, arguments)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    return float(done.stdout.split()[-1])


def _growth(work: Callable[[], object]) -> int:
    page = os.sysconf("SC_PAGE_SIZE")
    (PROC / "self" / "clear_refs").write_text("5")  # forget the peak of making the inputs
    before = int((PROC / "self" / "statm").read_text().split()[1]) * page
    work()
    return max(_peak() - before, page)  # less than a page cannot be told from nothing


def _peak() -> int:
    """Largest resident size of this process; getrusage would tell its parent's where that was larger."""
    lines = (PROC / "self" / "status").read_text().splitlines()
    (kilobytes,) = (line.split()[1] for line in lines if line.startswith("VmHWM:"))
    return int(kilobytes) * 1024


if __name__ == "__main__":
    torch.set_num_threads(1)
    module, _, name = sys.argv[1].partition(":")
    print(_growth(getattr(importlib.import_module(module), name)(*map(int, sys.argv[2:]))))
