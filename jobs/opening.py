"""The tracking run of a job, opened as soon as its server answers, which may be long after the job began."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace

from jobs.journal import Entry
from jobs.outbox import Send

TRY_EVERY_S = 5.0


class Opening:
    """Opens the run before the first entry is sent, and gives its id to entries written before it had one."""

    def __init__(self, open_run: Callable[[], str], send: Send, *, run_id: str) -> None:
        """
        Args:
            open_run: continues or makes the run on the server and returns its id; raises while that is away.
            send: sends one entry to an open run.
            run_id: the id of the run in an earlier process of the job; empty where there was none.
        """
        self.run_id = run_id
        self._open_run, self._send = open_run, send
        self._is_open = False
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def __call__(self, entry: Entry) -> None:
        """Send one entry.

        Raises:
            Exception: what opening or sending raised; it can be tried again.
        """
        self.open()
        self._send(entry if entry.run_id else replace(entry, run_id=self.run_id))

    def open(self) -> None:
        """Open the run, once.

        Raises:
            Exception: the server is away.
        """
        with self._lock:
            if not self._is_open:
                self.run_id = self._open_run()
                self._is_open = True

    def keep_trying(self, then: Callable[[], None]) -> None:
        """Try every few seconds, in a thread, and call `then` when the run is open."""

        def work() -> None:
            while not self._closing.wait(TRY_EVERY_S):
                try:
                    self.open()
                except Exception:  # the server is still away; whoever waits for it has been told
                    continue
                then()
                return

        self._thread = threading.Thread(target=work, name="mlflow-opening", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop trying."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join(timeout=60)
