"""Which samples training sees, in which order: lanes, epochs, shares of several streams, phases."""

from __future__ import annotations

from collections import Counter, OrderedDict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.mixing import Mix
from pipelines.order import Phase, Sample, SampleOrder, sample_rng
from pipelines.samplers import EveryRow, permutation
from pipelines.samples import SampleIndex, ShardRows
from pipelines.schema import ShardKey
from tests.tiny_data import SPACE

NOWHERE = ("", "")


def index_of(*sizes: int) -> SampleIndex:
    """An index of shards of these sizes; row numbers skip every other row, as if half were rejected."""
    shards = [
        ShardRows(0, ShardKey("train", i), np.arange(0, 2 * size, 2, dtype=np.int32), NOWHERE, NOWHERE)
        for i, size in enumerate(sizes)
    ]
    return SampleIndex(label_space=SPACE, parts=(), shards=tuple(shards))


def address(sample: Sample) -> tuple[int, int]:
    return sample.key.shard, sample.row


# -- one stream ---------------------------------------------------------------------------------------------------


@settings(max_examples=80, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=90),
    lanes=st.sampled_from([1, 2, 6, 48]),
    seed=st.integers(-5, 2**40),
)
def test_every_sample_appears_exactly_once_in_each_epoch(sizes: list[int], lanes: int, seed: int) -> None:
    order = SampleOrder(index_of(*sizes), lanes=lanes, seed=seed)
    num_samples = sum(sizes)
    everything = {(shard, 2 * row) for shard, size in enumerate(sizes) for row in range(size)}
    for epoch in range(3):
        seen = [order.sample(g) for g in range(epoch * num_samples, (epoch + 1) * num_samples)]
        assert {sample.epoch for sample in seen} == {epoch}
        assert Counter(map(address, seen)) == Counter(everything)


@settings(max_examples=40, deadline=None)
@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=70), step=st.integers(0, 500), seed=st.integers(0, 9))
def test_any_number_of_workers_sees_the_same_global_batches(sizes: list[int], step: int, seed: int) -> None:
    order = SampleOrder(index_of(*sizes), lanes=12, seed=seed)
    whole = order.samples(step, global_batch=12)
    for world in (2, 3, 4, 6, 12):
        parts = [order.samples(step, global_batch=12, rank=rank, world=world) for rank in range(world)]
        assert {len(part) for part in parts} == {12 // world}
        assert Counter(sample for part in parts for sample in part) == Counter(whole)


def test_a_worker_serves_the_same_lanes_in_every_step_when_lanes_and_batch_do_not_divide_each_other() -> None:
    order = SampleOrder(index_of(*[7] * 40), lanes=12, seed=0)
    positions = {order.sample(g): g for g in range(280)}
    for step in range(15):
        for rank in range(2):
            for sample in order.samples(step, global_batch=18, rank=rank, world=2):
                assert positions[sample] % 2 == rank


def test_a_step_needs_no_replay_of_the_steps_before_it() -> None:
    index = index_of(*range(1, 80))
    walked = SampleOrder(index, lanes=6, seed=3)
    history = [walked.samples(step, global_batch=12) for step in range(400)]
    for step in (0, 1, 250, 399):
        assert SampleOrder(index, lanes=6, seed=3).samples(step, global_batch=12) == history[step]


def test_a_lane_reads_one_contiguous_cut_of_the_permuted_shards() -> None:
    lanes, sizes = 8, [10] * 128
    order = SampleOrder(index_of(*sizes), lanes=lanes, seed=1)
    sequence: list[int] = []
    for lane in range(lanes):
        shards = [order.sample(g).key.shard for g in range(lane, 1280, lanes)]
        runs = [shards[i : i + 80] for i in range(0, len(shards), 80)]  # windows of 64 / 8 shards of ten rows
        assert all(len(set(run)) == 8 for run in runs)
        sequence += [shard for run in runs for shard in dict.fromkeys(sorted(run))]
    assert len(sequence) == len(set(sequence)) == 128, "no shard is opened by two lanes here"
    assert sequence != sorted(sequence)


def test_shards_meet_other_shards_in_every_epoch() -> None:
    order = SampleOrder(index_of(*[10] * 128), lanes=1, seed=1)  # windows of 64 shards
    windows = [{order.sample(g).key.shard for g in range(first, first + 640)} for first in (0, 1280, 2560)]
    assert all(len(window) == 64 for window in windows)
    assert windows[0] != windows[1] != windows[2] != windows[0]


def test_rows_of_the_shards_in_a_window_are_mixed() -> None:
    order = SampleOrder(index_of(*[20] * 3), lanes=1, seed=0)
    first = [order.sample(g).key.shard for g in range(20)]
    assert set(first) == {0, 1, 2}
    assert order.open_shards(1) == 3


@pytest.mark.parametrize("world", [1, 4])
def test_a_cache_of_the_open_shards_reads_a_shard_again_only_where_two_lanes_share_it(world: int) -> None:
    order = SampleOrder(index_of(*[10] * 300), lanes=48, seed=5)
    cache: OrderedDict[int, None] = OrderedDict()
    reads = 0
    for g in range(0, 3000, world):
        shard = order.sample(g).key.shard
        reads += shard not in cache
        cache[shard] = None
        cache.move_to_end(shard)
        if len(cache) > order.open_shards(world):
            cache.popitem(last=False)
    assert reads <= 300 // world + 48 // world * 2


def test_seed_and_epoch_change_the_order() -> None:
    index = index_of(*[5] * 10)
    runs = {
        tuple(address(SampleOrder(index, lanes=6, seed=seed).sample(50 * epoch + g)) for g in range(50))
        for seed in (0, 1)
        for epoch in (0, 1)
    }
    assert len(runs) == 4


def test_the_order_is_frozen_across_releases() -> None:
    order = SampleOrder(index_of(3, 4, 2), lanes=2, seed=7)
    assert [address(sample) for sample in order.samples(0, global_batch=9)] == FROZEN_ORDER
    assert permutation(8, 1, 2, 3).tolist() == FROZEN_PERMUTATION


FROZEN_ORDER = [(1, 2), (1, 4), (0, 0), (1, 0), (1, 6), (0, 2), (2, 0), (0, 4), (2, 2)]
FROZEN_PERMUTATION = [1, 2, 4, 6, 5, 0, 7, 3]


def test_a_world_size_that_does_not_divide_the_lanes_is_refused() -> None:
    order = SampleOrder(index_of(9), lanes=6, seed=0)
    with pytest.raises(ValueError, match="4 workers do not divide 6 lanes"):
        order.samples(0, global_batch=8, rank=0, world=4)


# -- shares of several streams -------------------------------------------------------------------------------------

WEIGHTS = st.lists(st.sampled_from([0.1, 0.25, 1.0, 1.5, 2.0, 3.7]), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(weights=WEIGHTS, lanes=st.sampled_from([1, 4, 12, 48]))
def test_a_lane_takes_every_stream_in_turn_and_keeps_to_the_shares(weights: list[float], lanes: int) -> None:
    mix = Mix.of(weights)
    for lane in (0, lanes // 2, lanes - 1):
        taken = [0] * len(weights)
        for turn in range(60):
            stream, before = mix.take(turn, lane=lane, lanes=lanes)
            assert before == taken[stream]
            taken[stream] += 1
            for share, count in zip(mix.shares, taken, strict=True):
                assert abs(float(share) * (turn + 1) - count) < len(weights)


@settings(max_examples=40, deadline=None)
@given(pair=st.tuples(*[st.sampled_from([0.1, 1.0, 1.5, 2.0, 3.7])] * 2), lanes=st.sampled_from([4, 12, 48]))
def test_of_two_streams_every_round_of_lanes_has_the_exact_shares(pair: tuple[float, float], lanes: int) -> None:
    mix = Mix.of(pair)
    for turn in range(25):
        first = sum(mix.take(turn, lane=lane, lanes=lanes)[0] == 0 for lane in range(lanes))
        assert abs(first - float(mix.shares[0]) * lanes) < 1


@pytest.mark.parametrize("weights", [(1, 1), (1, 3), (1, 9), (1, 1, 1), (5, 3, 2)])
def test_a_step_of_a_third_of_the_lanes_has_about_the_shares_of_the_run(weights: tuple[int, ...]) -> None:
    order = mixed_order([20] * len(weights), weights, lanes=48)
    for step in range(60):
        drawn = Counter(sample.part for sample in order.samples(step, global_batch=16))
        for part, weight in enumerate(weights):
            assert abs(drawn[part] - 16 * weight / sum(weights)) <= 3


def mixed_order(sizes: list[int], weights: tuple[float, ...], *, lanes: int, seed: int = 3) -> SampleOrder:
    """One stream for each part; a part has as many shards of three rows as it needs."""
    shards = [
        ShardRows(part, ShardKey("train", i), np.arange(min(3, size - first), dtype=np.int32), NOWHERE, NOWHERE)
        for part, size in enumerate(sizes)
        for i, first in enumerate(range(0, size, 3))
    ]
    index = SampleIndex(label_space=SPACE, parts=(), shards=tuple(shards))
    samplers = tuple(EveryRow(tuple(s for s in shards if s.part == part)) for part in range(len(sizes)))
    return SampleOrder(index, lanes=lanes, seed=seed, phases=[Phase(0, samplers, Mix.of(weights))])


@settings(max_examples=30, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 30), min_size=2, max_size=3),
    weights=st.tuples(*[st.sampled_from([0.3, 1.0, 2.0])] * 3),
    lanes=st.sampled_from([2, 12]),
)
def test_each_part_goes_through_epochs_of_its_own_with_each_id_once(
    sizes: list[int], weights: tuple[float, ...], lanes: int
) -> None:
    order = mixed_order(sizes, weights[: len(sizes)], lanes=lanes)
    drawn: Counter[tuple[int, int, int, int]] = Counter()
    for g in range(lanes * 80):
        sample = order.sample(g)
        drawn[sample.part, sample.epoch, sample.key.shard, sample.row] += 1
    assert set(drawn.values()) == {1}
    for part, size in enumerate(sizes):
        of_epoch = Counter(key[1] for key in drawn if key[0] == part)
        # Lanes run apart by a few turns, so the last epochs are under way together.
        ended = max(of_epoch) - 1 - lanes * (len(sizes) + 1) // size
        assert all(of_epoch[epoch] == size for epoch in range(ended))


@settings(max_examples=30, deadline=None)
@given(step=st.integers(0, 60), weights=st.tuples(*[st.sampled_from([0.3, 1.0, 2.0])] * 2))
def test_any_number_of_workers_sees_the_same_mixed_batches_in_every_phase(
    step: int, weights: tuple[float, ...]
) -> None:
    plain = mixed_order([30, 40], weights, lanes=12)
    late = Phase(30 * 24, (plain.phases[0].samplers[1],), Mix.of_one())
    order = SampleOrder(plain.index, lanes=12, seed=3, phases=[*plain.phases, late])
    whole = order.samples(step, global_batch=24)
    assert {sample.phase for sample in whole} == {int(step >= 30)}
    assert step < 30 or {sample.part for sample in whole} == {1}
    for world in (2, 3, 4, 6):
        parts = [order.samples(step, global_batch=24, rank=rank, world=world) for rank in range(world)]
        assert Counter(sample for part in parts for sample in part) == Counter(whole)
        assert whole == [sample for group in zip(*parts, strict=True) for sample in group]


def test_workers_that_come_and_go_leave_every_id_of_an_epoch_once() -> None:
    order = SampleOrder(index_of(*[6] * 16), lanes=12, seed=1)
    seen: list[Sample] = []
    for step in range(8):  # one epoch of 96
        world = (4, 4, 4, 2, 2, 4, 4, 4)[step]
        for rank in range(world):
            seen += order.samples(step, global_batch=12, rank=rank, world=world)
    assert Counter(map(address, seen)) == Counter((shard, 2 * row) for shard in range(16) for row in range(6))


def test_a_phase_begins_its_epochs_anew_in_another_order() -> None:
    index = index_of(*[5] * 8)
    everything = (EveryRow(index.shards),)
    phases = [Phase(0, everything, Mix.of_one()), Phase(60, everything, Mix.of_one())]
    order = SampleOrder(index, lanes=6, seed=0, phases=phases)
    first, second = ([order.sample(g) for g in range(start, start + 40)] for start in (0, 60))
    assert {sample.epoch for sample in (*first, *second)} == {0}
    assert Counter(map(address, first)) == Counter(map(address, second))
    assert [address(sample) for sample in first] != [address(sample) for sample in second]


def test_randomness_differs_by_seed_id_epoch_repeat_and_phase() -> None:
    base = {"seed": 1, "epoch": 2, "repeat": 3, "phase": 4}
    changed = [base, *({**base, name: 9} for name in base)]
    states = {float(sample_rng("a", **settings).random()) for settings in changed}
    assert len(states | {float(sample_rng("b", **base).random())}) == 6
    assert sample_rng("a", **base).random() == sample_rng("a", **base).random()
