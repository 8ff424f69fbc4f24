"""Timing of the training loop: rate, share of time spent waiting for data, time left."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Lap:
    """The steps since the last line of the log."""

    images_per_s: float
    wait_share: float
    """Share of the time in which the worker waited for a batch."""
    left_s: float
    """Seconds to the last step at this rate."""

    def metrics(self) -> dict[str, float]:
        """For the curve."""
        return {"train/images_per_s": self.images_per_s, "train/data_wait": self.wait_share}

    def text(self) -> str:
        """For the log."""
        return f"{self.images_per_s:.1f} img/s  data wait {self.wait_share:.0%}  left {_clock(self.left_s)}"


class StepTimer:
    """Measures steps, of which `first_step` are done already; `clock` returns seconds."""

    def __init__(
        self, *, steps: int, global_batch: int, first_step: int = 0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._steps, self._global_batch, self._clock = steps, global_batch, clock
        self._begin = self._lap_begin = clock()
        self._lap_step = first_step
        self._waited = 0.0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """The time inside the block counts as waiting for data."""
        begin = self._clock()
        yield
        self._waited += self._clock() - begin

    def lap(self, step: int) -> Lap:
        """Close the lap that ends with `step` steps done."""
        now = self._clock()
        seconds = max(now - self._lap_begin, 1e-9)
        rate = (step - self._lap_step) / seconds
        lap = Lap(rate * self._global_batch, min(1.0, self._waited / seconds), (self._steps - step) / max(rate, 1e-9))
        self._lap_begin, self._lap_step, self._waited = now, step, 0.0
        return lap

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return self._clock() - self._begin


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
