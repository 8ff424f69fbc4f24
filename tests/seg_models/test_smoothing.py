"""Smoothing of score maps against slow, obvious references."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from seg_models.smoothing import (
    AnySmoothing,
    GaussianSpec,
    GuidedSpec,
    NoSmoothing,
    box_mean,
    gaussian,
    guided_filter,
    smooth_map,
)

Array = NDArray[np.float64]


def random_map(height: int, width: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A map (H, W) and a guide (3, H, W)."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(height, width, generator=generator, dtype=torch.float64)
    return scores, torch.rand(3, height, width, generator=generator)


def window(y: int, x: int, radius: int) -> tuple[slice, slice]:
    return slice(max(0, y - radius), y + radius + 1), slice(max(0, x - radius), x + radius + 1)


def slow_guided(scores: Array, guide: Array, *, radius: int, eps: float) -> Array:
    """In every window a ridge regression of the map on the colour; at every pixel the mean of the windows' answers."""
    height, width = scores.shape
    slope, offset, found = np.zeros((3, height, width)), np.zeros((height, width)), np.zeros((height, width))
    for y, x in np.ndindex(height, width):
        place = window(y, x, radius)
        colours, values = guide[:, *place].reshape(3, -1), scores[place].ravel()
        covariance = np.cov(colours, bias=True) + eps * np.eye(3)
        together = (colours * values).mean(1) - colours.mean(1) * values.mean()
        slope[:, y, x] = np.linalg.solve(covariance, together)
        offset[y, x] = values.mean() - slope[:, y, x] @ colours.mean(1)
    for y, x in np.ndindex(height, width):
        place = window(y, x, radius)
        found[y, x] = slope[:, *place].reshape(3, -1).mean(1) @ guide[:, y, x] + offset[place].mean()
    return found


@pytest.mark.parametrize(("radius", "eps"), [(1, 1e-2), (3, 1e-3), (30, 1e-4)])
def test_the_guided_filter_equals_a_regression_in_every_window(radius: int, eps: float) -> None:
    scores, guide = random_map(9, 14)
    found = guided_filter(scores, guide=guide, radius_px=radius, eps=eps)
    expected = slow_guided(scores.numpy(), guide.double().numpy(), radius=radius, eps=eps)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-8, atol=1e-10)


def test_the_guided_filter_keeps_an_edge_of_the_image_and_smooths_away_noise() -> None:
    generator = torch.Generator().manual_seed(1)
    guide = torch.zeros(3, 40, 40)
    guide[:, :, 20:] = 1.0
    truth = guide[0].double()
    noisy = truth + 0.5 * torch.randn(40, 40, generator=generator, dtype=torch.float64)
    found = guided_filter(noisy, guide=guide, radius_px=8, eps=1e-3)
    assert float((found - truth).abs().mean()) < 0.1 * float((noisy - truth).abs().mean())
    blurred = gaussian(noisy, sigma_px=4.0)
    assert float((found - truth)[:, 18:22].abs().mean()) < 0.3 * float((blurred - truth)[:, 18:22].abs().mean())


def test_on_a_picture_of_one_colour_the_guided_filter_is_a_mean_of_means() -> None:
    scores, _ = random_map(12, 10)
    found = guided_filter(scores, guide=torch.full((3, 12, 10), 0.4), radius_px=2, eps=1e-3)
    means = box_mean(box_mean(scores[None], radius_px=2), radius_px=2)[0]
    torch.testing.assert_close(found, means, rtol=1e-9, atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(height=st.integers(1, 9), width=st.integers(1, 9), radius=st.integers(1, 12))
def test_a_box_mean_is_the_mean_of_the_window_inside_the_map(height: int, width: int, radius: int) -> None:
    scores, _ = random_map(height, width)
    found = box_mean(scores[None], radius_px=radius)[0]
    for y, x in np.ndindex(height, width):
        assert float(found[y, x]) == pytest.approx(float(scores[window(y, x, radius)].mean()), abs=1e-12)


def test_a_gaussian_spreads_a_point_as_the_formula_says_and_keeps_a_constant() -> None:
    point = torch.zeros(41, 41, dtype=torch.float64)
    point[20, 20] = 1.0
    found = gaussian(point, sigma_px=2.5)
    distance = torch.arange(-20, 21, dtype=torch.float64)
    expected = torch.exp(-0.5 * (distance / 2.5) ** 2)
    torch.testing.assert_close(found[20] / found[20, 20], torch.where(distance.abs() <= 10, expected, 0.0))
    flat = torch.full((5, 7), 0.3, dtype=torch.float64)
    torch.testing.assert_close(gaussian(flat, sigma_px=3.0), flat)


def test_sizes_are_shares_of_the_short_side() -> None:
    scores, guide = random_map(20, 30)
    found = smooth_map(scores, guide=guide, spec=GaussianSpec(sigma=0.1))
    assert torch.equal(found, gaussian(scores, sigma_px=2.0))
    found = smooth_map(scores, guide=guide, spec=GuidedSpec(radius=0.1, eps=1e-3))
    assert torch.equal(found, guided_filter(scores, guide=guide, radius_px=2, eps=1e-3))
    assert smooth_map(scores, guide=guide, spec=NoSmoothing()) is scores


def test_smoothing_settings_survive_json_and_refuse_what_they_do_not_know() -> None:
    adapter: TypeAdapter[AnySmoothing] = TypeAdapter(AnySmoothing)
    for spec in (GaussianSpec(), GuidedSpec(), NoSmoothing()):
        assert adapter.validate_json(adapter.dump_json(spec)) == spec
    for wrong in ({"kind": "guided", "sigma": 0.1}, {"kind": "gaussian", "sigma": 0}, {"kind": "median"}):
        with pytest.raises(ValidationError):
            adapter.validate_python(wrong)
