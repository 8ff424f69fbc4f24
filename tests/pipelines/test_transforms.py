"""Training augmentation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipelines.transforms import PAD_COLOR, augment, target_size
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
