"""The next batch is fetched while this one is worked on."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from jobs.training.feed import Prefetched, feed
from pipelines.batch_plan import Batch
from pipelines.samples import Part, build_index
from tests.jobs.tiny_training import plan_of, tiny_recipe, train_alone
from tests.tiny_data import write_dataset


class Numbered:
    """Batches 0, 1, 2, …, one of which may be an error."""

    def __init__(self, num: int, *, bad: int | None = None) -> None:
        self.num, self.bad = num, bad
        self.taken, self.closed = 0, False
        self.fetched = threading.Semaphore(0)

    def __iter__(self) -> Numbered:
        return self

    def __next__(self) -> Batch:
        if self.taken == self.num:
            raise StopIteration
        self.taken += 1
        self.fetched.release()
        if self.taken - 1 == self.bad:
            raise ValueError(f"batch {self.bad}")
        return Batch(self.taken - 1, ("a",), torch.zeros(1, 3, 2, 2), torch.zeros(1, 2, 2))

    def __enter__(self) -> Numbered:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        self.closed = True


def at_once(batch: Batch) -> Callable[[], Batch]:
    return lambda: batch


def test_batches_come_in_order_and_the_next_one_is_fetched_meanwhile() -> None:
    stream = Numbered(4)
    with Prefetched(stream, send=at_once) as running:
        assert next(running).step == 0
        assert [stream.fetched.acquire(timeout=10) for _ in range(2)] == [True, True]
        assert stream.taken == 2
        assert [batch.step for batch in running] == [1, 2, 3]
    assert stream.closed


def test_an_error_is_raised_at_its_batch_and_not_before() -> None:
    with Prefetched(Numbered(4, bad=2), send=at_once) as running:
        assert [next(running).step, next(running).step] == [0, 1]
        with pytest.raises(ValueError, match="batch 2"):
            next(running)


def test_on_a_cpu_batches_are_handed_on_as_they_are() -> None:
    stream = Numbered(1)
    assert feed(stream, torch.device("cpu")) is stream


def test_a_run_with_data_workers_ends_with_the_weights_of_one_with_threads(tmp_path: Path, ray_local: None) -> None:
    write_dataset(tmp_path / "set")
    index = build_index([Part(dataset=str(tmp_path / "set"))])
    ended = [
        train_alone(plan_of(index, tmp_path / f"run-{number}", tiny_recipe(), data_workers=number))[0].state_dict()
        for number in (0, 1)
    ]
    assert all(torch.equal(ended[0][name], ended[1][name]) for name in ended[0])
