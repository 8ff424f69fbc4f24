"""Batches made by data workers of Ray Data: equal to those made in threads, whatever happens to the workers."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.processes import family
from pipelines import batches, order, sample_maker
from pipelines.batch_plan import Batch, BatchPlan, BatchStream
from pipelines.batches import AHEAD_CHUNKS, ChunkMaker, Dealing, RayBatches, chunk_size, data_workers_each
from pipelines.labels import LabelSpace
from pipelines.local_batches import LocalBatches
from pipelines.order import Sample, SampleOrder
from pipelines.samples import Part, SampleIndex, ShardRows, build_index
from pipelines.schema import ShardKey
from seg_models.recipes.recipe import AugmentSpec
from tests.tiny_data import write_dataset

CROP = AugmentSpec(crop=(24, 32), scale=(0.8, 1.3), brightness=0.2)


@pytest.fixture
def index(tmp_path: Path) -> SampleIndex:
    write_dataset(tmp_path / "set", shard_sizes=(5, 4, 3, 6))
    return build_index([Part(dataset=str(tmp_path / "set"))])


def plan_of(index: SampleIndex, **changes: Any) -> BatchPlan:
    make_order = partial(SampleOrder, index, lanes=12, seed=11)
    return BatchPlan(make_order, **{"augment": CROP, "global_batch": 12, "steps": 5, **changes})


def in_threads(plan: BatchPlan) -> list[Batch]:
    with LocalBatches(plan) as running:
        return list(running)


def check_equal(found: list[Batch], expected: list[Batch]) -> None:
    assert [(batch.step, batch.ids) for batch in found] == [(batch.step, batch.ids) for batch in expected]
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours.images, theirs.images)
        assert (ours.labels.dtype, ours.labels.shape) == (theirs.labels.dtype, theirs.labels.shape)
        assert torch.equal(ours.labels, theirs.labels)


def data_worker_pids() -> set[int]:
    return {process.pid for process in family(os.getpid()).values() if "(ChunkMaker)" in process.command}


# -- in this process -----------------------------------------------------------------------------------------------


@pytest.fixture
def inline(monkeypatch: pytest.MonkeyPatch) -> None:
    """The data workers run in this process, in turns, as Ray Data hands their chunks over."""

    def stream(self: RayBatches) -> Generator[pa.Table]:
        dealing = self._dealing
        makers = [ChunkMaker(dealing, worker, "run") for worker in range(dealing.workers)]
        tasks = {name: np.array([task[name] for task in dealing.tasks()]) for name in ("first", "stop")}
        rounds = [maker(tasks) for maker in makers]
        for _ in range(dealing.rounds):
            yield from [next(chunks) for chunks in rounds]

    monkeypatch.setattr(RayBatches, "_stream", stream)
    monkeypatch.setattr(batches, "count_attempt", lambda name: 1)


@pytest.mark.parametrize(
    ("data_workers", "chunk", "changes"),
    [
        (1, None, {}),
        (2, 1, {}),
        (3, 4, {"start_step": 2}),
        (4, 7, {"accumulate": 3}),
        (5, 2, {"rank": 1, "world": 2}),
        (2, 3, {"rank": 2, "world": 3, "accumulate": 2, "start_step": 1}),
        (7, None, {"start_step": 5}),
    ],
)
def test_any_number_of_data_workers_makes_the_batches_that_threads_make(
    index: SampleIndex, inline: None, data_workers: int, chunk: int | None, changes: dict[str, int]
) -> None:
    plan = plan_of(index, **changes)
    with RayBatches(plan, data_workers=data_workers, chunk=chunk) as running:
        check_equal(list(running), in_threads(plan))


def test_labels_of_many_classes_travel_as_two_bytes(tmp_path: Path, inline: None) -> None:
    space = LabelSpace(names=tuple(f"class {number}" for number in range(300)))
    write_dataset(tmp_path, space=space)
    plan = plan_of(build_index([Part(dataset=str(tmp_path))]), steps=2)
    with RayBatches(plan, data_workers=2) as running:
        found = list(running)
    assert found[0].labels.dtype == torch.uint16
    check_equal(found, in_threads(plan))


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[ShardKey]:
    """How often each shard was read."""
    counts: Counter[ShardKey] = Counter()
    real = sample_maker._open_shard

    def counted(shard: ShardRows) -> sample_maker.OpenShard:
        counts[shard.key] += 1
        return real(shard)

    monkeypatch.setattr(sample_maker, "_open_shard", counted)
    return counts


def test_a_shard_is_read_by_one_data_worker(
    tmp_path: Path, inline: None, reads: Counter[ShardKey], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(order, "OPEN_SHARDS", 12)
    write_dataset(tmp_path, shard_sizes=[12] * 20)  # more than are open at once
    plan = plan_of(build_index([Part(dataset=str(tmp_path))]), global_batch=24, steps=10)
    with RayBatches(plan, data_workers=4, chunk=6) as running:
        assert len(list(running)) == 10
    assert len(reads) == 20
    assert sum(reads.values()) <= 20 + 12, "again only where two of twelve lanes share a shard"


@pytest.mark.parametrize("data_workers", [3, 4, 5])
def test_shards_that_are_all_open_at_once_are_read_once_by_each_data_worker(
    index: SampleIndex, inline: None, reads: Counter[ShardKey], data_workers: int
) -> None:
    with RayBatches(plan_of(index, steps=20), data_workers=data_workers, chunk=3) as running:
        assert len(list(running)) == 20
    assert set(reads.values()) == {data_workers}


def test_an_unusable_sample_is_told_at_its_batch_by_the_line_that_threads_tell(tmp_path: Path, inline: None) -> None:
    write_dataset(tmp_path, shard_sizes=(8, 8), damaged=(2,))
    plan = plan_of(build_index([Part(dataset=str(tmp_path))]), global_batch=4, steps=4)
    told = [until_error(stream) for stream in (LocalBatches(plan), RayBatches(plan, data_workers=2, chunk=3))]
    assert "train/00000 row 2 id 'scene-0002'" in told[0][1]
    assert told[0] == told[1]


def until_error(stream: BatchStream) -> tuple[list[int], str]:
    """The steps before an error, and what it says."""
    steps = []
    with stream as running:
        try:
            for batch in running:
                steps.append(batch.step)
        except ValueError as error:
            return steps, str(error)
    raise AssertionError("there was no error")


def test_samples_that_end_every_process_are_named(
    index: SampleIndex, inline: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "count_attempt", lambda name: 6)
    with RayBatches(plan_of(index), data_workers=2) as running, pytest.raises(ValueError, match="died 5 times over"):
        next(running)


@settings(max_examples=100, deadline=None)
@given(
    size=st.integers(1, 9),
    steps=st.tuples(st.integers(0, 9), st.integers(0, 9)).map(sorted),
    workers=st.integers(1, 7),
    chunk=st.integers(1, 9),
)
def test_every_place_is_dealt_to_one_data_worker_and_a_round_holds_a_chunk_of_each(
    size: int, steps: list[int], workers: int, chunk: int
) -> None:
    plan = BatchPlan(nothing, augment=CROP, global_batch=size, start_step=steps[0], steps=steps[1])
    dealing = Dealing(plan, workers, chunk)
    dealt = {
        (number, worker): dealing.places(number, worker)
        for number in range(dealing.rounds)
        for worker in range(workers)
    }
    assert sorted(place for places in dealt.values() for place in places) == list(plan.places)
    for (number, worker), places in dealt.items():
        assert len(places) <= chunk
        assert len(places) == chunk or number == dealing.rounds - 1
        assert all((dealing.round_of(place), dealing.worker_of(place)) == (number, worker) for place in places)
    rounds = [number for task in dealing.tasks() for number in range(task["first"], task["stop"])]
    assert rounds == list(range(dealing.rounds))


def nothing() -> SampleOrder:
    raise AssertionError("no order is needed")


@pytest.mark.parametrize(
    ("total", "world", "expected"), [(0, 1, 0), (1, 1, 1), (5, 1, 4), (12, 2, 6), (13, 4, 3), (4, 4, 1), (2, 4, 1)]
)
def test_data_workers_are_shared_out_so_that_they_divide_the_lanes_of_a_worker(
    total: int, world: int, expected: int
) -> None:
    assert data_workers_each(total, lanes=12 * world, world=world) == expected


def test_chunks_are_of_some_megabytes(index: SampleIndex) -> None:
    plan = plan_of(index, steps=100_000)
    assert chunk_size(plan, data_workers=2, sample_bytes=1 << 20) == 16
    assert chunk_size(plan, data_workers=2, sample_bytes=1 << 30) == 1
    assert chunk_size(plan_of(index, steps=1), data_workers=2, sample_bytes=1) == 6


# -- on Ray --------------------------------------------------------------------------------------------------------


@pytest.mark.faults
def test_data_workers_that_are_killed_change_no_batch_and_all_end_with_the_stream(
    index: SampleIndex, ray_local: None
) -> None:
    plan = plan_of(index, steps=60, start_step=3)
    expected = in_threads(plan)
    with RayBatches(plan, data_workers=2, chunk=2) as running:
        found = [next(running) for _ in range(3)]
        victims = data_worker_pids()
        assert len(victims) == 2
        for victim in victims:
            os.kill(victim, signal.SIGKILL)
        found += list(running)
        check_equal(found, expected)
    wait_for_no_data_workers()


def wait_for_no_data_workers() -> None:
    limit = time.monotonic() + 30
    while data_worker_pids() and time.monotonic() < limit:
        time.sleep(0.1)
    assert not data_worker_pids()


class NotedOrder(SampleOrder):
    """Puts down what is asked of it."""

    def __init__(self, index: SampleIndex, *, file: Path) -> None:
        super().__init__(index, lanes=12, seed=0)
        self.file = file

    def sample(self, position: int) -> Sample:
        with self.file.open("a") as opened:
            opened.write("x")
        return super().sample(position)


class Everything:
    """Holds its CPUs as long as it lives."""

    def is_held(self) -> bool:
        return True


def test_data_workers_without_a_cpu_are_told_of_and_waited_for(
    index: SampleIndex, ray_local: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(batches, "LATE_S", 3)
    everything: Any = ray.remote(num_cpus=2)(Everything).remote()
    ray.get(everything.is_held.remote())
    told = "data workers: no sample has come for 3 s; each of this worker's 1 needs a CPU, and of the cluster's 0 of 2"
    with RayBatches(plan_of(index), data_workers=1) as running, ThreadPoolExecutor(1) as pool:
        first = pool.submit(next, running)
        limit, seen = time.monotonic() + 30, ""
        while told not in seen and time.monotonic() < limit:
            time.sleep(0.1)
            seen += capsys.readouterr().out
        assert told in seen
        assert not first.done()
        ray.kill(everything)
        assert first.result(timeout=60).step == 0
    wait_for_no_data_workers()


class UnevenOrder(SampleOrder):
    """Of two data workers of one sample a chunk the second is slow; both put down what they make."""

    def __init__(self, index: SampleIndex, *, folder: Path) -> None:
        super().__init__(index, lanes=12, seed=0)
        self.folder = folder

    def sample(self, position: int) -> Sample:
        time.sleep(0.3 * (position % 2))
        with Path(self.folder, str(position % 2)).open("a") as opened:
            opened.write("x")
        return super().sample(position)


def test_a_fast_data_worker_does_not_run_away_while_the_stream_waits_for_a_slow_one(
    index: SampleIndex, ray_local: None, tmp_path: Path
) -> None:
    large = AugmentSpec(crop=(384, 384))  # of small chunks other limits come first
    plan = BatchPlan(partial(UnevenOrder, index, folder=tmp_path), augment=large, global_batch=2, steps=100_000)
    with RayBatches(plan, data_workers=2, chunk=1) as running:
        for _ in range(30):
            next(running)
        ahead = [Path(tmp_path, name).stat().st_size - 30 for name in "01"]
        assert ahead[1] <= 4, "it is the slow one"
        assert ahead[0] <= 2 * AHEAD_CHUNKS + 4  # as Ray Data has it, 28 and more with every second
    wait_for_no_data_workers()


def test_a_stream_that_nobody_takes_from_makes_a_bounded_number_ahead_and_rests(
    index: SampleIndex, ray_local: None, tmp_path: Path
) -> None:
    made = tmp_path / "made"
    plan = BatchPlan(partial(NotedOrder, index, file=made), augment=CROP, global_batch=4, steps=5000)
    with RayBatches(plan, data_workers=1, chunk=8) as running:
        next(running)
        seen = -1
        while seen != made.stat().st_size:
            seen, used = made.stat().st_size, time.process_time()
            time.sleep(1.5)
        assert 8 * 2 <= seen <= 8 * 10
        assert time.process_time() - used < 0.5  # as Ray Data has it, 1.5
    wait_for_no_data_workers()
