"""Which samples a training run sees, and in which order.

The order is a function of seed and step alone. The run has L lanes; the g-th sample of the run comes from lane
g mod L, whatever the number of workers, and a worker serves the lanes l = rank (mod world). A lane goes through the
phases of the run; in a phase it takes turns with the streams that are mixed (mixing.py); a stream has epochs, and in
an epoch its shards are permuted, the rows are permuted inside windows of shards, and each lane takes one contiguous
cut of the result: a lane reads its shards one window after the other. What an epoch holds is said by the stream's
sampler (samplers.py).
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipelines.mixing import Mix
from pipelines.samplers import EveryRow, Sampler, permutation
from pipelines.samples import SampleIndex
from pipelines.schema import ShardKey

OPEN_SHARDS = 64  # a run draws from about this many shards at once; with 64 MB shards at most 4 GB over all workers
EPOCHS_KEPT = 4


class Sample(NamedTuple):
    """Address of one sample, and what its augmentation depends on."""

    epoch: int
    part: int
    key: ShardKey
    row: int
    repeat: int = 0
    """How often the epoch had this row before."""
    phase: int = 0
    centroid: tuple[int, int] | None = None
    """Row and column of the stored image that the crop is cut around."""


def sample_rng(sample_id: str, *, seed: int, epoch: int, repeat: int, phase: int) -> np.random.Generator:
    """Randomness of one drawing of a sample, whichever worker or thread takes it."""
    digest = hashlib.sha256(sample_id.encode()).digest()
    words: list[Any] = [seed % 2**64, epoch, repeat, phase, *np.frombuffer(digest, np.uint32).tolist()]
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(words)))


class _Epoch:
    """The permuted shards of one epoch of a stream and where its lanes begin."""

    def __init__(self, *, first: int, sizes: NDArray[np.int64], lanes: int, key: Sequence[int]) -> None:
        num_samples = int(sizes.sum())
        self.shards = permutation(len(sizes), *key, 0)
        self.offsets = np.concatenate(([0], np.cumsum(sizes[self.shards])))
        lane = np.arange(lanes)
        self.lane_first = first + (lane - first) % lanes
        counts = np.maximum(0, (first + num_samples - 1 - self.lane_first) // lanes + 1)
        self.lane_start = np.concatenate(([0], np.cumsum(counts)))[:-1]


class Stream:
    """Epoch after epoch of one sampler, in an order that reads shards window by window.

    Args:
        key: What the permutations depend on, besides the epoch.
        window: Shards whose rows are mixed.
    """

    def __init__(self, sampler: Sampler, *, lanes: int, window: int, key: Sequence[int]) -> None:
        self.sampler = sampler
        self.lanes = lanes
        self.window = window
        self.key = tuple(key)
        self._epoch = lru_cache(maxsize=EPOCHS_KEPT)(self._make_epoch)
        self._rows = lru_cache(maxsize=lanes + OPEN_SHARDS)(self._make_rows)

    def sample(self, position: int) -> Sample:
        """The sample at a position (0-based) of the stream; it belongs to lane position mod lanes."""
        number = position // self.sampler.length
        epoch = self._epoch(number)
        lane = position % self.lanes
        place = int(epoch.lane_start[lane]) + (position - int(epoch.lane_first[lane])) // self.lanes
        window = self._slot(epoch, place) // self.window
        start = int(epoch.offsets[window * self.window])
        place = start + int(self._rows(number, window)[place - start])
        slot = self._slot(epoch, place)
        shard = int(epoch.shards[slot])
        drawn = self.sampler.row(number, shard, place - int(epoch.offsets[slot]))
        rows = self.sampler.shards[shard]
        return Sample(number, rows.part, rows.key, drawn.row, drawn.repeat, 0, drawn.centroid)

    def open_shards(self, world: int) -> int:
        """Shards that a worker has open at once."""
        return min(len(self.sampler.shards), self.lanes // world * self.window)

    @staticmethod
    def _slot(epoch: _Epoch, place: int) -> int:
        return int(np.searchsorted(epoch.offsets, place, side="right")) - 1

    def _make_epoch(self, number: int) -> _Epoch:
        first = number * self.sampler.length
        return _Epoch(first=first, sizes=self.sampler.sizes(number), lanes=self.lanes, key=(*self.key, number))

    def _make_rows(self, number: int, window: int) -> NDArray[np.int64]:
        """The permutation of the rows of a window."""
        offsets = self._epoch(number).offsets
        end = min((window + 1) * self.window, len(offsets) - 1)
        return permutation(int(offsets[end] - offsets[window * self.window]), *self.key, number, 1, window)


@dataclass(frozen=True)
class Phase:
    """Part of a run: from a position (0-based) on, what is drawn from, and in which shares."""

    first: int
    samplers: tuple[Sampler, ...]
    mix: Mix


class SampleOrder:
    """Maps steps to samples. Every method is a pure function of its arguments and the constructor's.

    Args:
        phases: In order, the first from position 0 on; default: every row of the index once per epoch.
    """

    def __init__(self, index: SampleIndex, *, lanes: int, seed: int, phases: Sequence[Phase] = ()) -> None:
        self.index = index
        self.lanes = lanes
        self.seed = seed
        self.phases = tuple(phases) or (Phase(0, (EveryRow(index.shards),), Mix.of_one()),)
        self._firsts = [phase.first for phase in self.phases]
        self._streams = [self._make_streams(number) for number in range(len(self.phases))]

    def samples(self, step: int, *, global_batch: int, rank: int = 0, world: int = 1) -> list[Sample]:
        """The samples that worker `rank` of `world` takes in a step, in order.

        Raises:
            ValueError: `world` does not divide the lanes and the global batch.
        """
        if self.lanes % world or global_batch % world:
            raise ValueError(f"{world} workers do not divide {self.lanes} lanes and a global batch of {global_batch}")
        first = step * global_batch  # a multiple of `world`
        return [self.sample(g) for g in range(first + rank, first + global_batch, world)]

    def sample(self, position: int) -> Sample:
        """The sample at a position (0-based) of the whole run."""
        number = bisect_right(self._firsts, position) - 1
        phase = self.phases[number]
        turn, lane = divmod(position - phase.first, self.lanes)
        stream, turn = phase.mix.take(turn, lane=lane, lanes=self.lanes)
        return self._streams[number][stream].sample(turn * self.lanes + lane)._replace(phase=number)

    def open_shards(self, world: int) -> int:
        """Shards that a worker has open at once."""
        return max(sum(stream.open_shards(world) for stream in streams) for streams in self._streams)

    def _make_streams(self, number: int) -> list[Stream]:
        samplers = self.phases[number].samplers
        streams = []
        for place, sampler in enumerate(samplers):
            count, most = len(sampler.shards), OPEN_SHARDS // len(samplers)
            window = count if count <= most else max(1, most // self.lanes)
            key = (self.seed, *((number, place) if number or place else ()))
            streams.append(Stream(sampler, lanes=self.lanes, window=window, key=key))
        return streams
