"""Batches made by Ray Data on CPUs anywhere in the cluster, in the order of the plan; and the choice of where.

A training worker has K data workers of its own. Its samples, one after the other, are dealt to them one each, round
and round: with K dividing the worker's lanes, a data worker always serves the same lanes, so that each shard is read
by one of them and kept while it is open. A data worker puts what it makes into *chunks* of equally many samples, a
round is a chunk of each, and Ray Data hands the rounds over in order. What is dealt is a function of the plan alone
and a sample one of its address, so a chunk that is lost with its process or node is made again, byte for byte.

Not `streaming_split`, which drops rows, and whose order follows the number of workers.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
import uuid
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pyarrow as pa
import ray
import torch
from numpy.typing import NDArray
from ray.data import ActorPoolStrategy, DataContext, ExecutionResources
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.data.exceptions import SystemException
from ray.experimental.internal_kv import _internal_kv_del

from pipelines.batch_plan import Batch, BatchPlan, BatchStream
from pipelines.local_batches import LocalBatches
from pipelines.sample_maker import SampleMaker, blank_batch
from pipelines.shards import (
    MAX_ATTEMPTS,
    ShardError,
    closing_results,
    count_attempt,
    first_line,
    keep_quiet,
    look_rarely,
)

CHUNK_BYTES = 16 * 1024**2  # Ray Data's own cost, some milliseconds a chunk, is a small part of making it
MAX_CHUNK = 256  # samples
CHUNKS_PER_TASK = 32  # what is made again at most when a data worker dies
MAX_TASKS = 1024  # of a data worker; a longer run has longer ones
UNREAD_CHUNKS = 2  # a data worker waits when so many are not yet taken from it
AHEAD_CHUNKS = 3 * UNREAD_CHUNKS  # of a data worker: the unread ones, two with the taker, two that wait
STORE_BYTES = AHEAD_CHUNKS * CHUNK_BYTES
"""Of the object store, that the chunks of a data worker fill at most where samples are small."""
RELEASE_EVERY_S = 30.0  # what Ray Data may take beyond the limit, a chunk each time
LATE_S = 60.0  # then that no sample has come is told
LOOK_EVERY_S = 0.1  # ten times a second, a thirtieth of a core


def open_batches(plan: BatchPlan, *, data_workers: int, threads: int) -> BatchStream:
    """The stream of a plan: made by `data_workers` of Ray Data, or in `threads` of this process where that is 0."""
    if data_workers:
        return RayBatches(plan, data_workers=data_workers)
    return LocalBatches(plan, num_threads=threads)


def data_workers_each(total: int, *, lanes: int, world: int) -> int:
    """Data workers of each of `world` training workers, of `total` together.

    As many as divide a training worker's lanes, so that lanes keep their data workers; at least one, unless `total`
    is 0.
    """
    if not total:
        return 0
    own = lanes // world
    return max(number for number in range(1, max(1, total // world) + 1) if own % number == 0)


@dataclass(frozen=True)
class Dealing:
    """How the samples of a plan are dealt to data workers."""

    plan: BatchPlan
    workers: int
    chunk: int
    """Samples of a chunk; the last ones may have fewer."""

    @property
    def rounds(self) -> int:
        """Chunks of every data worker."""
        return -(-len(self.plan.places) // (self.workers * self.chunk))

    def round_of(self, place: int) -> int:
        """The round that a place of the plan belongs to."""
        return (place - self.plan.places.start) // (self.workers * self.chunk)

    def worker_of(self, place: int) -> int:
        """The data worker that makes it."""
        return place % self.workers

    def places(self, number: int, worker: int) -> range:
        """The places of a data worker's chunk in a round; may be empty in the last one."""
        first = self.plan.places.start + number * self.workers * self.chunk
        stop = min(first + self.workers * self.chunk, self.plan.places.stop)
        return range(first + (worker - first) % self.workers, stop, self.workers)

    def tasks(self) -> list[dict[str, int]]:
        """The rounds cut into tasks of Ray."""
        length = max(CHUNKS_PER_TASK, -(-self.rounds // MAX_TASKS))
        return [{"first": first, "stop": min(first + length, self.rounds)} for first in range(0, self.rounds, length)]


def chunk_size(plan: BatchPlan, *, data_workers: int, sample_bytes: int) -> int:
    """Samples of a chunk: about CHUNK_BYTES, and not more than there are."""
    most = -(-len(plan.places) // data_workers)
    return max(1, min(CHUNK_BYTES // sample_bytes, MAX_CHUNK, most))


class ChunkMaker:
    """A data worker: makes its chunks, one row of a table each.

    Args:
        run: Name under which its attempts are counted; Ray itself would try a task that ends every process for ever.
    """

    def __init__(self, dealing: Dealing, worker: int, run: str) -> None:
        self._dealing, self._worker, self._run = dealing, worker, run
        plan = dealing.plan
        self._order = plan.make_order()
        # Whose number divides the lanes serves the lanes of one of world * workers training workers.
        streams = plan.world * dealing.workers
        open_shards = self._order.open_shards(streams if self._order.lanes % streams == 0 else plan.world) + 1
        self._maker = SampleMaker(self._order, spec=plan.augment, open_shards=open_shards)

    def __call__(self, tasks: dict[str, NDArray[np.int64]]) -> Iterator[pa.Table]:
        """The chunks of the rounds `first` to `stop - 1` of each task."""
        for first, stop in zip(tasks["first"].tolist(), tasks["stop"].tolist(), strict=True):
            poison = count_attempt(f"{self._run}/{self._worker}/{first}") > MAX_ATTEMPTS
            for number in range(first, stop):
                yield self._refuse(number) if poison else self._make(number)

    def _make(self, number: int) -> pa.Table:
        places = self._dealing.places(number, self._worker)
        plan, space = self._dealing.plan, self._order.index.label_space
        images, labels = blank_batch(len(places), crop=plan.augment.crop, dtype=space.dtype)
        ids: list[str] = []
        error = None
        for place, image, label in zip(places, images, labels, strict=True):
            try:
                ids.append(self._maker.make(plan.sample(self._order, place), image, label))
            except ValueError as problem:
                error = str(problem)  # raised in the training worker, at the batch it belongs to
                break
        return _row(number, self._worker, ids=ids, error=error, images=images, labels=labels)

    def _refuse(self, number: int) -> pa.Table:
        places = self._dealing.places(number, self._worker)
        text = (
            f"a data worker died {MAX_ATTEMPTS} times over samples {places.start} and following of its training "
            "worker (out of memory, or a crash in native code)"
        )
        nothing = np.empty(0, np.uint8)
        return _row(number, self._worker, ids=[], error=text, images=nothing, labels=nothing)


def _row(
    number: int, worker: int, *, ids: Sequence[str], error: str | None, images: NDArray[Any], labels: NDArray[Any]
) -> pa.Table:
    columns = {
        "round": pa.array([number], pa.int64()),
        "worker": pa.array([worker], pa.int64()),
        "ids": pa.array([list(ids)], pa.list_(pa.string())),
        "error": pa.array([error], pa.string()),
        "images": _as_bytes(images),
        "labels": _as_bytes(labels),
    }
    return pa.table(columns)


def _as_bytes(values: NDArray[Any]) -> pa.Array:
    """One binary value over the memory of an array, without a copy."""
    flat = values.reshape(-1).view(np.uint8)
    ends = pa.py_buffer(np.array([0, flat.size], np.int64))
    return pa.LargeBinaryArray.from_buffers(pa.large_binary(), 1, [None, ends, pa.py_buffer(flat)])


@dataclass(frozen=True)
class _Chunk:
    ids: list[str]
    error: str | None
    images: NDArray[np.uint8]
    labels: NDArray[Any]

    def sample(self, number: int) -> tuple[str, NDArray[np.uint8], NDArray[Any]]:
        """A sample by its number in the chunk.

        Raises:
            ValueError: it could not be made.
        """
        if number >= len(self.ids):
            raise ValueError(self.error)
        return self.ids[number], self.images[number], self.labels[number]


class _Paced(ExecutionCallback):  # type: ignore[misc]  # Ray has no types for it
    """A step of Ray Data's executor every LOOK_EVERY_S; chunks that it holds back keep it busy without a pause."""

    def __init__(self) -> None:
        self._next = time.monotonic()

    def on_execution_step(self, executor: object) -> None:
        now = time.monotonic()
        time.sleep(max(0.0, self._next - now))
        self._next = max(self._next, now) + LOOK_EVERY_S


class RayBatches:
    """Iterates over the micro-batches of a plan, made by `data_workers` actors of Ray Data with one CPU each.

    Ray must be running; the actors are taken from anywhere in the cluster, and end with `close`.

    Raises, while iterating:
        ValueError: a sample cannot be used; at the batch it belongs to.
        ShardError: Ray gave the work up.
    """

    def __init__(self, plan: BatchPlan, *, data_workers: int, chunk: int | None = None) -> None:
        order = plan.make_order()
        plan.check_lanes(order)
        self._plan, self._dtype = plan, order.index.label_space.dtype
        height, width = plan.augment.crop
        self._sample_bytes = height * width * (3 + self._dtype.itemsize)
        size = chunk or chunk_size(plan, data_workers=data_workers, sample_bytes=self._sample_bytes)
        self._dealing = Dealing(plan, data_workers, size)
        self._planned = plan.batches()
        self._round = -1
        self._open: dict[int, _Chunk] = {}
        """By data worker, of the round that the last sample came from."""
        self._stack = contextlib.ExitStack()
        self._rows = self._stack.enter_context(contextlib.closing(self._stream()))

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        step, places = next(self._planned)
        images, labels = blank_batch(len(places), crop=self._plan.augment.crop, dtype=self._dtype)
        ids = []
        for number, place in enumerate(places):
            sample_id, images[number], labels[number] = self._sample(place)
            ids.append(sample_id)
        return Batch(step, tuple(ids), torch.from_numpy(images), torch.from_numpy(labels))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the data workers; what was made ahead is dropped."""
        self._planned = iter(())
        self._open.clear()
        self._stack.close()

    def _sample(self, place: int) -> tuple[str, NDArray[np.uint8], NDArray[Any]]:
        number, worker = self._dealing.round_of(place), self._dealing.worker_of(place)
        if number != self._round:
            self._round, self._open = number, {}
        while worker not in self._open:
            self._take(number)
        first = self._dealing.places(number, worker).start
        return self._open[worker].sample((place - first) // self._dealing.workers)

    def _take(self, number: int) -> None:
        """The next chunk, which is of the present round, or an empty one of the round before."""
        with self._told_when_late():
            row = next(self._rows, None)
        if row is None:
            raise ShardError(f"data workers: Ray Data ended before round {number} of {self._dealing.rounds}")
        if row["round"][0].as_py() != number:
            return
        worker, ids = row["worker"][0].as_py(), row["ids"][0].as_py()
        crop, made = self._plan.augment.crop, len(self._dealing.places(number, worker))
        images, labels = (np.frombuffer(row[name][0].as_buffer(), np.uint8) for name in ("images", "labels"))
        if len(ids):
            images, labels = images.reshape(made, 3, *crop), labels.view(self._dtype).reshape(made, *crop)
        self._open[worker] = _Chunk(ids, row["error"][0].as_py(), images, labels)

    @contextlib.contextmanager
    def _told_when_late(self) -> Iterator[None]:
        timer = threading.Timer(LATE_S, self._tell)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _tell(self) -> None:
        with contextlib.suppress(ray.exceptions.RayError):
            free = f"{ray.available_resources().get('CPU', 0.0):g} of {ray.cluster_resources().get('CPU', 0.0):g}"
            print(
                f"data workers: no sample has come for {LATE_S:g} s; each of this worker's {self._dealing.workers} "
                f"needs a CPU, and of the cluster's {free} are free",
                flush=True,
            )

    def _stream(self) -> Generator[pa.Table]:
        """The chunks in order, one row each, as they come from Ray Data."""
        run = f"batches-{uuid.uuid4().hex}"
        try:
            with DataContext.current(self._context()):
                dataset = self._dataset(run)
                tables = dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
            with closing_results(tables) as results:
                for table in results:
                    for row in range(table.num_rows):
                        yield table.slice(row, 1)
        except (ray.exceptions.RayError, SystemException) as error:
            raise ShardError(f"data workers: Ray stopped the work: {first_line(error)}") from error
        finally:
            _internal_kv_del(f"{run}/", del_by_prefix=True)

    def _dataset(self, run: str) -> Any:
        """One actor for each data worker, their chunks in turns."""
        tasks = self._dealing.tasks()
        parts = [
            ray.data.from_items(tasks, override_num_blocks=len(tasks)).map_batches(
                ChunkMaker,
                fn_constructor_args=(self._dealing, worker, run),
                batch_size=None,
                batch_format="numpy",
                num_cpus=1,
                # Of two in flight the later one may be run first, and the stream would wait for all of it.
                compute=ActorPoolStrategy(size=1, max_tasks_in_flight_per_actor=1),
            )
            for worker in range(self._dealing.workers)
        ]
        return parts[0].union(*parts[1:]) if len(parts) > 1 else parts[0]

    def _context(self) -> DataContext:
        keep_quiet()
        look_rarely(LOOK_EVERY_S)
        # It warns of hanging where training workers hold the CPUs beside data workers that have theirs.
        logging.getLogger("ray.data._internal.execution.resource_manager").setLevel(logging.ERROR)
        context = DataContext.get_current().copy()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        context.custom_execution_callback_classes = [_Paced]
        context.issue_detectors_config.detectors = []
        context.execution_no_progress_timeout_s = -1  # a training step, or a checkpoint, may take its time
        context.target_max_block_size = 1  # every chunk is a block
        context._max_num_blocks_in_streaming_gen_buffer = UNREAD_CHUNKS
        # While the stream waits for one data worker Ray lets the others exceed the limit, at every step it takes.
        context.output_backpressure_guard_release_interval_s = RELEASE_EVERY_S
        context.execution_options.preserve_order = True
        workers = self._dealing.workers
        context.execution_options.resource_limits = ExecutionResources.for_limits(
            cpu=workers, object_store_memory=self.ahead_bytes
        )
        return context

    @property
    def ahead_bytes(self) -> int:
        """What there may be of finished chunks before Ray Data stops taking more from the data workers."""
        return self._dealing.workers * AHEAD_CHUNKS * self._dealing.chunk * self._sample_bytes
