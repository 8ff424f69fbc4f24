"""How the workers of a group come to stop after the same step."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from jobs.training.notice import Stop


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
        self._result()

    def _result(self) -> Stop:
        if self._said is None:
            return Stop.NONE
        said, work = self._said
        work.wait()
        self._said = None
        return Stop(int(said))
