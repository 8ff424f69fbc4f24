"""Which samples training sees, in which order, and the threads that bring them."""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import sample_maker
from pipelines.batch_plan import Batch, BatchPlan
from pipelines.labels import LabelSpace
from pipelines.local_batches import LocalBatches
from pipelines.order import Sample, SampleOrder
from pipelines.sample_maker import OpenShard, ShardCache
from pipelines.samplers import permutation
from pipelines.samples import Part, SampleIndex, ShardRows, build_index
from pipelines.schema import ShardKey
from seg_models.recipes.recipe import AugmentSpec
from tests.tiny_data import SPACE, add_labels, write_dataset

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


# -- order ---------------------------------------------------------------------------------------------------------


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


# -- index ---------------------------------------------------------------------------------------------------------


def test_rows_without_image_or_label_are_left_out(tmp_path: Path) -> None:
    write_dataset(tmp_path, shard_sizes=(5, 4, 3), bad_images=(0, 6), bad_labels=(1, 9, 10, 11))
    index = build_index([Part(dataset=str(tmp_path))])
    assert [shard.rows.tolist() for shard in index.shards] == [[2, 3, 4], [0, 2, 3]]
    assert index.num_samples == 6
    assert (index.parts[0].num_rows, index.parts[0].num_samples) == (12, 6)


def test_the_label_sets_of_two_datasets_train_together(tmp_path: Path) -> None:
    write_dataset(tmp_path / "a", shard_sizes=(3, 2))
    write_dataset(tmp_path / "b", shard_sizes=(4,), labels="teacher", split="extra")
    parts = [Part(dataset=str(tmp_path / "a")), Part(dataset=str(tmp_path / "b"), labels="teacher", split="extra")]
    index = build_index(parts)
    assert index.num_samples == 9
    drawn = [SampleOrder(index, lanes=6, seed=0).sample(g) for g in range(9)]
    assert Counter(sample.part for sample in drawn) == {0: 5, 1: 4}


def test_label_sets_with_other_classes_are_refused_by_name(tmp_path: Path) -> None:
    write_dataset(tmp_path / "a")
    write_dataset(tmp_path / "b", space=LabelSpace(names=("ground", "red", "blue")))
    with pytest.raises(ValueError, match="differ: green, blue"):
        build_index([Part(dataset=str(tmp_path / "a")), Part(dataset=str(tmp_path / "b"))])


def test_one_part_that_knows_mirror_pairs_tells_the_others(tmp_path: Path) -> None:
    write_dataset(tmp_path / "a")
    write_dataset(tmp_path / "b", space=SPACE.model_copy(update={"mirror_pairs": ((1, 2),)}))
    write_dataset(tmp_path / "c", space=SPACE.model_copy(update={"mirror_pairs": ((0, 1),)}))
    first, paired, other = (Part(dataset=str(tmp_path / name)) for name in "abc")
    for parts in ([first, paired], [paired, first]):
        assert build_index(parts).label_space.mirrored == (0, 2, 1)
    with pytest.raises(ValueError, match=r"mirror_pairs of .*/b.* and .*/c.* differ"):
        build_index([first, paired, other])


def test_labels_that_slipped_against_the_images_are_refused(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path, shard_sizes=(3,))
    add_labels(dataset, "slipped", space=SPACE, shards={ShardKey("train", 0): [0, 2, 1]})
    with pytest.raises(ValueError, match="row 1 is image 'scene-0001' but label 'scene-0002'"):
        build_index([Part(dataset=str(tmp_path), labels="slipped")])
    add_labels(dataset, "short", space=SPACE, shards={ShardKey("train", 0): [0, 1]})
    with pytest.raises(ValueError, match="3 images but 2 labels"):
        build_index([Part(dataset=str(tmp_path), labels="short")])


def test_an_unfinished_label_set_counts_its_missing_shards(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path, shard_sizes=(3, 2))
    add_labels(dataset, "half", space=SPACE, shards={ShardKey("train", 1): [3, 4]})
    summary = build_index([Part(dataset=str(tmp_path), labels="half")]).parts[0]
    assert (summary.num_missing_shards, summary.num_samples) == (1, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": "trian"}, "no such split.*did you mean 'train'"),
        ({"labels": "humann"}, "did you mean 'human'"),
    ],
)
def test_a_misspelt_part_is_refused_with_the_nearest_name(tmp_path: Path, change: dict[str, str], message: str) -> None:
    write_dataset(tmp_path, shard_sizes=(2,))
    with pytest.raises(ValueError, match=message):
        build_index([Part(dataset=str(tmp_path), **change)])


def test_a_part_without_a_usable_row_is_refused(tmp_path: Path) -> None:
    write_dataset(tmp_path, shard_sizes=(2,), bad_labels=(0, 1))
    with pytest.raises(ValueError, match="none of 2 rows has both"):
        build_index([Part(dataset=str(tmp_path))])


def test_the_fingerprint_follows_the_content_and_not_the_place(tmp_path: Path) -> None:
    for name, sizes in (("a", (3, 2)), ("b", (3, 2)), ("c", (2, 3))):
        write_dataset(tmp_path / name, shard_sizes=sizes)
    prints = [build_index([Part(dataset=str(tmp_path / name))]).fingerprint() for name in "abc"]
    assert prints[0] == prints[1] != prints[2]


# -- stream --------------------------------------------------------------------------------------------------------

CROP = AugmentSpec(crop=(24, 32), scale=(0.8, 1.3), brightness=0.2)


def stream(index: SampleIndex, *, num_threads: int = 2, ahead: int = 4, **changes: Any) -> LocalBatches:
    make_order = partial(SampleOrder, index, lanes=4, seed=11)
    plan = BatchPlan(make_order, **{"augment": CROP, "global_batch": 4, "steps": 5, **changes})
    return LocalBatches(plan, num_threads=num_threads, ahead=ahead)


@pytest.fixture
def index(tmp_path: Path) -> SampleIndex:
    write_dataset(tmp_path, shard_sizes=(5, 4, 3))
    return build_index([Part(dataset=str(tmp_path))])


def by_id(batches_seen: list[Batch]) -> dict[tuple[int, str], tuple[torch.Tensor, torch.Tensor]]:
    return {
        (batch.step, sample_id): (batch.images[i], batch.labels[i])
        for batch in batches_seen
        for i, sample_id in enumerate(batch.ids)
    }


def test_batches_hold_uint8_images_and_labels_of_the_crop_size(index: SampleIndex) -> None:
    with stream(index) as running:
        seen = list(running)
    assert [batch.step for batch in seen] == [0, 1, 2, 3, 4]
    for batch in seen:
        assert (batch.images.shape, batch.images.dtype) == ((4, 3, 24, 32), torch.uint8)
        assert (batch.labels.shape, batch.labels.dtype) == ((4, 24, 32), torch.uint8)
        assert set(batch.labels.unique().tolist()) <= {0, 1, 2, SPACE.void}


def test_pixels_depend_on_neither_workers_nor_threads_nor_accumulation_nor_the_start(index: SampleIndex) -> None:
    with stream(index, num_threads=1, ahead=1) as running:
        golden = by_id(list(running))
    seen = []
    for rank in range(2):
        with stream(index, rank=rank, world=2, accumulate=2, num_threads=4, start_step=2) as running:
            seen += list(running)
    assert len(seen) == 2 * 3 * 2
    found = by_id(seen)
    assert set(found) == {key for key in golden if key[0] >= 2}
    for key, (image, label) in found.items():
        assert torch.equal(image, golden[key][0])
        assert torch.equal(label, golden[key][1])


def test_a_sample_is_augmented_differently_in_every_epoch(index: SampleIndex) -> None:
    with stream(index, steps=6) as running:
        seen = by_id(list(running))
    pairs = [(seen[key][0], image) for key, image in _second_epoch(seen)]
    assert len(pairs) == 12
    assert not any(torch.equal(first, second) for first, second in pairs)


def _second_epoch(seen: dict[tuple[int, str], Any]) -> list[tuple[tuple[int, str], torch.Tensor]]:
    first = {sample_id: key for key in seen for sample_id in [key[1]] if key[0] < 3}
    return [(first[key[1]], value[0]) for key, value in seen.items() if key[0] >= 3]


def test_every_shard_is_read_once_while_it_is_open(index: SampleIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: Counter[ShardKey] = Counter()
    real = sample_maker._open_shard

    def counted(shard: ShardRows) -> OpenShard:
        reads[shard.key] += 1
        return real(shard)

    monkeypatch.setattr(sample_maker, "_open_shard", counted)
    with stream(index, steps=12, num_threads=4) as running:
        assert len(list(running)) == 12
    assert set(reads.values()) == {1}


def test_the_cache_forgets_the_shard_used_longest_ago(index: SampleIndex) -> None:
    cache = ShardCache(index, capacity=2)
    keys = [shard.key for shard in index.shards]
    first = cache.get(0, keys[0])
    second = cache.get(0, keys[1])
    assert cache.get(0, keys[0]) is first
    cache.get(0, keys[2])
    assert cache.get(0, keys[0]) is first
    assert cache.get(0, keys[1]) is not second


def test_an_error_in_a_thread_surfaces_in_the_loop_with_the_sample(tmp_path: Path) -> None:
    write_dataset(tmp_path, shard_sizes=(4,), damaged=(2,))
    broken = build_index([Part(dataset=str(tmp_path))])
    with stream(broken) as running, pytest.raises(ValueError, match="train/00000 row 2 id 'scene-0002'"):
        list(running)


def test_a_shard_file_that_rotted_after_indexing_stops_the_loop(index: SampleIndex, tmp_path: Path) -> None:
    for path in tmp_path.glob("images/split=train/**/*.parquet"):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(bytes(data))
    with stream(index) as running, pytest.raises(ValueError, match="damaged"):
        list(running)


def test_leaving_early_stops_every_thread(index: SampleIndex) -> None:
    with stream(index, steps=1000, num_threads=3) as running:
        next(running)
        assert any(thread.name.startswith("batches") for thread in threading.enumerate())
    assert not any(thread.name.startswith("batches") for thread in threading.enumerate())


def test_only_so_many_batches_are_made_ahead(index: SampleIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    made = 0
    real = sample_maker.augment

    def counted(*args: Any, **settings: Any) -> Any:
        nonlocal made
        made += 1
        return real(*args, **settings)

    monkeypatch.setattr(sample_maker, "augment", counted)
    with stream(index, steps=50, num_threads=1, ahead=3) as running:
        for _ in range(4):
            next(running)
    assert 16 <= made <= 4 * (4 + 3)


def test_a_global_batch_that_does_not_divide_is_refused(index: SampleIndex) -> None:
    with pytest.raises(ValueError, match="do not divide a global batch of 4"):
        stream(index, accumulate=3)
