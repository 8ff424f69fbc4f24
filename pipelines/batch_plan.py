"""What a training worker asks of its stream of batches: which samples, how many, how they are augmented."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol, Self

from torch import Tensor

from pipelines.order import Sample, SampleOrder
from seg_models.recipes.recipe import AugmentSpec


@dataclass(frozen=True)
class Batch:
    """One micro-batch of one worker: N images, h w pixels of the crop."""

    step: int
    ids: tuple[str, ...]
    images: Tensor
    """(N, 3, h, w) uint8."""
    labels: Tensor
    """(N, h, w), as the label space has them: uint8 or uint16."""


class BatchStream(Protocol):
    """The micro-batches of one worker in order. An error is raised at the batch it belongs to."""

    def __iter__(self) -> Iterator[Batch]:
        """Itself."""

    def __next__(self) -> Batch:
        """The next micro-batch.

        Raises:
            ValueError: a sample cannot be used; names it.
        """

    def close(self) -> None:
        """Stop the work; what was made ahead is dropped."""

    def __enter__(self) -> Self:
        """Itself."""

    def __exit__(self, *error: object) -> None:
        """Close."""


@dataclass(frozen=True)
class BatchPlan:
    """The micro-batches of worker `rank` of `world`: steps `start_step` to `steps - 1`, `accumulate` a step.

    Small, and picklable: who makes the samples has its own copy. The worker's samples, one after the other, are its
    *places* 0, 1, 2, …, counted from the first step of the run.
    """

    make_order: Callable[[], SampleOrder]
    augment: AugmentSpec
    global_batch: int
    steps: int
    start_step: int = 0
    accumulate: int = 1
    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        if self.global_batch % (self.world * self.accumulate):
            raise ValueError(
                f"{self.world} workers times {self.accumulate} accumulation steps do not divide a global batch of "
                f"{self.global_batch}"
            )

    @property
    def size(self) -> int:
        """Images of a micro-batch."""
        return self.global_batch // (self.world * self.accumulate)

    @property
    def places(self) -> range:
        """The worker's samples that are left, by place."""
        per_step = self.size * self.accumulate
        return range(self.start_step * per_step, self.steps * per_step)

    def batches(self) -> Iterator[tuple[int, range]]:
        """Step and places of every micro-batch."""
        for first in range(self.places.start, self.places.stop, self.size):
            yield first // (self.size * self.accumulate), range(first, first + self.size)

    def sample(self, order: SampleOrder, place: int) -> Sample:
        """The worker's sample at a place; worker r has the positions of the run that are r modulo `world`."""
        return order.sample(place * self.world + self.rank)

    def check_lanes(self, order: SampleOrder) -> None:
        """Refuse a number of workers that cannot share the lanes evenly.

        Raises:
            ValueError: it does not divide them.
        """
        if order.lanes % self.world:
            raise ValueError(f"{self.world} workers do not divide {order.lanes} lanes")
