"""Run a worker class over shards on Ray Data: the one place where label and prediction work is distributed.

Addresses go in and receipts come out; pixels never travel. One task is one Ray block. Ray may run a task twice (a
killed actor), so workers are deterministic and the driver keeps the first result of each task.
"""

from __future__ import annotations

import logging
import pickle
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from pydantic import Field

from pipelines.progress import Progress
from pipelines.schema import Receipt
from seg_models.spec import Spec

BLOCK_BYTES = 1024**2


class ComputeSpec(Spec):
    """Where a stage runs. Says nothing about what is computed."""

    actors: int | None = Field(None, gt=0)
    """Worker actors; default: as many as the cluster's CPUs (or GPUs) allow, one CPU left for the driver."""
    cpus: float = Field(1.0, ge=0)
    """CPUs of each actor; ignored when `gpus` is given."""
    gpus: float = Field(0.0, ge=0)
    """GPUs of each actor, fractions allowed."""
    address: str | None = None
    """Ray cluster to run on; default: RAY_ADDRESS, else a local Ray for this job."""


@dataclass(frozen=True)
class ShardTask:
    """One unit of work."""

    key: str
    """Unique name, for messages and to recognise a second run of the same task."""
    payload: Any
    """What the worker is called with; picklable and small."""
    num_units: int = 1
    """Images in it, for the progress line."""


class ShardError(RuntimeError):
    """A worker failed for a reason that is no property of one row."""


@dataclass
class RunStats:
    """How a run over shards went."""

    tasks: int = 0
    repeated: int = 0
    """Results of tasks that Ray ran twice; not counted in `tasks`."""
    seconds: float = 0.0
    actors: int = 0


@dataclass
class CommitBuffer:
    """Collects receipts and commits them together, so that a killed driver loses little and the log stays short."""

    commit: Callable[[list[Receipt]], object]
    max_receipts: int = 64
    max_seconds: float = 10.0
    _held: list[Receipt] = field(default_factory=list)
    _since: float = field(default_factory=time.monotonic)

    def add(self, receipts: Sequence[Receipt]) -> None:
        """Hold receipts; commit when there are enough, or the oldest has waited long enough."""
        if not self._held:
            self._since = time.monotonic()
        self._held.extend(receipts)
        if len(self._held) >= self.max_receipts or time.monotonic() - self._since >= self.max_seconds:
            self.flush()

    def flush(self) -> None:
        """Commit what is held."""
        if self._held:
            self.commit(self._held)
            self._held = []


def run_shards(
    worker: type,
    *,
    tasks: Sequence[ShardTask],
    worker_args: dict[str, Any],
    compute: ComputeSpec,
    on_result: Callable[[str, Any], None],
    label: str,
    unit: str = "images",
) -> RunStats:
    """Call `worker(**worker_args)(task.payload)` for every task on an actor pool; Ray must be running.

    Args:
        worker: class whose instances are called with a payload and return a picklable result. Built once per actor.
        on_result: called on the driver with the key and result of every task, once each, as they finish.
        label: name of the stage in progress lines.

    Raises:
        ShardError: a worker raised; the message names the task and the cause.
    """
    stats = RunStats(actors=num_actors(compute, num_tasks=len(tasks)))
    if not tasks:
        return stats
    start = time.monotonic()
    units = {task.key: task.num_units for task in tasks}
    seen: set[str] = set()
    with Progress(total=sum(units.values()), unit=unit, label=label) as progress:
        for row in _stream(worker, tasks, worker_args, compute, stats.actors):
            key, outcome = pickle.loads(row)
            if isinstance(outcome, _Failure):
                raise ShardError(f"{label}: shard {key}: {outcome.text}")
            if key in seen:
                stats.repeated += 1
                continue
            seen.add(key)
            on_result(key, outcome)
            progress.update(units[key])
    stats.tasks, stats.seconds = len(seen), time.monotonic() - start
    missing = sorted(set(units) - seen)
    if missing:
        raise ShardError(f"{label}: no result for {len(missing)} shards, first {missing[0]}")
    return stats


def num_actors(compute: ComputeSpec, *, num_tasks: int) -> int:
    """Actors to start: the number asked for, else what the running cluster has room for; never more than tasks."""
    if compute.actors is not None:
        return max(1, min(compute.actors, num_tasks))
    resources = ray.cluster_resources()
    if compute.gpus > 0:
        room = int(resources.get("GPU", 0) / compute.gpus)
    else:
        room = int((resources.get("CPU", 1) - 1) / max(compute.cpus, 0.01))
    return max(1, min(room, num_tasks))


def _stream(
    worker: type, tasks: Sequence[ShardTask], worker_args: dict[str, Any], compute: ComputeSpec, actors: int
) -> Any:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # Ray Data reserves object store for blocks of this size; ours hold addresses and receipts.
    context.target_max_block_size = BLOCK_BYTES
    for name in ("ray.data", "ray.data._internal.progress"):
        logging.getLogger(name).setLevel(logging.WARNING)
    rows = [{"task": pickle.dumps((task.key, task.payload))} for task in tasks]
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows))
    # With GPUs only num_gpus is given: Ray calls the combination experimental.
    resources = {"num_gpus": compute.gpus} if compute.gpus > 0 else {"num_cpus": compute.cpus}
    results = dataset.map_batches(
        _Actor,
        fn_constructor_args=(worker, worker_args),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=actors, max_tasks_in_flight_per_actor=2),
        **resources,
    )
    for batch in results.iter_batches(batch_size=1, batch_format="numpy", prefetch_batches=0):
        yield from batch["result"]


@dataclass(frozen=True)
class _Failure:
    text: str


class _Actor:
    """Adapts a worker to Ray Data: bytes in, bytes out, an exception becomes a result the driver can show."""

    def __init__(self, worker: type, worker_args: dict[str, Any]) -> None:
        self._failure: _Failure | None = None
        try:
            self._worker = worker(**worker_args)
        except Exception as error:
            self._failure = _Failure(f"worker cannot start: {_text(error)}")

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[bytes]]:
        results = []
        for data in batch["task"]:
            key, payload = pickle.loads(data)
            results.append(pickle.dumps((key, self._run(payload))))
        return {"result": results}

    def _run(self, payload: Any) -> Any:
        if self._failure is not None:
            return self._failure
        try:
            return self._worker(payload)
        except Exception as error:
            return _Failure(_text(error))


def _text(error: Exception) -> str:
    name = "" if isinstance(error, (ValueError, ShardError)) else f"{type(error).__name__}: "
    return f"{name}{error}"
