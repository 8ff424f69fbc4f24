"""Ways to a tracking server that never hold up the work: at once with a journal behind, or from a thread."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from jobs.journal import Entry, Journal

log = logging.getLogger(__name__)

RETRY_AFTER_S = 30.0  # after a failed call everything goes to the journal for so long
BATCH_METRICS = 1000  # MLflow's limit for one call
SEND_EVERY_S = 2.0

Send = Callable[[Entry], None]
Point = list[Any]
"""Key, value, time in milliseconds, step."""


class Refused(ValueError):
    """The server answers and does not take an entry; sending it again would change nothing."""


class Outbox:
    """Sends entries at once; what the server does not take goes to the journal."""

    def __init__(self, send: Send, *, journal: Journal) -> None:
        self.journal = journal
        self._transmit = send
        self._down_until = 0.0
        self._warned = False
        self._lock = threading.Lock()

    def send(self, entry: Entry) -> None:
        """Send an entry, or keep it for later. Never raises for a reason on the server's side."""
        with self._lock:
            if time.monotonic() < self._down_until:
                self.journal.append(entry)
                return
            try:
                self._transmit(entry)
            except Refused as error:
                log.warning("MLflow refused %s: %s", entry.kind, first_line(error))
            except Exception as error:  # whatever the client library raises: journalled, said once, the job goes on
                self._keep(entry, error)

    def drain(self) -> None:
        """Send what waits in the journal, as far as the server takes it."""
        with self._lock:
            self._drain()

    def _drain(self) -> None:
        try:
            sent = self.journal.replay(self._transmit_or_drop)
        except Exception as error:  # the rest stays in the journal
            self._down_until = time.monotonic() + RETRY_AFTER_S
            left = len(self.journal.entries())
            log.warning(
                "MLflow: %d entries stay in %s (%s); when the server is back, the same command sends them",
                left,
                self.journal.path,
                first_line(error),
            )
            return
        self._down_until = 0.0
        if sent:
            log.info("MLflow: sent %d entries that had waited in %s", sent, self.journal.path)
        if self.journal.path.exists():
            log.warning("MLflow: some entries could not be sent and stay in %s", self.journal.path)

    def _transmit_or_drop(self, entry: Entry) -> None:
        try:
            self._transmit(entry)
        except Refused as error:
            log.warning("MLflow refused %s: %s", entry.kind, first_line(error))

    def _keep(self, entry: Entry, error: Exception) -> None:
        self._down_until = time.monotonic() + RETRY_AFTER_S
        self.journal.append(entry)
        if not self._warned:
            self._warned = True
            log.warning(
                "MLflow does not answer (%s); the job goes on, what it logs waits in %s",
                first_line(error),
                self.journal.path,
            )


class BackgroundSender:
    """Sends metric points from a thread of its own, in batches, and tries again when that fails.

    Batches are `SEND_EVERY_S` apart, unless one is full: a call costs some milliseconds of the processor that trains.
    `send` gets the points as an entry of kind "curve". What does not fit the queue or is left at the end is not sent:
    whoever puts points keeps them as well.
    """

    def __init__(self, run_id: str, *, send: Send, max_points: int = 20_000) -> None:
        self._run_id, self._send = run_id, send
        self._max_points, self._left_out = max_points, 0
        self._points: deque[Point] = deque()
        self._changed = threading.Condition()
        self._closing = self._warned = False
        self._thread = threading.Thread(target=self._work, name="mlflow-sender", daemon=True)
        self._thread.start()

    def put(self, points: Sequence[Point]) -> None:
        """Queue points; never waits for the server."""
        with self._changed:
            if self._closing or len(self._points) + len(points) > self._max_points:
                self._left_out += len(points)
                return
            self._points.extend(points)
            self._changed.notify()

    def put_first(self, points: Sequence[Point]) -> None:
        """Queue the points of an earlier process, however many they are, before any other."""
        with self._changed:
            self._points.extendleft(reversed(points))
            self._max_points += len(points)
            self._changed.notify()

    def close(self, timeout: float = 10.0) -> int:
        """Send what is queued, for at most `timeout` seconds; return how many points were never sent."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(timeout)
        with self._changed:
            self._left_out += len(self._points)
            self._points.clear()
            return self._left_out

    def _work(self) -> None:
        wait_s = 1.0
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._points or self._closing)
                batch = [self._points[index] for index in range(min(BATCH_METRICS, len(self._points)))]
                last_try = self._closing
            if not batch:
                return
            if self._sent(batch):
                wait_s = 1.0
                self._forget(len(batch))
                self._pause(SEND_EVERY_S, or_points=BATCH_METRICS)
            elif last_try:
                return
            else:
                self._pause(wait_s)
                wait_s = min(2 * wait_s, RETRY_AFTER_S)

    def _pause(self, seconds: float, *, or_points: float = math.inf) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._closing or len(self._points) >= or_points, timeout=seconds)

    def _forget(self, count: int) -> None:
        with self._changed:
            for _ in range(min(count, len(self._points))):
                self._points.popleft()

    def _sent(self, batch: list[Point]) -> bool:
        try:
            self._send(Entry(self._run_id, "curve", {"points": batch}))
        except Refused as error:
            log.warning("MLflow refused metrics: %s", first_line(error))
        except Exception as error:  # whatever the client library raises: the points stay queued
            if not self._warned:
                self._warned = True
                log.warning("MLflow does not take metrics (%s); training goes on", first_line(error))
            return False
        return True


def first_line(error: BaseException) -> str:
    """The first line of an error's text, at most 200 characters."""
    lines = str(error).splitlines()
    return (lines[0] if lines else type(error).__name__)[:200]
