"""Run a worker class over shards on Ray Data: the one place where label and prediction work is distributed.

Addresses go in and receipts come out; pixels never travel. One task is one Ray block. Ray may run a task twice (a
killed actor), so workers are deterministic and the driver keeps the first result of each task.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import threading
import time
import uuid
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, cast

import ray
from pydantic import Field
from ray.data._internal.execution import streaming_executor_state
from ray.data.exceptions import ExecutionTimeoutError, SystemException
from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_put

from pipelines.progress import Progress
from pipelines.schema import Receipt
from seg_models.spec import Spec

BLOCK_BYTES = 1024**2
LOOK_EVERY_S = 0.5  # as Ray Data has it, a driver that only waits keeps 0.04 cores busy; so, 0.02
POLL_EVERY_S = 0.1
READER = "iter_threaded"  # Ray Data's thread that takes results from its executor
READER_ENDS_S = 30.0  # it looks every POLL_EVERY_S whether it is wanted
MAX_ATTEMPTS = 5  # preemption may end a worker a few times; a shard that ends every worker is poison

_T = TypeVar("_T")


class ComputeSpec(Spec):
    """Where a stage runs. Says nothing about what is computed."""

    actors: int | None = Field(None, gt=0)
    """Worker actors; default: as many as the cluster's CPUs (or GPUs) allow, one CPU left for the driver."""
    cpus: float = Field(1.0, ge=0)
    """CPUs of each actor; ignored when `gpus` is given."""
    gpus: float = Field(0.0, ge=0)
    """GPUs of each actor, fractions allowed."""
    fetch: int = Field(4, gt=0)
    """Images that an actor of `pssl` or `autolabel` decodes ahead of the one it works on, and codes behind it, each in
    as many threads."""
    stall_limit_s: float = Field(21_600, gt=0)
    """Stop with an error when no shard has finished for this many seconds."""
    wait_s: float = Field(0.0, ge=0)
    """Seconds to wait for a cluster that grows by itself to have room for the job."""
    address: str | None = None
    """Ray cluster to run on; default: RAY_ADDRESS, else a local Ray for this job."""

    @property
    def cluster(self) -> str | None:
        """Address of the running cluster that is used; None for a local Ray."""
        address = self.address or os.environ.get("RAY_ADDRESS")
        return None if address in (None, "", "local") else address


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
    assert len({task.key for task in tasks}) == len(tasks), "keys of tasks are unique"
    start = time.monotonic()
    units = {task.key: task.num_units for task in tasks}
    seen: set[str] = set()
    rows = _stream(worker, tasks, worker_args, compute, stats.actors, label)
    with Progress(total=sum(units.values()), unit=unit, label=label) as progress, contextlib.closing(rows):
        for row in rows:
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


class RunShards(Protocol):
    """How a worker class is called with every task: on a pool of actors, or in this process."""

    def __call__(
        self,
        worker: type,
        *,
        tasks: Sequence[ShardTask],
        worker_args: dict[str, Any],
        compute: ComputeSpec,
        on_result: Callable[[str, Any], None],
        label: str,
    ) -> RunStats:
        """See `run_shards`."""


def run_here(
    worker: type,
    *,
    tasks: Sequence[ShardTask],
    worker_args: dict[str, Any],
    compute: ComputeSpec,
    on_result: Callable[[str, Any], None],
    label: str,
) -> RunStats:
    """Like `run_shards`, but in this process, one task after the other, and without a word. Needs no Ray.

    Raises:
        ShardError: the worker raised; the message names the task and the cause.
    """
    start = time.monotonic()
    built = worker(**worker_args)
    for task in tasks:
        try:
            result = built(task.payload)
        except Exception as error:
            raise ShardError(f"{label}: shard {task.key}: {_text(error)}") from error
        on_result(task.key, result)
    return RunStats(tasks=len(tasks), seconds=time.monotonic() - start, actors=1)


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
    worker: type, tasks: Sequence[ShardTask], worker_args: dict[str, Any], compute: ComputeSpec, actors: int, label: str
) -> Generator[bytes]:
    _configure(compute)
    run = uuid.uuid4().hex
    rows = [{"task": pickle.dumps((task.key, task.payload))} for task in tasks]
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows))
    # With GPUs only num_gpus is given: Ray calls the combination experimental.
    resources = {"num_gpus": compute.gpus} if compute.gpus > 0 else {"num_cpus": compute.cpus}
    results = dataset.map_batches(
        _Actor,
        fn_constructor_args=(worker, worker_args, run, MAX_ATTEMPTS),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=actors, max_tasks_in_flight_per_actor=2),
        **resources,
    )
    try:
        with closing_results(results.iter_batches(batch_size=1, batch_format="numpy", prefetch_batches=0)) as batches:
            for batch in batches:
                yield from batch["result"]
    except (ray.exceptions.RayError, ExecutionTimeoutError, SystemException) as error:
        raise ShardError(f"{label}: Ray stopped the work: {first_line(error)}") from error
    finally:
        _internal_kv_del(f"{run}/", del_by_prefix=True)


@contextlib.contextmanager
def closing_results(results: Iterable[_T]) -> Iterator[Iterator[_T]]:
    """Iterate, and leave only when Ray Data's thread that reads ahead has ended.

    Ray ends the process with code 1 and without a word if a thread is inside it when it shuts down.
    """
    iterator = cast("Generator[_T]", iter(results))
    readers: list[threading.Thread] = []
    try:
        yield _noting_readers(iterator, readers)
    finally:
        iterator.close()
        for thread in readers:
            thread.join(READER_ENDS_S)


def _noting_readers(iterator: Iterator[_T], readers: list[threading.Thread]) -> Iterator[_T]:
    """The same items; the threads that start with the first one are put down in `readers`."""
    others = set(threading.enumerate())
    try:
        first = next(iterator, None)
    finally:
        started = set(threading.enumerate()) - others
        readers.extend(thread for thread in started if thread.name == READER)
    if first is not None:
        yield first
        yield from iterator


def _configure(compute: ComputeSpec) -> None:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # Ray Data reserves object store for blocks of this size; ours hold addresses and receipts.
    context.target_max_block_size = BLOCK_BYTES
    look_rarely(LOOK_EVERY_S)  # our tasks take seconds, and a second one waits at every actor
    # Its half an hour is less than a shard of a large ensemble takes.
    context.execution_no_progress_timeout_s = compute.stall_limit_s
    keep_quiet()


def look_rarely(seconds: float) -> None:
    """Let Ray Data's executors in this process look at their tasks only so often; as it has it, ten times a second."""
    streaming_executor_state.WAIT_FOR_TASK_COMPLETION_TIMEOUT_S = seconds
    # And whoever waits for its results asks for them a hundred times a second.
    streaming_executor_state.time = _PatientClock()


def keep_quiet() -> None:
    """Let Ray Data say what went wrong and nothing else."""
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # it warns that its bars are off


class _PatientClock:
    """The module `time`, but short sleeps are longer."""

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)

    def sleep(self, seconds: float) -> None:
        time.sleep(max(seconds, POLL_EVERY_S))


@dataclass(frozen=True)
class _Failure:
    text: str


class _Actor:
    """Adapts a worker to Ray Data: bytes in, bytes out, an exception becomes a result the driver can show."""

    def __init__(self, worker: type, worker_args: dict[str, Any], run: str, max_attempts: int) -> None:
        self._run_id, self._max_attempts = run, max_attempts
        self._failure: _Failure | None = None
        try:
            self._worker = worker(**worker_args)
        except Exception as error:
            self._failure = _Failure(f"worker cannot start: {_text(error)}")

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[bytes]]:
        results = []
        for data in batch["task"]:
            key, payload = pickle.loads(data)
            results.append(pickle.dumps((key, self._run(key, payload))))
        return {"result": results}

    def _run(self, key: str, payload: Any) -> Any:
        if self._failure is not None:
            return self._failure
        if count_attempt(f"{self._run_id}/{key}") > self._max_attempts:
            times = self._max_attempts
            return _Failure(f"its worker died {times} times over it (out of memory, or a crash in native code)")
        try:
            return self._worker(payload)
        except Exception as error:
            return _Failure(_text(error))


def count_attempt(name: str) -> int:
    """Count this attempt in Ray's key-value store; Ray itself repeats the task of a dead actor without end."""
    number = 1
    while _internal_kv_put(f"{name}/{number}", b"", overwrite=False):  # true where the key is there already
        number += 1
    return number


def first_line(error: Exception) -> str:
    """What an error of Ray says, or the error behind it."""
    cause = getattr(error, "cause", None) or error.__cause__
    text = str(cause if isinstance(cause, Exception) else error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def _text(error: Exception) -> str:
    name = "" if isinstance(error, (ValueError, ShardError)) else f"{type(error).__name__}: "
    return f"{name}{error}"
