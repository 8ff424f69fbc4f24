"""Which samples training sees, in which order, and the threads that bring them."""

from __future__ import annotations

import threading
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines import sample_maker, transforms
from pipelines.batch_plan import Batch, BatchPlan
from pipelines.labels import LabelSpace
from pipelines.local_batches import LocalBatches
from pipelines.order import SampleOrder
from pipelines.sample_maker import OpenShard, ShardCache
from pipelines.samples import Part, SampleIndex, ShardRows, build_index
from pipelines.schema import ShardKey
from seg_models.recipes.recipe import AugmentSpec
from tests.tiny_data import SPACE, add_labels, write_dataset

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
    real = transforms.augment

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
