"""Centroids of classes: against scipy's centre of mass, found once per label set."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from pipelines import centroids, storage
from pipelines.centroids import complete_index, known_index
from pipelines.centroids_worker import tile_centroids
from pipelines.samplers import ONE
from pipelines.samples import Part, SampleIndex, build_index
from pipelines.schema import ShardKey
from pipelines.shards import ComputeSpec
from seg_models.recipes.sampling import ClassUniformSpec, SamplingSpec
from tests.tiny_data import SPACE, add_labels, scene, write_dataset

BOTH = SamplingSpec(class_uniform=ClassUniformSpec(tile=16, until=0.5), repeat_threshold=0.9)


def slow_centroids(label: NDArray[Any], *, tile: int, num_classes: int) -> list[tuple[int, int, int]]:
    """Sheet, section 6.1."""
    found = []
    for row in range(label.shape[0] // tile):
        for column in range(label.shape[1] // tile):
            top, left = row * tile, column * tile
            patch = label[top : top + tile, left : left + tile]
            for number in range(num_classes):
                if (patch == number).any():
                    y, x = ndimage.center_of_mass((patch == number).astype(int))
                    found.append((number, int(y) + top, int(x) + left))
    return found


@settings(max_examples=60, deadline=None)
@given(
    size=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    tile=st.integers(1, 12),
    seed=st.integers(0, 999),
    wide=st.booleans(),
)
def test_centroids_equal_those_of_scipy(size: tuple[int, int], tile: int, seed: int, wide: bool) -> None:
    rng = np.random.default_rng(seed)
    label = rng.choice([0, 1, 2, 5, 65535 if wide else 255], size, p=(0.5, 0.2, 0.1, 0.1, 0.1))
    label = label.astype(np.uint16 if wide else np.uint8)
    found = tile_centroids(label, tile_px=tile, num_classes=6)
    assert [tuple(row) for row in found.tolist()] == slow_centroids(label, tile=tile, num_classes=6)


def test_a_whole_label_is_one_tile_where_no_size_is_given() -> None:
    label = np.array([[0, 0, 7], [2, 2, 255]], np.uint8)
    assert tile_centroids(label, tile_px=None, num_classes=3).tolist() == [[0, 0, 0], [2, 1, 0]]
    assert tile_centroids(label, tile_px=3, num_classes=3).shape == (0, 3)


def index_at(root: Path, **changes: Any) -> SampleIndex:
    return build_index([Part(dataset=str(root), **changes)])


@pytest.mark.usefixtures("ray_local")
def test_labels_are_looked_at_once_and_again_when_they_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = write_dataset(tmp_path / "data", shard_sizes=(4, 3), bad_images=(1,), bad_labels=(5,))
    run = str(tmp_path / "run")
    index = index_at(tmp_path / "data")
    assert known_index(index, BOTH, run=run) is None
    found = complete_index(index, BOTH, compute=ComputeSpec(actors=1, cpus=0.5), run=run)
    check(found, good=[[0, 2, 3], [0, 2]])
    assert not Path(run).exists()

    monkeypatch.setattr(centroids, "run_shards", lambda *_, **__: pytest.fail("the labels were looked at again"))
    again = complete_index(index_at(tmp_path / "data"), BOTH, compute=ComputeSpec(), run=run)
    check(again, good=[[0, 2, 3], [0, 2]])
    assert known_index(index, BOTH, run=run) is not None

    add_labels(dataset, "half", space=SPACE, shards={ShardKey("train", 0): range(4)})
    assert known_index(index_at(tmp_path / "data", labels="half"), BOTH, run=run) is None
    other_tile = SamplingSpec(class_uniform=ClassUniformSpec(tile=8))
    assert known_index(index, other_tile, run=run) is None


def check(index: SampleIndex, *, good: list[list[int]]) -> None:
    """Against the labels the tiny dataset is made of."""
    table = index.centroids
    assert table is not None
    assert index.repeats is not None
    expected, holds = [], []
    for shard, rows in enumerate(good):
        for row in rows:
            label = scene(row + 4 * shard, space=SPACE, size=(36, 44))["label"]
            expected += [(shard, row, *centroid) for centroid in slow_centroids(label, tile=16, num_classes=3)]
            holds.append(set(np.unique(label).tolist()))
    columns = (table.shard, table.row, table.class_index, table.y, table.x)
    assert list(zip(*(column.tolist() for column in columns), strict=True)) == expected
    frequency = {number: sum(number in held for held in holds) / len(holds) for number in range(3)}
    factors = [max(max(1.0, (0.9 / frequency[number]) ** 0.5) for number in held) for held in holds]
    assert np.concatenate(index.repeats) / ONE == pytest.approx(factors, abs=1e-6)


@pytest.mark.usefixtures("ray_local")
def test_a_dataset_that_cannot_be_written_has_its_centroids_in_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_dataset(tmp_path / "data", shard_sizes=(2,))
    real = storage.check_writable

    def refuse(uri: str) -> None:
        if "data" in Path(uri).parts:
            raise ValueError(f"{uri}: cannot be written (read-only)")
        real(uri)

    monkeypatch.setattr(storage, "check_writable", refuse)
    index, spec = index_at(tmp_path / "data"), SamplingSpec(class_uniform=ClassUniformSpec(tile=16))
    run = str(tmp_path / "run")
    complete_index(index, spec, compute=ComputeSpec(actors=1, cpus=0.5), run=run)
    assert "cannot be written (read-only): centroids are kept in the run's folder" in capsys.readouterr().out
    assert not (tmp_path / "data" / "centroids").exists()
    assert len(os.listdir(tmp_path / "run" / "centroids")) == 1
    assert known_index(index, spec, run=run) is not None


def test_a_damaged_file_of_centroids_is_named(tmp_path: Path) -> None:
    write_dataset(tmp_path / "data", shard_sizes=(2,))
    index, spec = index_at(tmp_path / "data"), SamplingSpec(class_uniform=ClassUniformSpec(tile=16))
    beside, _ = centroids._places(index, 0, tile_px=16, run=str(tmp_path))
    storage.write_bytes(beside, b"torn")
    with pytest.raises(ValueError, match=r"centroids/human-train-16-.*: damaged file of centroids .*; delete it"):
        known_index(index, spec, run=str(tmp_path))
