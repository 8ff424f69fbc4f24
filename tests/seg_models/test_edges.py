"""Edges of images against Canny's formula in plain loops, borders of regions against distance transforms."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, gaussian_filter
from torch import Tensor

from seg_models.parts.edges import OUTSIDE, canny, region_borders

Ints = NDArray[np.int64]


def derivatives(image: Ints, row: int, column: int) -> tuple[int, int]:
    """Sobel's, of the channel that changes most; `image` is (C, H, W)."""
    height, width = image.shape[1:]
    best = (0, 0)
    for channel in image:

        def at(down: int, right: int, channel: Ints = channel) -> int:
            return int(channel[min(max(row + down, 0), height - 1), min(max(column + right, 0), width - 1)])

        dx = sum(weight * (at(down, 1) - at(down, -1)) for down, weight in ((-1, 1), (0, 2), (1, 1)))
        dy = sum(weight * (at(1, right) - at(-1, right)) for right, weight in ((-1, 1), (0, 2), (1, 1)))
        if abs(dx) + abs(dy) > abs(best[0]) + abs(best[1]):
            best = (dx, dy)
    return best


def slow_canny(image: Ints, *, low: int, high: int) -> NDArray[np.bool_]:
    """OpenCV's Canny, pixel by pixel; edges are followed without end."""
    height, width = image.shape[1:]
    slopes = {(i, j): derivatives(image, i, j) for i in range(height) for j in range(width)}
    magnitude = {place: abs(dx) + abs(dy) for place, (dx, dy) in slopes.items()}
    thin = [place for place in slopes if magnitude[place] > low and is_peak(place, slopes, magnitude)]
    reached = [place for place in thin if magnitude[place] > high]
    edges, candidates = set(reached), set(thin)
    while reached:
        i, j = reached.pop()
        near = {(i + di, j + dj) for di in (-1, 0, 1) for dj in (-1, 0, 1)}
        reached += (near & candidates) - edges
        edges |= near & candidates
    return np.array([[(i, j) in edges for j in range(width)] for i in range(height)])


def is_peak(place: tuple[int, int], slopes: dict[Any, Any], magnitude: dict[Any, int]) -> bool:
    (i, j), (dx, dy) = place, slopes[place]
    angle = math.degrees(math.atan2(abs(dy), abs(dx)))
    if angle < 22.5:
        return magnitude[place] > magnitude.get((i, j - 1), 0) and magnitude[place] >= magnitude.get((i, j + 1), 0)
    if angle > 67.5:
        return magnitude[place] > magnitude.get((i - 1, j), 0) and magnitude[place] >= magnitude.get((i + 1, j), 0)
    s = 1 if (dx < 0) == (dy < 0) else -1
    return magnitude[place] > max(magnitude.get((i - 1, j - s), 0), magnitude.get((i + 1, j + s), 0))


def blurred_noise(seed: int, *, height: int, width: int) -> Ints:
    noise = np.random.default_rng(seed).normal(size=(3, height, width))
    smooth = gaussian_filter(noise, sigma=(0, 1.2, 1.2))
    return np.asarray(np.clip(128 + 150 * smooth, 0, 255), dtype=np.int64)


@pytest.mark.parametrize(("seed", "low", "high"), [(0, 10, 100), (1, 60, 250), (2, 120, 200)])
def test_canny_is_opencvs_in_plain_loops(seed: int, low: int, high: int) -> None:
    image = blurred_noise(seed, height=26, width=31)
    expected = slow_canny(image, low=low, high=high)
    found = canny(torch.from_numpy(image)[None].to(torch.uint8), low=low, high=high, steps=300)
    assert found.shape == (1, 1, 26, 31)
    assert 0 < expected.sum() < expected.size / 2
    np.testing.assert_array_equal(found[0, 0].numpy() == 1, expected)


def test_canny_of_a_batch_is_that_of_its_images() -> None:
    images = torch.from_numpy(np.stack([blurred_noise(seed, height=17, width=12) for seed in range(3)]))
    together = canny(images)
    assert torch.equal(together, torch.cat([canny(image[None]) for image in images]))


def test_a_flat_image_has_no_edges_and_a_step_has_one_line() -> None:
    step = torch.zeros(1, 3, 8, 10, dtype=torch.uint8)
    assert canny(step).sum() == 0
    step[..., 5:] = 200
    assert canny(step)[0, 0].sum(dim=0).tolist() == [0, 0, 0, 0, 8, 0, 0, 0, 0, 0]


def test_an_edge_is_followed_as_far_as_the_steps_say() -> None:
    fading = torch.zeros(1, 3, 50, 10, dtype=torch.uint8)
    fading[..., 5:] = 55 - torch.arange(50, dtype=torch.uint8)[:, None]  # strong above, a candidate below
    rows = {steps: int(canny(fading, steps=steps).sum()) for steps in (0, 5, 64)}
    assert rows[5] == rows[0] + 5
    assert 0 < rows[0] < rows[5] < rows[64]


def distance_borders(labels: Ints, *, classes: list[int], radius: float) -> NDArray[np.bool_]:
    """Two distance transforms a class, as the released code makes its targets."""
    borders = np.zeros(labels.shape, dtype=bool)
    for value in classes:
        mask = np.pad(labels == value, 1).astype(np.uint8)
        if mask.any():
            distance = (distance_transform_edt(mask) + distance_transform_edt(1 - mask))[1:-1, 1:-1]
            borders |= distance <= radius
    return borders


def blobs(seed: int) -> Tensor:
    """Regions of four classes and void."""
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=(5, 30, 41)), sigma=(0, 3, 3))
    labels = torch.from_numpy(noise.argmax(axis=0))
    return labels.where(labels != 4, 255)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("radius", [1, 2, 3])
def test_borders_are_those_of_distance_transforms(seed: int, radius: int) -> None:
    labels = blobs(seed)
    known = (labels != 255).numpy()
    expected = distance_borders(labels.numpy(), classes=[0, 1, 2, 3], radius=radius)
    np.testing.assert_array_equal(region_borders(labels[None], radius=radius)[0].numpy() & known, expected & known)


@pytest.mark.parametrize("seed", range(4))
def test_classes_taken_for_the_outside_have_no_borders_of_their_own(seed: int) -> None:
    """The released targets: neither the first class nor void is looped over."""
    labels = blobs(seed)
    regions = labels.where((labels != 255) & (labels != 0), OUTSIDE)
    expected = distance_borders(labels.numpy(), classes=[1, 2, 3], radius=2)
    np.testing.assert_array_equal(region_borders(regions[None])[0].numpy(), expected)


def test_two_classes_have_a_band_of_four_pixels_between_them() -> None:
    labels = torch.zeros(1, 12, 20, dtype=torch.int64)
    labels[..., 9:] = 1
    inside = region_borders(labels)[0, 2:-2, 2:-2]
    assert inside.all(dim=0).nonzero().flatten().tolist() == [5, 6, 7, 8]
    assert inside.any(dim=0).sum() == 4
