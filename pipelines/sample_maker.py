"""The one function that makes a training sample: read its row, decode, augment. Where it runs changes no byte."""

from __future__ import annotations

from collections import OrderedDict
from concurrent.futures import Future
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.codecs import decode_label
from pipelines.crops import class_indices
from pipelines.images import decode_image
from pipelines.order import Sample, SampleOrder, sample_rng
from pipelines.samples import SampleIndex, ShardRows, check_same_ids
from pipelines.schema import ShardKey
from pipelines.tables import read_shard_file
from pipelines.transforms import augment
from seg_models.recipes.recipe import AugmentSpec


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


class SampleMaker:
    """Makes the samples of an order, one at a time; safe to use from many threads.

    Args:
        open_shards: Shards that are kept.
    """

    def __init__(self, order: SampleOrder, *, spec: AugmentSpec, open_shards: int) -> None:
        self._space, self._parts, self._seed = order.index.label_space, order.index.parts, order.seed
        self._spec = spec
        self._around = class_indices(spec.crop_around, self._space, key="augment.crop_around")
        self._cache = ShardCache(order.index, capacity=open_shards)

    def make(self, sample: Sample, image: NDArray[np.uint8], label: NDArray[Any]) -> str:
        """Fill `image` (3, h, w) and `label` (h, w), in the type of the label space, with a sample; its id.

        Raises:
            ValueError: its image or label cannot be used, or its shard is damaged; names the sample.
        """
        shard = self._cache.get(sample.part, sample.key)
        sample_id = shard.ids[sample.row]
        try:
            pixels = decode_image(shard.images[sample.row].as_py())
            classes = decode_label(shard.labels[sample.row].as_py()).astype(self._space.dtype, copy=False)
            image[:], label[:] = self._augment(pixels, classes, sample_id, sample)
        except ValueError as error:
            part = self._parts[sample.part].part
            raise ValueError(f"{part} shard {sample.key} row {sample.row} id {sample_id!r}: {error}") from error
        return sample_id

    def _augment(
        self, pixels: NDArray[np.uint8], classes: NDArray[Any], sample_id: str, sample: Sample
    ) -> tuple[NDArray[np.uint8], NDArray[Any]]:
        rng = sample_rng(sample_id, seed=self._seed, epoch=sample.epoch, repeat=sample.repeat, phase=sample.phase)
        image, label = augment(
            pixels,
            classes,
            spec=self._spec,
            void=self._space.void,
            rng=rng,
            mirrored=self._space.mirrored,
            centroid=sample.centroid,
            around=self._around,
        )
        return image.numpy(), label.numpy()


def blank_batch(num: int, *, crop: tuple[int, int], dtype: np.dtype[Any]) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    """Room for images (num, 3, h, w) and labels (num, h, w)."""
    return np.empty((num, 3, *crop), np.uint8), np.empty((num, *crop), dtype)
