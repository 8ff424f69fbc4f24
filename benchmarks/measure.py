"""What every benchmark shares: ours and a peer in turns, the entry they end in, its table and its command line."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Effort:
    """How thoroughly to measure."""

    pairs: int = 5
    """Times that ours and the peer are measured in turn, after one warm-up each."""
    tiny: bool = False
    """Smallest inputs: shows that a benchmark runs and says nothing about speed."""

    @property
    def few(self) -> Effort:
        """For work of several seconds, whose single pairs differ little: at most three pairs."""
        return replace(self, pairs=min(self.pairs, 3))

    @property
    def more(self) -> Effort:
        """For work of many seconds whose single pairs differ by a tenth: nearly twice as many pairs."""
        return replace(self, pairs=2 * self.pairs - 1)

    @property
    def many(self) -> Effort:
        """For single pairs that differ by more than what is asked for: three times as many pairs."""
        return replace(self, pairs=3 * self.pairs)


@dataclass(frozen=True)
class Measured:
    """Ours against the peer."""

    ours: float
    peer: float
    unit: str
    more_is_better: bool = False
    """True for rates, false for times and bytes."""
    note: str = ""
    """Printed behind the figures."""

    @property
    def ratio(self) -> float:
        """How many times better ours is."""
        return self.ours / self.peer if self.more_is_better else self.peer / self.ours

    def as_json(self) -> dict[str, Any]:
        """The entry of the JSON file."""
        return {"ours": self.ours, "peer": self.peer, "ratio": self.ratio, "unit": self.unit}

    def __str__(self) -> str:
        return f"{self.ratio:7.2f} x  ({self.ours:.4g} against {self.peer:.4g} {self.unit}) {self.note}".rstrip()


@dataclass(frozen=True)
class Skipped:
    """A benchmark that this machine cannot run."""

    reason: str

    def as_json(self) -> dict[str, Any]:
        """The entry of the JSON file."""
        return {"skipped": self.reason}

    def __str__(self) -> str:
        return f"skipped: {self.reason}"


Entries = Mapping[str, Measured | Skipped]
Benchmark = Callable[[Effort], Entries]


def cpu_pairs(
    ours: Callable[[], object], peer: Callable[[], object], *, effort: Effort, repeat: int = 1, note: str = ""
) -> Measured:
    """CPU-seconds of this process for one call of each, in turns.

    Args:
        repeat: calls that are timed together, for what takes less than some milliseconds.
    """
    pairs = []
    for number in range(effort.pairs + 1):
        first, second = (ours, peer) if number % 2 else (peer, ours)
        earlier, later = _cpu_seconds(first, repeat), _cpu_seconds(second, repeat)
        pairs.append((earlier, later) if number % 2 else (later, earlier))
    return median_pair(pairs[1:], unit="CPU-s", note=note)


def median_pair(
    pairs: list[tuple[float, float]], *, unit: str, more_is_better: bool = False, note: str = ""
) -> Measured:
    """The pair (ours, peer) whose ratio is the median of all (the lower one of two)."""
    entries = [Measured(ours, peer, unit, more_is_better, note) for ours, peer in pairs]
    middle = statistics.median_low([entry.ratio for entry in entries])
    return next(entry for entry in entries if entry.ratio == middle)


def _cpu_seconds(work: Callable[[], object], repeat: int) -> float:
    start = time.process_time()
    for _ in range(repeat):
        work()
    return (time.process_time() - start) / repeat


def command(description: str | None, *benchmarks: Benchmark) -> None:
    """Run benchmarks as a command: print every entry as it comes, write all so far as JSON where asked to.

    One torch thread, so that CPU-seconds are those of the work and not of threads that wait for each other.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=Effort.pairs, help="times to measure ours and the peer in turn")
    parser.add_argument("--tiny", action="store_true", help="smallest inputs: shows that it runs, measures nothing")
    parser.add_argument("--output", help="JSON file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    entries: dict[str, Measured | Skipped] = {}
    for benchmark in benchmarks:
        for name, entry in benchmark(Effort(arguments.pairs, arguments.tiny)).items():
            entries[name] = entry
            print(f"{name:<32} {entry}", flush=True)
        if arguments.output:
            write(entries, Path(arguments.output))


def write(entries: Entries, path: Path) -> None:
    """Write a JSON object from name to `{ours, peer, ratio, unit}`, or `{skipped}` with the reason."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({name: entry.as_json() for name, entry in entries.items()}, indent=2) + "\n")
