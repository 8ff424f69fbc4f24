"""Seconds of every phase of the training loop: waiting for data, transfer, forward, backward, update, and the rest."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterator

import torch


class PhaseTimer:
    """Adds up seconds by phase.

    Work of a GPU goes on after the call that asked for it, so its phases are measured by CUDA events, which are read
    only in `take`: nothing waits for the device in between. `clock` returns the seconds of this process.
    """

    def __init__(self, device: torch.device, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self._device, self._clock = device, clock
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextlib.contextmanager
    def host(self, phase: str) -> Iterator[None]:
        """The time this process spends in the block counts for `phase`."""
        begin = self._clock()
        try:
            yield
        finally:
            self._seconds[phase] += self._clock() - begin

    @contextlib.contextmanager
    def device(self, phase: str) -> Iterator[None]:
        """The time the device spends on what the block asks for counts for `phase`."""
        if self._device.type != "cuda":
            with self.host(phase), torch.profiler.record_function(phase):
                yield
            return
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record(torch.cuda.current_stream(self._device))
        with torch.profiler.record_function(phase):
            yield
        end.record(torch.cuda.current_stream(self._device))
        self._events.append((phase, begin, end))

    def take(self) -> dict[str, float]:
        """Seconds by phase since the last call. On a GPU this waits for the last phase to end."""
        if self._events:
            self._events[-1][2].synchronize()
        for phase, begin, end in self._events:
            self._seconds[phase] += begin.elapsed_time(end) / 1000
        taken = dict(self._seconds)
        self._events.clear()
        self._seconds.clear()
        return taken
