"""Notices that a training shall stop soon: this machine is taken away, the group gets another size, nothing is gained.

Any thread gives a notice; the loop asks at the end of every step. All workers of a group then stop after the same
step, save, and end in order, so that the next group goes on from there.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Any

log = logging.getLogger(__name__)


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
        was_told = False
        while not self._closing.wait(self._every_s):
            try:
                self.ask()
            except Exception as error:  # of Ray or the store: without this thread no notice would be heard any more
                if not was_told:
                    log.warning("notices: %s: %s; asking again", type(error).__name__, error)
                was_told = True


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
