"""How the workers of a group come to stop after the same step."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from jobs.training.notice import Stop

EVERY_S = 0.25
"""Seconds between exchanges, where steps are shorter: one costs half a millisecond of every worker."""


class Agreement:
    """Lets all workers act on a notice after the same step.

    What is said in one exchange is known in the next. It runs beside the steps in between, over gloo in a process group
    of its own, so that neither the processor nor a GPU waits for it. How many steps lie in between follows from the
    longest step of any worker, which is exchanged too: all workers count alike.
    """

    def __init__(self, world: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._group = dist.new_group(backend="gloo") if world > 1 else None
        self._clock = clock
        self._said: tuple[Tensor, Any] | None = None
        self._interval = self._left = 1
        self._begin = clock()

    def reached(self, stop: Stop) -> Stop:
        """To be called after every step with what this worker has to say; what all of them shall do."""
        if self._group is None:
            return stop
        self._left -= 1
        if self._left:
            return Stop.NONE
        now = self._clock()
        step_s, self._begin = (now - self._begin) / self._interval, now
        agreed = self._result()
        said = torch.tensor([float(stop), step_s], dtype=torch.float64)
        self._said = said, dist.all_reduce(said, op=dist.ReduceOp.MAX, group=self._group, async_op=True)
        self._left = self._interval
        return agreed

    def close(self) -> None:
        """Take part in what the others may still wait for."""
        self._result()

    def _result(self) -> Stop:
        if self._said is None:
            return Stop.NONE
        said, work = self._said
        work.wait()
        self._said = None
        stop, step_s = said.tolist()
        self._interval = max(1, int(EVERY_S / step_s))
        return Stop(int(stop))
