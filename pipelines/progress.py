"""How far a job is: a bar on a terminal, plain lines in a log."""

from __future__ import annotations

import shutil
import sys
import time
from types import TracebackType
from typing import Self, TextIO

BAR_WIDTH, MIN_BAR_WIDTH = 30, 8
TERMINAL_INTERVAL_S = 0.2
LOG_INTERVAL_S = 15.0


class Progress:
    """Counts finished units and tells rate, share and time left.

    Args:
        total: units to do in this run.
        unit: what is counted, in the plural.
        label: what the job is called in every line.
        stream: where to write; default standard error.
    """

    def __init__(self, *, total: int, unit: str, label: str, stream: TextIO | None = None) -> None:
        self.total, self.unit, self.label = total, unit, label
        self.done = 0
        self._told: int | None = None
        self._stream = stream or sys.stderr
        self._terminal = self._stream.isatty()
        self._start = self._shown = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._terminal or self._told != self.done:
            self._show()
        if self._terminal:
            self._stream.write("\n")
            self._stream.flush()

    def update(self, count: int = 1) -> None:
        """Add `count` finished units."""
        self.done += count
        interval = TERMINAL_INTERVAL_S if self._terminal else LOG_INTERVAL_S
        if time.monotonic() - self._shown >= interval:
            self._show()

    @property
    def rate(self) -> float:
        """Units per second since the start."""
        elapsed = time.monotonic() - self._start
        return self.done / elapsed if elapsed > 0 else 0.0

    def line(self) -> str:
        """One line with count, share, rate and time left."""
        share = self.done / self.total if self.total else 1.0
        left = (self.total - self.done) / self.rate if self.rate else 0.0
        ending = f"{self.rate:.1f} {self.unit}/s, {_duration(left)} left" if self.done < self.total else "done"
        return f"{self.label}: {self.done}/{self.total} {self.unit} ({share:.0%}), {ending}"

    def _show(self) -> None:
        self._shown, self._told = time.monotonic(), self.done
        if self._terminal:
            self._stream.write(f"\r{self._bar()}\x1b[K")
        else:
            self._stream.write(self.line() + "\n")
        self._stream.flush()

    def _bar(self) -> str:
        """Bar and line, never wider than the terminal: a line that wraps cannot be drawn over."""
        columns, line = shutil.get_terminal_size().columns - 1, self.line()
        width = min(BAR_WIDTH, columns - len(line) - len("[] "))
        if width < MIN_BAR_WIDTH:
            return line[:columns]
        filled = min(width, round(width * (self.done / self.total if self.total else 1.0)))
        return f"[{'#' * filled}{'.' * (width - filled)}] {line}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
