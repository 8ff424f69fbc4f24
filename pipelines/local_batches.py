"""Batches made in the training worker itself: background threads read, decode and augment ahead of the loop."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines.batch_plan import Batch, BatchPlan
from pipelines.sample_maker import SampleMaker, blank_batch


@dataclass(frozen=True)
class _Pending:
    """A batch in the making."""

    step: int
    ids: list[Future[str]]
    images: NDArray[np.uint8]
    labels: NDArray[Any]


class LocalBatches:
    """Iterates over the micro-batches of a plan.

    At most `ahead` micro-batches are in the making. An error in a thread is raised by the iterator, at the batch it
    belongs to. Leave the `with` block (or call `close`) to stop the threads.
    """

    def __init__(self, plan: BatchPlan, *, num_threads: int = 2, ahead: int = 4) -> None:
        self._plan, self._ahead = plan, ahead
        self._order = plan.make_order()
        plan.check_lanes(self._order)
        open_shards = self._order.open_shards(plan.world) + num_threads
        self._maker = SampleMaker(self._order, spec=plan.augment, open_shards=open_shards)
        self._planned = plan.batches()
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="batches")
        self._pending: deque[_Pending] = deque()

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        while len(self._pending) < self._ahead and (planned := next(self._planned, None)) is not None:
            self._pending.append(self._begin(*planned))
        if not self._pending:
            raise StopIteration
        made = self._pending.popleft()
        ids = tuple(future.result() for future in made.ids)
        return Batch(made.step, ids, torch.from_numpy(made.images), torch.from_numpy(made.labels))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the threads; work not begun is dropped."""
        self._planned = iter(())
        self._pending.clear()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _begin(self, step: int, places: range) -> _Pending:
        space = self._order.index.label_space
        images, labels = blank_batch(len(places), crop=self._plan.augment.crop, dtype=space.dtype)
        samples = [self._plan.sample(self._order, place) for place in places]
        ids = [
            self._pool.submit(self._maker.make, sample, image, label)
            for sample, image, label in zip(samples, images, labels, strict=True)
        ]
        return _Pending(step, ids, images, labels)
