"""Checkpoints written behind the training: it copies its state and goes on, a thread does the rest.

One save is under way at a time. Where the next one is due before that has ended, the training waits for it before it
copies, so that memory holds one copy of the state and a lost worker costs at most an interval and the time of a save.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from jobs.outbox import first_line
from jobs.training.checkpoints import GivenUpError

ATTEMPTS = 5
"""Tries of one save, 1, 2, 4 and 8 s apart; an object store has its own patience inside each."""
MAX_FAILURES = 3
"""Saves that may fail one after the other before the run ends: it would lose too much."""

Write = Callable[[Callable[[], bool]], object]
"""Writes one checkpoint. Is given a function that says whether the checkpoint is still wanted."""


class Saver:
    """Runs saves in the background, with a time-out and retries.

    A save that fails is told, and the training goes on without that checkpoint.
    """

    def __init__(self, *, say: Callable[[str], None], timeout_s: float, backoff_s: float = 1.0) -> None:
        self._say, self._timeout_s, self._backoff_s = say, timeout_s, backoff_s
        self._current: _Save | None = None
        self._failures = 0

    def submit(self, name: str, write: Write) -> None:
        """Start a save when the one before has ended.

        Args:
            name: for messages, such as "checkpoint of step 500".

        Raises:
            ValueError: MAX_FAILURES saves in a row have failed.
        """
        self.flush()
        self._current = _Save(name, write, say=self._say, backoff_s=self._backoff_s)

    def flush(self) -> bool:
        """Wait until the save under way has ended; whether it succeeded (or there was none).

        Raises:
            ValueError: MAX_FAILURES saves in a row have failed.
        """
        save, self._current = self._current, None
        if save is None:
            return True
        reason = save.wait(self._timeout_s)
        if reason is None:
            self._failures = 0
            return True
        self._failures += 1
        self._say(f"{save.name}: not saved ({reason}); training goes on without it")
        if self._failures >= MAX_FAILURES:
            raise ValueError(
                f"{self._failures} checkpoints in a row could not be saved (the last one: {reason}); "
                "mend the place that `output` names, the same command goes on from the newest that is there"
            )
        return False

    def close(self) -> None:
        """Wait for the save under way; never raises."""
        with contextlib.suppress(ValueError):
            self.flush()


class _Save:
    """One save, in a thread of its own."""

    def __init__(self, name: str, write: Write, *, say: Callable[[str], None], backoff_s: float) -> None:
        self.name = name
        self._write, self._say, self._backoff_s = write, say, backoff_s
        self._begin = time.monotonic()
        self._given_up, self._ended = threading.Event(), threading.Event()
        self._failure: str | None = None
        threading.Thread(target=self._work, name="checkpoint", daemon=True).start()

    def wait(self, timeout_s: float) -> str | None:
        """Wait until the save is `timeout_s` old at most; why it failed, None if it did not."""
        if self._ended.wait(max(0.0, self._begin + timeout_s - time.monotonic())):
            return self._failure
        self._given_up.set()
        return f"not done after {timeout_s:g} s"

    def _work(self) -> None:
        try:
            self._failure = self._last_failure()
        finally:
            self._ended.set()

    def _last_failure(self) -> str | None:
        """Try until it succeeds (None), nobody waits any more, or the attempts are used up."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                self._write(lambda: not self._given_up.is_set())
                return None
            except GivenUpError:
                return None
            except Exception as error:  # of the store, or a bug of ours: told, and it ends no training that runs well
                failure = first_line(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
            if attempt < ATTEMPTS:
                self._say(f"{self.name}: {failure}; trying again")
                self._given_up.wait(self._backoff_s * 2 ** (attempt - 1))
        return failure


def host_copy(value: Any) -> Any:
    """A copy of nested tensors and plain values that the next step does not change, in host memory.

    Copies from a GPU go to pinned memory and are not waited for: wait for the event of `copied` before reading them.
    """
    if isinstance(value, Tensor):
        return _host_tensor(value.detach())
    if isinstance(value, Mapping):
        return {key: host_copy(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(host_copy(item) for item in value)
    return value


def _host_tensor(tensor: Tensor) -> Tensor:
    if tensor.device.type != "cuda":
        return tensor.clone(memory_format=torch.contiguous_format)
    copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return copy.copy_(tensor, non_blocking=True)


def copied(device: torch.device) -> Callable[[], None]:
    """Call it right after `host_copy`; what it returns waits until the copies are there."""
    if device.type != "cuda":
        return lambda: None
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(device))
    return event.synchronize
