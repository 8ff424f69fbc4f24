"""Interpolation and pooling matrices against torch's own."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from seg_models.parts.resample import (
    bilinear_matrix,
    enlarge,
    near_inputs,
    pooling_matrix,
    resample,
    rows_per_strip,
    strips,
    upsample_to,
)

sizes = st.integers(1, 23)


@settings(max_examples=40, deadline=None)
@given(h=sizes, w=sizes, height=st.integers(1, 50), width=st.integers(1, 50))
def test_bilinear_matrices_equal_torchs_interpolation(h: int, w: int, height: int, width: int) -> None:
    cells = torch.rand(1, 2, h, w, generator=torch.Generator().manual_seed(h * 100 + w))
    expected = functional.interpolate(cells, size=(height, width), mode="bilinear", align_corners=False)
    found = resample(cells, rows=bilinear_matrix(h, height), columns=bilinear_matrix(w, width))
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)


@settings(max_examples=40, deadline=None)
@given(h=sizes, w=sizes, bins=st.integers(1, 8))
def test_pooling_matrices_equal_torchs_adaptive_pooling(h: int, w: int, bins: int) -> None:
    cells = torch.rand(1, 2, h, w, generator=torch.Generator().manual_seed(h * 100 + w))
    expected = functional.adaptive_avg_pool2d(cells, bins)
    found = resample(cells, rows=pooling_matrix(h, bins), columns=pooling_matrix(w, bins))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


@settings(max_examples=100, deadline=None)
@given(num_in=sizes, num_out=st.integers(1, 60), rows=st.integers(1, 20), stretch=st.floats(0.3, 1.0))
def test_a_strip_names_every_input_that_has_weight(num_in: int, num_out: int, rows: int, stretch: float) -> None:
    ratio = stretch * num_in / num_out
    matrix = bilinear_matrix(num_in, num_out, ratio=ratio)
    for strip in strips(num_out, rows=rows):
        near = near_inputs(strip, num_in=num_in, ratio=ratio)
        assert matrix[strip, near].sum() == pytest.approx(float(matrix[strip].sum()), abs=1e-5)
        assert near.stop > near.start


def test_strips_cover_every_row_once() -> None:
    rows = [row for strip in strips(23, rows=5) for row in range(strip.start, strip.stop)]
    assert rows == list(range(23))


def test_a_strip_stays_under_its_limit_but_has_a_row() -> None:
    cpu = torch.device("cpu")
    assert rows_per_strip(10, 20, device=cpu, max_elements=1000) == 5
    assert rows_per_strip(1001, 4096, device=cpu, max_elements=1000) == 1


def test_enlarging_by_a_ratio_ignores_the_padded_cells() -> None:
    matrix = bilinear_matrix(4, 12, ratio=1 / 8)
    assert torch.equal(matrix[:, 2:].sum(0) > 0, torch.tensor([False, False]))
    assert matrix.sum(1) == pytest.approx(torch.ones(12))


@settings(max_examples=40, deadline=None)
@given(h=sizes, w=sizes, height=st.integers(1, 50), width=st.integers(1, 50), align_corners=st.booleans())
def test_enlarging_equals_torchs_interpolation(h: int, w: int, height: int, width: int, align_corners: bool) -> None:
    cells = torch.rand(1, 2, h, w, generator=torch.Generator().manual_seed(h * 100 + w))
    expected = functional.interpolate(cells, size=(height, width), mode="bilinear", align_corners=align_corners)
    torch.testing.assert_close(
        enlarge(cells, (height, width), align_corners=align_corners), expected, atol=2e-5, rtol=0
    )


def test_enlarged_cells_keep_their_type() -> None:
    cells = torch.rand(1, 2, 3, 3)
    assert enlarge(cells.bfloat16(), (6, 6)).dtype == torch.bfloat16


def test_a_map_of_the_right_size_is_left_alone() -> None:
    x = torch.randn(1, 2, 4, 5)
    assert upsample_to(x, (4, 5), align_corners=True) is x
    assert torch.equal(upsample_to(x, (7, 9), align_corners=True)[..., ::2, ::2], x)
