"""Boundary F against a slow loop over masks, written from the definition."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from seg_models.boundaries import FRACTION_BITS, BoundaryScore

K, VOID, WIDTHS = 4, 255, (1, 2, 4)
Map = NDArray[np.uint8]

pairs_of_maps = st.tuples(st.integers(1, 9), st.integers(1, 9)).flatmap(
    lambda shape: st.tuples(
        hnp.arrays(np.uint8, shape, elements=st.integers(0, K - 1)),
        hnp.arrays(np.uint8, shape, elements=st.sampled_from([*range(K), VOID])),
    )
)


def slow_boundary(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """DAVIS: the mask differs from what is right of, below or below right of a pixel; borders continue."""
    padded = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    here = padded[:-1, :-1]
    boundary: NDArray[np.bool_] = (here != padded[:-1, 1:]) | (here != padded[1:, :-1]) | (here != padded[1:, 1:])
    return boundary


def slow_matches(ours: NDArray[np.bool_], other: NDArray[np.bool_], width: int) -> int:
    """Pixels of ours with one of the other's within the width."""
    near = np.argwhere(other)
    return sum(
        any((row - y) ** 2 + (column - x) ** 2 <= width**2 for y, x in near) for row, column in np.argwhere(ours)
    )


def slow_image(predicted: Map, target: Map, k: int, width: int) -> tuple[int, int, int, int]:
    """Matched and all boundary pixels of class k, of the prediction and of the truth."""
    valid = target != VOID
    seen, true = slow_boundary((predicted == k) & valid), slow_boundary((target == k) & valid)
    return slow_matches(seen, true, width), int(seen.sum()), slow_matches(true, seen, width), int(true.sum())


def slow_f(counts: Sequence[int]) -> float | None:
    """F of summed counts; None without any boundary."""
    seen_matched, seen, true_matched, true = counts
    if seen == 0 and true == 0:
        return None
    precision = seen_matched / seen if seen else 1.0
    recall = true_matched / true if true else 1.0
    if seen == 0 or true == 0:
        return 0.0
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


@settings(max_examples=80, deadline=None)
@given(maps=st.lists(pairs_of_maps, min_size=1, max_size=3))
def test_every_width_and_class_equals_a_slow_loop(maps: list[tuple[Map, Map]]) -> None:
    score = BoundaryScore(K, VOID, widths_px=WIDTHS)
    for predicted, target in maps:
        score.update(predicted, target)
    for place, width in enumerate(WIDTHS):
        single = [[slow_image(*pair, k, width) for k in range(K)] for pair in maps]
        whole = [tuple(map(sum, zip(*(image[k] for image in single), strict=True))) for k in range(K)]
        fs = [slow_f(counts) for counts in whole]
        assert [None if np.isnan(f) else f for f in score.f()[place]] == fs
        known = [f for f in fs if f is not None]
        assert score.mean_f()[place] == pytest.approx(np.mean(known) if known else np.nan, nan_ok=True)
        published = [[1.0 if (f := slow_f(counts)) is None else f for counts in image] for image in single]
        assert score.published_f()[place] == pytest.approx(np.mean(published), abs=2.0 ** (1 - FRACTION_BITS))


def test_the_definition_is_that_of_davis_with_disks() -> None:
    """Dilation by scikit-image's disks, on larger smooth shapes."""
    morphology = pytest.importorskip("skimage.morphology")
    rng = np.random.default_rng(3)
    rows, columns = np.mgrid[:60, :80]
    centres = rng.uniform(0, 60, (2, K, 2))
    truth, guess = (
        ((rows[None] - c[:, :1, None]) ** 2 + (columns[None] - 1.3 * c[:, 1:, None]) ** 2).argmin(0).astype(np.uint8)
        for c in (centres[0], centres[0] + rng.normal(0, 2, (K, 2)))
    )
    score = BoundaryScore(K, VOID, widths_px=(3, 5, 9, 12))
    score.update(guess, truth)
    for place, width in enumerate(score.widths_px):
        for k in range(K):
            seen, true = slow_boundary(guess == k), slow_boundary(truth == k)
            disk = morphology.disk(width)
            assert score.counts.predicted[k] == seen.sum()
            assert score.counts.predicted_matched[place, k] == (seen & morphology.dilation(true, disk)).sum()
            assert score.counts.true_matched[place, k] == (true & morphology.dilation(seen, disk)).sum()


def test_a_shifted_edge_is_met_from_the_width_of_its_shift_on() -> None:
    truth, guess = np.zeros((2, 20, 30), np.uint8)
    truth[:, 10:], guess[:, 13:] = 1, 1
    score = BoundaryScore(2, VOID, widths_px=(2, 3))
    score.update(guess, truth)
    assert score.f().tolist() == [[0, 0], [1, 1]]
    assert score.mean_f() == [0, 1]


def test_equal_maps_score_one_and_a_flat_map_has_no_figure() -> None:
    truth = np.random.default_rng(0).integers(0, K, (12, 17))
    score = BoundaryScore(K, VOID, widths_px=(1,))
    score.update(truth, truth)
    assert score.mean_f() == [1.0]
    flat = BoundaryScore(K, VOID, widths_px=(1,))
    flat.update(np.zeros((5, 5), int), np.zeros((5, 5), int))
    assert np.isnan(flat.mean_f()[0])
    assert flat.published_f() == [1.0]
    assert np.isnan(BoundaryScore(K, VOID, widths_px=(1,)).published_f()[0])


def test_parts_merged_in_any_order_equal_the_whole_to_the_last_bit() -> None:
    rng = np.random.default_rng(1)
    predicted, target = rng.integers(0, K, (2, 5, 11, 13))
    whole, merged = (BoundaryScore(K, VOID, widths_px=WIDTHS) for _ in range(2))
    for pair in zip(predicted, target, strict=True):
        whole.update(*pair)
    for number in (3, 0, 4, 2, 1):
        part = BoundaryScore(K, VOID, widths_px=WIDTHS)
        part.update(torch.from_numpy(predicted[number]), torch.from_numpy(target[number]))
        merged.merge(part if number % 2 else part.counts)
    for ours, theirs in zip(merged.counts, whole.counts, strict=True):
        assert np.array_equal(ours, theirs)
    assert merged.published_f() == whole.published_f()


def test_many_classes_with_a_void_of_sixteen_bits() -> None:
    truth = np.full((8, 8), 65535, np.uint16)
    truth[:, :4], truth[:, 4:6] = 1000, 3
    score = BoundaryScore(1001, 65535, widths_px=(1,))
    score.update(np.where(truth == 65535, 7, truth), truth)
    f = score.f()[0]
    assert (f[1000], f[3]) == (1, 1)
    assert np.isnan(f[7]), "what is predicted on void does not count"


@pytest.mark.parametrize("widths", [(), (0, 1), (3, 2), (2, 2)])
def test_widths_that_do_not_rise_are_refused(widths: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="widths must rise and be at least 1 pixel, found"):
        BoundaryScore(K, VOID, widths_px=widths)


def test_a_width_that_would_take_for_ever_is_refused() -> None:
    with pytest.raises(ValueError, match="widths are at most 256 pixels, found 100000"):
        BoundaryScore(K, VOID, widths_px=(3, 100_000))


def test_what_cannot_be_compared_is_refused() -> None:
    score = BoundaryScore(3, VOID, widths_px=(1,))
    for shapes, message in (
        (((2, 2), (2, 3)), "differ in shape"),
        (((4,), (4,)), "one map"),
        (((1, 2, 2),) * 2, "one map"),
    ):
        with pytest.raises(ValueError, match=message):
            score.update(np.zeros(shapes[0], int), np.zeros(shapes[1], int))
    with pytest.raises(ValueError, match="target holds 3, which is none of the 3 classes"):
        score.update(np.zeros((2, 2), int), np.full((2, 2), 3))
    with pytest.raises(ValueError, match="cannot merge counts"):
        score.merge(BoundaryScore(3, VOID, widths_px=(1, 2)))
    with pytest.raises(ValueError, match="at most 32767 classes"):
        BoundaryScore(40000, 65535, widths_px=(1,))
