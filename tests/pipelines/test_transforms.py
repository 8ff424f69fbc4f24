"""Training augmentation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as tv  # type: ignore[import-untyped]
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from torch import Tensor

from pipelines.colors import ColorDraws, jitter
from pipelines.crops import class_indices
from pipelines.labels import LabelSpace
from pipelines.transforms import PAD_COLOR, Draws, augment, target_size
from seg_models.recipes.recipe import AugmentSpec

VOID = 65535


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed))


def quadrants(height: int = 40, width: int = 60) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Four flat colours; the label of a quadrant is 1000 + its number, its red value 60 * its number."""
    label = np.zeros((height, width), dtype=np.uint16)
    label[: height // 2, width // 2 :] = 1
    label[height // 2 :, : width // 2] = 2
    label[height // 2 :, width // 2 :] = 3
    image = np.stack([60 * label, 255 - 60 * label, np.full_like(label, 9)], axis=-1).astype(np.uint8)
    return image, label + 1000


def run(spec: AugmentSpec, seed: int = 0) -> tuple[Tensor, Tensor]:
    image, label = quadrants()
    return augment(image, label, spec=spec, void=VOID, rng=rng(seed))


PLAIN = AugmentSpec(crop=(40, 60), scale=(1.0, 1.0), flip=0.0)


def test_neutral_settings_return_the_image_and_its_label_unchanged() -> None:
    image, label = quadrants()
    pixels, classes = run(PLAIN)
    assert np.array_equal(pixels.permute(1, 2, 0).numpy(), image)
    assert np.array_equal(classes.numpy(), label)
    assert pixels.dtype == torch.uint8
    assert classes.dtype == torch.uint16


def test_a_certain_flip_mirrors_image_and_label_together() -> None:
    image, label = quadrants()
    pixels, classes = run(PLAIN.model_copy(update={"flip": 1.0}))
    assert np.array_equal(pixels.permute(1, 2, 0).numpy(), image[:, ::-1])
    assert np.array_equal(classes.numpy(), label[:, ::-1])


def test_left_and_right_classes_change_places_where_the_image_is_mirrored_and_only_there() -> None:
    image, _ = quadrants()
    label = np.full(image.shape[:2], 3, np.uint8)
    label[:, :20], label[:, 20:40] = 1, 255
    label[0] = 0
    crops = [
        augment(image, label, spec=PLAIN.model_copy(update={"flip": flip}), void=255, rng=rng(), mirrored=(0, 3, 2, 1))
        for flip in (0.0, 1.0)
    ]
    assert np.array_equal(crops[0][1].numpy(), label)
    swapped = np.where(label == 1, 3, np.where(label == 3, 1, label))
    assert np.array_equal(crops[1][1].numpy(), swapped[:, ::-1])


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    height=st.integers(12, 90),
    width=st.integers(12, 90),
    short=st.sampled_from([None, 20, 50]),
)
def test_image_and_label_stay_aligned_under_every_draw(seed: int, height: int, width: int, short: int | None) -> None:
    spec = AugmentSpec(crop=(32, 48), scale=(0.5, 2.0), short_side=short, flip=0.5)
    image, label = quadrants(height, width)
    pixels, classes = augment(image, label, spec=spec, void=VOID, rng=rng(seed))
    assert pixels.shape == (3, 32, 48)
    assert classes.shape == (32, 48)
    classes = classes.long()
    assert set(classes.unique().tolist()) <= {1000, 1001, 1002, 1003, VOID}
    inside = classes != VOID
    # Bilinear edges are blends; where one label fills the neighbourhood, the colour must be that label's.
    largest_scale = 2.0 * (short or min(height, width)) / min(height, width)
    flat = inside & _flat(classes, margin=3 + math.ceil(largest_scale))
    expected = (classes - 1000) * 60
    assert bool(((pixels[0].long() - expected).abs()[flat] <= 1).all())
    pad = torch.tensor(PAD_COLOR, dtype=torch.uint8)[:, None]
    assert bool((pixels[:, ~inside] == pad).all())


def _flat(classes: Tensor, *, margin: int) -> Tensor:
    """Pixels whose neighbourhood of `margin` pixels lies inside the crop and holds one label."""
    padded = torch.nn.functional.pad(classes[None, None].double(), (margin,) * 4, value=-1.0)
    size = 2 * margin + 1
    high = torch.nn.functional.max_pool2d(padded, size, stride=1)
    low = -torch.nn.functional.max_pool2d(-padded, size, stride=1)
    return (high == low)[0, 0]


def test_a_small_image_is_padded_below_and_right_with_void_and_the_mean_colour() -> None:
    pixels, classes = run(AugmentSpec(crop=(50, 64), scale=(1.0, 1.0), flip=0.0))
    assert bool((classes[40:] == VOID).all())
    assert bool((classes[:, 60:] == VOID).all())
    assert bool((classes[:40, :60] != VOID).all())
    assert pixels[:, 49, 63].tolist() == list(PAD_COLOR)


def test_colour_changes_touch_neither_label_nor_padding() -> None:
    spec = AugmentSpec(crop=(50, 64), scale=(1.0, 1.0), flip=0.0)
    plain_pixels, plain_classes = run(spec)
    loud = spec.model_copy(update={"brightness": 0.5, "contrast": 0.5, "saturation": 0.5})
    pixels, classes = run(loud, seed=3)
    assert torch.equal(classes, plain_classes)
    assert torch.equal(pixels[:, 40:], plain_pixels[:, 40:])
    assert not torch.equal(pixels[:, :40, :60], plain_pixels[:, :40, :60])


def test_turning_colours_on_does_not_move_the_crop() -> None:
    spec = AugmentSpec(crop=(16, 16), scale=(0.5, 2.0))
    plain = [run(spec, seed)[1] for seed in range(8)]
    loud = [run(spec.model_copy(update={"brightness": 0.4, "saturation": 0.4}), seed)[1] for seed in range(8)]
    assert all(torch.equal(a, b) for a, b in zip(plain, loud, strict=True))


def test_the_same_generator_state_gives_the_same_crop_and_another_gives_another() -> None:
    spec = AugmentSpec(crop=(16, 16), brightness=0.4)
    first, again, other = run(spec, 5), run(spec, 5), run(spec, 6)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])


def test_every_position_of_the_crop_can_be_drawn() -> None:
    image = np.zeros((4, 5, 3), dtype=np.uint8)
    label = np.arange(20, dtype=np.uint8).reshape(4, 5)
    spec = AugmentSpec(crop=(2, 2), scale=(1.0, 1.0), flip=0.0)
    corners = {int(augment(image, label, spec=spec, void=255, rng=rng(seed))[1][0, 0]) for seed in range(400)}
    assert corners == {0, 1, 2, 3, 5, 6, 7, 8, 10, 11, 12, 13}


def test_short_side_and_scale_multiply() -> None:
    spec = AugmentSpec(crop=(8, 8), short_side=100, scale=(0.5, 1.5))
    assert target_size((200, 300), spec=spec, draw=0.0) == (50, 75)
    assert target_size((200, 300), spec=spec, draw=0.5) == (100, 150)
    assert target_size((300, 200), spec=spec, draw=0.5) == (150, 100)
    assert target_size((200, 300), spec=AugmentSpec(scale=(2.0, 2.0)), draw=0.3) == (400, 600)


def test_a_label_of_another_size_is_refused_with_both_sizes() -> None:
    image, label = quadrants()
    with pytest.raises(ValueError, match=r"\(40, 60\).*\(40, 59\)"):
        augment(image, label[:, :-1], spec=PLAIN, void=VOID, rng=rng())


# -- crops around a point, and not filled by one class ---------------------------------------------------------------


def coordinates(height: int, width: int) -> np.ndarray[Any, Any]:
    """A label whose value tells the place of each pixel."""
    return np.arange(height * width, dtype=np.uint16).reshape(height, width)


def corner_of(label: np.ndarray[Any, Any], seed: int, spec: AugmentSpec, **settings: Any) -> tuple[int, int]:
    image = np.zeros((*label.shape, 3), np.uint8)
    crop = augment(image, label, spec=spec, void=VOID, rng=rng(seed), **settings)[1]
    row, column = divmod(int(crop[0, 0]), label.shape[1])
    return row, column


def test_a_crop_around_a_centroid_equals_the_slow_reference() -> None:
    spec = AugmentSpec(crop=(8, 10), scale=(1.0, 1.0), flip=0.0)
    label, centroid = coordinates(40, 60), (37, 20)
    found = {corner_of(label, seed, spec, centroid=centroid) for seed in range(600)}
    rows = {min(max(top, 0), 40 - 8) for top in range(37 - 8, 37 + 1)}
    columns = {min(max(left, 0), 60 - 10) for left in range(20 - 10, 20 + 1)}
    assert found == {(row, column) for row in rows for column in columns}
    assert rows == {29, 30, 31, 32}, "the crop is moved into the image"


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 999), y=st.integers(0, 39), x=st.integers(0, 59), factor=st.sampled_from([0.5, 1.0, 1.7]))
def test_a_scaled_centroid_lies_in_its_crop_or_right_beside_it(seed: int, y: int, x: int, factor: float) -> None:
    spec = AugmentSpec(crop=(8, 10), scale=(factor, factor), flip=0.0)
    label = np.zeros((40, 60), np.uint16)
    label[max(0, y - 2) : y + 3, max(0, x - 2) : x + 3] = 9
    crop = augment(np.zeros((40, 60, 3), np.uint8), label, spec=spec, void=VOID, rng=rng(seed), centroid=(y, x))[1]
    assert bool((crop == 9).any())


def test_crops_are_cut_around_any_pixel_of_the_classes_named_where_there_is_one() -> None:
    spec = AugmentSpec(crop=(4, 4), scale=(1.0, 1.0), flip=0.0)
    label = np.zeros((40, 60), np.uint16)
    label[30:33, 50:54], label[2:5, 3:7] = 7, 8
    image = np.zeros((40, 60, 3), np.uint8)
    crops = [augment(image, label, spec=spec, void=VOID, rng=rng(n), around=(7, 8))[1] for n in range(60)]
    seen = [{7, 8} & set(crop.unique().tolist()) for crop in crops]
    assert sum(map(bool, seen)) > 40  # a crop may border on its pixel
    assert {7} in seen
    assert {8} in seen
    plain = [augment(image, label, spec=spec, void=VOID, rng=rng(n))[1] for n in range(60)]
    absent = [augment(image, label, spec=spec, void=VOID, rng=rng(n), around=(5,))[1] for n in range(60)]
    assert all(torch.equal(a, b) for a, b in zip(plain, absent, strict=True))


def test_a_crop_that_one_class_fills_is_drawn_again_and_the_eleventh_is_taken_as_it_is() -> None:
    label = np.zeros((64, 64), np.uint16)
    label[:, 32:] = 1
    label[:4] = VOID
    image = np.zeros((64, 64, 3), np.uint8)
    spec = AugmentSpec(crop=(16, 16), scale=(1.0, 1.0), flip=0.0)
    limited = spec.model_copy(update={"crop_class_max": 0.75})
    drawn = [augment(image, label, spec=limited, void=VOID, rng=rng(seed))[1] for seed in range(40)]
    expected = [slow_crop(label, limited, seed) for seed in range(40)]
    assert all(np.array_equal(a.numpy(), b) for a, b in zip(drawn, expected, strict=True))
    assert sum(is_mixed(crop.numpy(), 0.75) for crop in drawn) > 24
    plain = [augment(image, label, spec=spec, void=VOID, rng=rng(seed))[1] for seed in range(40)]
    kept = [torch.equal(a, b) for a, b in zip(drawn, plain, strict=True) if is_mixed(b.numpy(), 0.75)]
    assert kept
    assert all(kept), "a crop that is good at once stays"
    flat = np.zeros((64, 64), np.uint16)
    assert augment(image, flat, spec=limited, void=VOID, rng=rng())[1].shape == (16, 16)


def slow_crop(label: np.ndarray[Any, Any], spec: AugmentSpec, seed: int) -> np.ndarray[Any, Any]:
    """mmsegmentation's RandomCrop: ten crops are judged, the next one is not."""
    numbers = rng(seed).random(7 + 4 + 20).tolist()
    corners = [numbers[1:3], *(numbers[i : i + 2] for i in range(11, 31, 2))]
    for tried, (top, left) in enumerate(corners):
        row, column = int(top * 49), int(left * 49)
        crop = label[row : row + 16, column : column + 16]
        if tried == 10 or is_mixed(crop, spec.crop_class_max or 1.0):
            break
    return crop


def is_mixed(crop: np.ndarray[Any, Any], limit: float) -> bool:
    values, counts = np.unique(crop[crop != VOID], return_counts=True)
    return len(values) > 1 and counts.max() / counts.sum() < limit


# -- hue and blur --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [{"hue": 0.25}, {"blur": (0.5, 2.0)}, {"crop_around": ("a",)}])
def test_a_new_colour_setting_moves_neither_crop_nor_the_other_colours(change: dict[str, Any]) -> None:
    spec = AugmentSpec(crop=(16, 16), scale=(0.5, 2.0), brightness=0.4)
    for seed in range(6):
        plain, changed = run(spec, seed), run(spec.model_copy(update=change), seed)
        assert torch.equal(plain[1], changed[1])
        numbers = rng(seed).random(7)
        again = Draws.taken(rng(seed))
        assert (again.scale, again.corners[0], again.flip) == (numbers[0], tuple(numbers[1:3]), numbers[3])
        assert again.colors[:3] == tuple(numbers[4:7])


@pytest.mark.parametrize("size", [(1, 1), (7, 90), (240, 320), (713, 713)])
@pytest.mark.parametrize("strengths", [(0.2, 0.2, 0.2), (1.7, 0.0, 1.0), (0.0, 1.7, 0.0), (0.5, 1.0, 0.5)])
def test_brightness_contrast_and_saturation_equal_torchvisions_to_the_bit(
    size: tuple[int, int], strengths: tuple[float, float, float]
) -> None:
    spec = AugmentSpec(crop=size, brightness=strengths[0], contrast=strengths[1], saturation=strengths[2])
    for seed in range(4):
        random = rng(seed)
        image = torch.from_numpy(random.integers(0, 256, (3, *size), np.uint8))
        draws = ColorDraws(*random.random(6).tolist())
        before, expected = image.clone(), image
        changes = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation)
        for change, strength, draw in zip(changes, strengths, draws[:3], strict=True):
            low = max(0.0, 1 - strength)
            expected = change(expected, low + (1 + strength - low) * draw)
        assert torch.equal(jitter(image, spec=spec, draws=draws), expected)
        assert torch.equal(image, before)


def test_the_hue_turns_to_either_side_and_grey_stays_grey() -> None:
    image = np.full((16, 16, 3), (200, 40, 40), np.uint8)
    label = np.zeros((16, 16), np.uint8)
    spec = AugmentSpec(crop=(16, 16), scale=(1.0, 1.0), flip=0.0, hue=0.25)
    colors = [augment(image, label, spec=spec, void=255, rng=rng(n))[0][:, 0, 0].tolist() for n in range(40)]
    assert max(color[1] for color in colors) > 120  # towards green
    assert max(color[2] for color in colors) > 120  # towards blue
    assert all(max(color) == 200 and min(color) == 40 for color in colors)
    grey = np.full((16, 16, 3), 90, np.uint8)
    assert bool((augment(grey, label, spec=spec, void=255, rng=rng())[0] == 90).all())


def test_the_blur_equals_scipys_gaussian_and_is_as_frequent_as_asked() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 24, 3)).astype(np.uint8)
    label = np.zeros((20, 24), np.uint8)
    spec = AugmentSpec(crop=(20, 24), scale=(1.0, 1.0), flip=0.0, blur=(1.0, 1.0))
    found = augment(pixels, label, spec=spec, void=255, rng=rng())[0].permute(1, 2, 0).numpy()
    expected = ndimage.gaussian_filter(pixels.astype(float), (1.0, 1.0, 0.0), mode="mirror", truncate=4.0)
    assert np.abs(found - expected).max() <= 0.51
    half = spec.model_copy(update={"blur_share": 0.5})
    blurred = [
        not np.array_equal(augment(pixels, label, spec=half, void=255, rng=rng(n))[0].permute(1, 2, 0), pixels)
        for n in range(60)
    ]
    assert 15 < sum(blurred) < 45


@pytest.mark.parametrize("size", [(1, 1), (2, 30), (3, 3)])
def test_tiny_images_are_blurred_as_far_as_they_reach(size: tuple[int, int]) -> None:
    image, label = np.full((*size, 3), 77, np.uint8), np.zeros(size, np.uint8)
    spec = AugmentSpec(crop=size, scale=(1.0, 1.0), flip=0.0, blur=(1.3, 1.3))
    assert bool((augment(image, label, spec=spec, void=255, rng=rng())[0] == 77).all())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"blur": (0.0, 0.0)}, r"blur must be \(low, high\)"),
        ({"blur_share": 0.5}, r"blur_share = 0\.5 takes no effect without `blur`"),
        ({"hue": 0.6}, "less than or equal to 0.5"),
        ({"crop_class_max": 1.0}, "less than 1"),
    ],
)
def test_settings_without_meaning_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AugmentSpec.model_validate(settings)


def test_a_class_that_does_not_exist_is_refused_with_the_nearest_name() -> None:
    space = LabelSpace(names=("road", "rider", "train"))
    assert class_indices(("train", "road"), space, key="k") == (2, 0)
    with pytest.raises(ValueError, match=r"k: no class 'ridr' \(did you mean 'rider'\?\); classes: road, rider, train"):
        class_indices(("ridr",), space, key="k")
