"""Work over shards on Ray."""

from __future__ import annotations

import inspect
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.data._internal.execution import streaming_executor_state

from pipelines.schema import Receipt, ShardKey
from pipelines.shards import READER, CommitBuffer, ComputeSpec, RunStats, ShardError, ShardTask, num_actors, run_shards


class Multiply:
    def __init__(self, factor: int, crash_file: str = "") -> None:
        self.factor, self.crash_file = factor, crash_file

    def __call__(self, payload: int) -> int:
        if payload < 0:
            raise ValueError(f"payload {payload} is negative")
        if self.crash_file and payload == 3 and not os.path.exists(self.crash_file):
            Path(self.crash_file).touch()
            os._exit(1)
        return payload * self.factor


class Unbuildable:
    def __init__(self) -> None:
        raise ValueError("weights are missing")

    def __call__(self, payload: int) -> int:
        return payload


class Poisoned:
    def __call__(self, payload: int) -> int:
        if payload < 0:
            os._exit(1)
        return payload


class Sleeper:
    def __call__(self, payload: float) -> float:
        time.sleep(payload)
        return payload


def run(worker: type, payloads: list[int], *, actors: int = 1, **worker_args: Any) -> tuple[dict[str, Any], RunStats]:
    results: dict[str, Any] = {}

    def keep(key: str, value: Any) -> None:
        assert key not in results, f"{key} was handed over twice"
        results[key] = value

    tasks = [ShardTask(f"k{payload}", payload) for payload in payloads]
    stats = run_shards(
        worker,
        tasks=tasks,
        worker_args=worker_args,
        compute=ComputeSpec(actors=actors, cpus=0.5),
        on_result=keep,
        label="test",
    )
    return results, stats


@pytest.mark.usefixtures("ray_local")
@pytest.mark.parametrize("actors", [1, 2])
def test_every_task_is_done_once_whatever_the_number_of_actors(actors: int) -> None:
    results, stats = run(Multiply, list(range(12)), actors=actors, factor=3)
    assert results == {f"k{i}": 3 * i for i in range(12)}
    assert stats.tasks == 12
    assert stats.actors == actors


@pytest.mark.usefixtures("ray_local")
def test_a_worker_that_raises_stops_the_run_with_shard_and_cause() -> None:
    with pytest.raises(ShardError, match="test: shard k-1: payload -1 is negative"):
        run(Multiply, [-1], factor=1)


@pytest.mark.usefixtures("ray_local")
def test_a_run_that_is_broken_off_leaves_no_thread_inside_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where one is there at `ray.shutdown`, Ray ends the process: code 1, and the cause is never printed."""
    get, inside = ray.get, threading.Event()

    def slow_get(*args: Any, **options: Any) -> Any:
        if threading.current_thread().name == READER and not broken.is_set():
            inside.set()
            broken.wait(10)
            time.sleep(1)
        return get(*args, **options)

    def give_up(key: str, value: Any) -> None:
        monkeypatch.setattr(ray, "get", slow_get)
        assert inside.wait(30), "the reader never asked for the second result"
        broken.set()
        raise ValueError("the disk is full")

    broken = threading.Event()
    tasks = [ShardTask(f"k{number}", number) for number in range(4)]
    with pytest.raises(ValueError, match="the disk is full"):
        run_shards(
            Multiply,
            tasks=tasks,
            worker_args={"factor": 1},
            compute=ComputeSpec(actors=1, cpus=0.5),
            on_result=give_up,
            label="test",
        )
    assert [thread for thread in threading.enumerate() if thread.name == READER] == []


@pytest.mark.usefixtures("ray_local")
def test_a_worker_that_cannot_start_says_why() -> None:
    with pytest.raises(ShardError, match="worker cannot start: weights are missing"):
        run(Unbuildable, [1])


@pytest.mark.usefixtures("ray_local")
@pytest.mark.faults
def test_a_killed_actor_costs_no_result_and_doubles_none(tmp_path: Path) -> None:
    results, _ = run(Multiply, list(range(8)), actors=2, factor=2, crash_file=str(tmp_path / "crashed"))
    assert (tmp_path / "crashed").exists()
    assert results == {f"k{i}": 2 * i for i in range(8)}


@pytest.mark.usefixtures("ray_local")
@pytest.mark.faults
def test_a_shard_that_kills_every_worker_ends_the_run_instead_of_repeating_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pipelines.shards.MAX_ATTEMPTS", 2)
    with pytest.raises(ShardError, match="test: shard k-7: its worker died 2 times over it"):
        run(Poisoned, [-7])


@pytest.mark.usefixtures("ray_local")
def test_a_stall_ends_the_run_with_an_error() -> None:
    compute = ComputeSpec(actors=1, cpus=0.5, stall_limit_s=3)
    with pytest.raises(ShardError, match=r"test: Ray stopped the work: .* no progress"):
        run_shards(
            Sleeper,
            tasks=[ShardTask("k", 60.0)],
            worker_args={},
            compute=compute,
            on_result=lambda key, value: None,
            label="test",
        )


@pytest.mark.usefixtures("ray_local")
def test_no_tasks_need_no_actors() -> None:
    assert run(Multiply, [], factor=1)[0] == {}


@pytest.mark.usefixtures("ray_local")
def test_the_default_leaves_a_cpu_to_the_driver() -> None:
    assert num_actors(ComputeSpec(), num_tasks=10) == 1
    assert num_actors(ComputeSpec(cpus=0.25), num_tasks=10) == 4
    assert num_actors(ComputeSpec(cpus=0.25), num_tasks=2) == 2


def receipt(number: int) -> Receipt:
    return Receipt(ShardKey("train", number), f"{number}", 1, 1, 0, "x")


def test_receipts_are_committed_together_and_none_is_kept_back() -> None:
    commits: list[int] = []
    buffer = CommitBuffer(lambda held: commits.append(len(held)), max_receipts=3, max_seconds=1e9)
    for number in range(7):
        buffer.add([receipt(number)])
    assert commits == [3, 3]
    buffer.flush()
    buffer.flush()
    assert commits == [3, 3, 1]


def test_receipts_do_not_wait_longer_than_allowed() -> None:
    commits: list[int] = []
    buffer = CommitBuffer(lambda held: commits.append(len(held)), max_receipts=100, max_seconds=0.0)
    buffer.add([receipt(0)])
    assert commits == [1]


def test_rays_executor_still_waits_by_the_name_that_we_set() -> None:
    waits = inspect.getsource(streaming_executor_state.process_completed_tasks)
    assert "timeout=WAIT_FOR_TASK_COMPLETION_TIMEOUT_S" in waits
