"""Notices that a training shall stop soon: this machine is taken away, the group gets another size, nothing is gained.

Any thread gives a notice; the loop asks at the end of every step. All workers of a group then stop after the same
step, save, and end in order, so that the next group goes on from there.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class Stop(IntEnum):
    """Why to stop; where workers say different things the largest counts."""

    NONE = 0
    RESIZE = 1
    """Go on as a group of another size."""
    TAKEN_AWAY = 2
    """A machine of the group is about to go."""
    NO_GAIN = 3
    """Validation has not improved for long enough: the run is at its end."""


Check = Callable[[], tuple[Stop, str]]


class Notices:
    """The notices given to this process."""

    def __init__(self) -> None:
        self._given = threading.Event()
        self._stop, self.reason = Stop.NONE, ""

    def give(self, stop: Stop, reason: str) -> None:
        """Ask the training in this process to stop."""
        if stop > self._stop:
            self._stop, self.reason = stop, reason
            self._given.set()

    @property
    def stop(self) -> Stop:
        """What was asked for."""
        return self._stop


class Watch:
    """Asks every `every_s` seconds, in a thread, whether there is reason for a notice."""

    def __init__(self, notices: Notices, checks: Sequence[Check], *, every_s: float = 0.5) -> None:
        self._notices, self._checks, self._every_s = notices, checks, every_s
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="notices", daemon=True)
        if checks:
            self._thread.start()

    def ask(self) -> Stop:
        """Ask now; what this process was asked to do."""
        for check in self._checks:
            stop, reason = check()
            if stop is not Stop.NONE:
                self._notices.give(stop, reason)
        return self._notices.stop

    def close(self) -> None:
        """Stop asking."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join(timeout=10)

    def _work(self) -> None:
        while not self._closing.wait(self._every_s):
            self.ask()


class Agreement:
    """Lets all workers act on a notice after the same step.

    What is said after one step is known after the next: the exchange, one number, runs beside the step, over gloo in a
    process group of its own, so that neither the processor nor a GPU waits for it.
    """

    def __init__(self, world: int) -> None:
        self._group = dist.new_group(backend="gloo") if world > 1 else None
        self._said: tuple[Tensor, Any] | None = None

    def reached(self, stop: Stop) -> Stop:
        """Say `stop` after this step; what was said by any worker after the step before."""
        if self._group is None:
            return stop
        before = self._result()
        said = torch.tensor([int(stop)])
        self._said = said, dist.all_reduce(said, op=dist.ReduceOp.MAX, group=self._group, async_op=True)
        return before

    def close(self) -> None:
        """Take part in what the others may still wait for."""
        if self._group is not None:
            self._result()

    def _result(self) -> Stop:
        if self._said is None:
            return Stop.NONE
        said, work = self._said
        work.wait()
        self._said = None
        return Stop(int(said))


NOTICES = Notices()
"""Of this process: a worker of Ray runs the training in a thread, and is told in others."""


def stop_this_process(stop: int, reason: str) -> None:
    """Give a notice to the training of the process this runs in."""
    NOTICES.give(Stop(stop), reason)


def listen_for_sigterm() -> None:
    """SIGTERM becomes a notice; a second one ends the process as it would have. Call it in the main thread.

    The main thread of a Ray worker sits in native code, where Python runs no handler. The signal's number still arrives
    at once in the pipe that Python keeps for event loops.
    """
    before = signal.getsignal(signal.SIGTERM)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    seen = [0]

    def handle(number: int, frame: Any) -> None:
        seen[0] += 1
        if seen[0] > 1 and callable(before):
            before(number, frame)

    def listen() -> None:
        while number := os.read(reader, 1):
            if number[0] == signal.SIGTERM:
                NOTICES.give(Stop.TAKEN_AWAY, "SIGTERM")

    signal.signal(signal.SIGTERM, handle)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=listen, name="sigterm", daemon=True).start()
