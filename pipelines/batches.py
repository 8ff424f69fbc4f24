"""Batches for a training worker: background threads read shards, decode and augment ahead of the training loop."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipelines.codecs import decode_label
from pipelines.crops import class_indices
from pipelines.images import decode_image
from pipelines.order import Sample, SampleOrder, sample_rng
from pipelines.samples import SampleIndex, ShardRows, check_same_ids
from pipelines.schema import ShardKey
from pipelines.tables import read_shard_file
from pipelines.transforms import augment
from seg_models.recipes.recipe import AugmentSpec

Ready = tuple[str, Tensor, Tensor]


@dataclass(frozen=True)
class Batch:
    """One micro-batch of one worker: N images, h w pixels of the crop."""

    step: int
    ids: tuple[str, ...]
    images: Tensor
    """(N, 3, h, w) uint8."""
    labels: Tensor
    """(N, h, w) int64."""


@dataclass(frozen=True)
class OpenShard:
    """The encoded images and labels of one shard, row for row."""

    ids: list[str]
    images: Any
    labels: Any


class ShardCache:
    """Reads shards once and keeps the `capacity` used last; safe to use from many threads."""

    def __init__(self, index: SampleIndex, *, capacity: int) -> None:
        self._capacity = capacity
        self._addresses = {(shard.part, shard.key): shard for shard in index.shards}
        self._shards: OrderedDict[tuple[int, ShardKey], Future[OpenShard]] = OrderedDict()
        self._lock = Lock()

    def get(self, part: int, key: ShardKey) -> OpenShard:
        """The shard; whoever asks first reads it, the others wait for that."""
        with self._lock:
            future = self._shards.get((part, key))
            mine = future is None
            if future is None:
                future = self._shards[part, key] = Future()
            self._shards.move_to_end((part, key))
            while len(self._shards) > self._capacity:
                self._shards.popitem(last=False)
        if mine:
            self._fill(future, self._addresses[part, key])
        return future.result()

    def _fill(self, future: Future[OpenShard], shard: ShardRows) -> None:
        try:
            future.set_result(_open_shard(shard))
        except BaseException as error:  # handed to every waiting thread through the future
            future.set_exception(error)


def _open_shard(shard: ShardRows) -> OpenShard:
    images = read_shard_file(*shard.images, columns=["id", "image"])
    labels = read_shard_file(*shard.labels, columns=["id", "label"])
    ids = images["id"].to_pylist()
    check_same_ids(f"{shard.labels[0]} shard {shard.key}", ids, labels["id"].to_pylist())
    return OpenShard(ids=ids, images=images["image"], labels=labels["label"])


class BatchStream:
    """Iterates over the micro-batches of one worker, steps `start_step` to `steps - 1`, `accumulate` a step.

    At most `ahead` micro-batches are in the making. An error in a thread is raised by the iterator, at the batch it
    belongs to. Leave the `with` block (or call `close`) to stop the threads.
    """

    def __init__(
        self,
        order: SampleOrder,
        *,
        augment: AugmentSpec,
        global_batch: int,
        steps: int,
        start_step: int = 0,
        accumulate: int = 1,
        rank: int = 0,
        world: int = 1,
        num_threads: int = 2,
        ahead: int = 4,
    ) -> None:
        if global_batch % (world * accumulate):
            raise ValueError(
                f"{world} workers times {accumulate} accumulation steps do not divide a global batch of {global_batch}"
            )
        self._order = order
        self._augment = augment
        self._void = order.index.label_space.void
        self._mirrored = order.index.label_space.mirrored
        self._around = class_indices(augment.crop_around, order.index.label_space, key="augment.crop_around")
        self._ahead = ahead
        self._plan = self._addresses(global_batch, range(start_step, steps), accumulate, rank, world)
        self._cache = ShardCache(order.index, capacity=order.open_shards(world) + num_threads)
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="batches")
        self._pending: deque[tuple[int, list[Future[Ready]]]] = deque()

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        while len(self._pending) < self._ahead and (planned := next(self._plan, None)) is not None:
            step, samples = planned
            self._pending.append((step, [self._pool.submit(self._prepare, sample) for sample in samples]))
        if not self._pending:
            raise StopIteration
        step, futures = self._pending.popleft()
        ids, images, labels = zip(*(future.result() for future in futures), strict=True)
        return Batch(step=step, ids=ids, images=torch.stack(images), labels=torch.stack(labels))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop the threads; work not begun is dropped."""
        self._plan = iter(())
        self._pending.clear()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _addresses(
        self, global_batch: int, steps: range, accumulate: int, rank: int, world: int
    ) -> Iterator[tuple[int, list[Sample]]]:
        size = global_batch // (world * accumulate)
        for step in steps:
            samples = self._order.samples(step, global_batch=global_batch, rank=rank, world=world)
            for micro in range(accumulate):
                yield step, samples[micro * size : (micro + 1) * size]

    def _prepare(self, sample: Sample) -> Ready:
        """Read, decode and augment one sample."""
        shard = self._cache.get(sample.part, sample.key)
        sample_id = shard.ids[sample.row]
        try:
            image = decode_image(shard.images[sample.row].as_py())
            label = decode_label(shard.labels[sample.row].as_py())
            return sample_id, *self._augmented(image, label, sample_id, sample)
        except ValueError as error:
            part = self._order.index.parts[sample.part].part
            raise ValueError(f"{part} shard {sample.key} row {sample.row} id {sample_id!r}: {error}") from error

    def _augmented(
        self, image: NDArray[np.uint8], label: NDArray[Any], sample_id: str, sample: Sample
    ) -> tuple[Tensor, Tensor]:
        return augment(
            image,
            label,
            spec=self._augment,
            void=self._void,
            rng=sample_rng(
                sample_id, seed=self._order.seed, epoch=sample.epoch, repeat=sample.repeat, phase=sample.phase
            ),
            mirrored=self._mirrored,
            centroid=sample.centroid,
            around=self._around,
        )
