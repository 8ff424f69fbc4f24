"""The generated scenes, and the real photographs of the demo."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs.photos import PHOTOS, write_photos
from jobs.scenes import CLASSES, COLORS, SIZE, SceneCounts, scene, write_scenes
from pipelines.sources import ImageNetSource

COUNTS = SceneCounts(train=2, test=3, objects_per_class=1, unlabelled=4)


def test_equal_seeds_make_equal_scenes_and_others_do_not(tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        write_scenes(tmp_path / name, seed=seed, counts=COUNTS)
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.png"))
    assert len(files) == 2 * (2 + 3) + len(CLASSES) - 1 + 4
    assert all((tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes() for file in files)
    assert any((tmp_path / "a" / file).read_bytes() != (tmp_path / "c" / file).read_bytes() for file in files)


def test_more_test_scenes_do_not_change_the_training_scenes(tmp_path: Path) -> None:
    more = SceneCounts(train=2, test=5, objects_per_class=2, unlabelled=1)
    for name, counts in (("a", COUNTS), ("b", more)):
        write_scenes(tmp_path / name, seed=0, counts=counts)
    place = Path("labelled", "images", "train", "0001.png")
    assert (tmp_path / "a" / place).read_bytes() == (tmp_path / "b" / place).read_bytes()


@pytest.mark.parametrize("index", range(1, len(CLASSES)))
def test_scenes_have_exact_masks_of_the_classes_asked_for(index: int) -> None:
    image, label = scene(np.random.default_rng(index), classes=[index])
    assert image.shape == (SIZE, SIZE, 3)
    assert set(np.unique(label)) == {0, index}


def test_no_class_can_be_told_by_its_mean_colour() -> None:
    rng = np.random.default_rng(0)
    means = {}
    for index in range(1, len(CLASSES)):
        pictures = [scene(rng, classes=[index]) for _ in range(30)]
        means[index] = np.array([image[label == index].mean(axis=0) for image, label in pictures])
    spread_within = np.mean([group.std(axis=0).mean() for group in means.values()])
    spread_between = np.std([group.mean(axis=0) for group in means.values()], axis=0).mean()
    assert spread_between < spread_within


def test_every_class_has_a_colour_of_its_own() -> None:
    assert len(set(COLORS)) == len(CLASSES) == len(COLORS)


def test_photographs_come_from_installed_packages_with_known_classes(tmp_path: Path) -> None:
    write_photos(tmp_path)
    samples = ImageNetSource(root=str(tmp_path)).list_samples().samples
    found = {Path(sample.image_uri).name: sample.class_index for sample in samples}
    assert found == {Path(place).name: index for place, index in PHOTOS.items()}
    assert {place.partition("/")[0] for place in PHOTOS} == {"skimage", "sklearn"}
    for name in found:
        with Image.open(tmp_path / name) as picture:
            assert min(picture.size) >= 224


@pytest.mark.parametrize(("package", "named"), [("skimage", "scikit-image"), ("sklearn", "scikit-learn")])
def test_photographs_of_a_package_that_is_not_installed_name_it(
    package: str, named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == package else find(name))
    with pytest.raises(ValueError, match=rf"come with {named}: pip install 'segray\[samples\]'"):
        write_photos(tmp_path)
