"""Calibration against a slow loop over pixels."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seg_models.calibration import CONFIDENCE_BITS, Calibration

K, VOID, BINS = 3, 255, 7

pixels = st.lists(
    st.tuples(st.integers(0, K - 1), st.floats(0, 1, width=32), st.sampled_from([*range(K), VOID])), min_size=1
)


def counted(rows: list[tuple[int, float, int]], *, num_bins: int = BINS) -> Calibration:
    found = Calibration(K, VOID, num_bins=num_bins)
    guess, sure, truth = zip(*rows, strict=True)
    found.update(np.array(guess), np.array(sure, np.float32), np.array(truth))
    return found


def slow_bins(rows: list[tuple[int, float, int]]) -> list[list[tuple[Fraction, bool]]]:
    """(confidence rounded to whole steps, right) of the pixels of every bin."""
    bins: list[list[tuple[Fraction, bool]]] = [[] for _ in range(BINS)]
    for guess, sure, truth in rows:
        if truth != VOID:
            step = Fraction(round(sure * 2**CONFIDENCE_BITS), 2**CONFIDENCE_BITS)
            bins[min(math.floor(step * BINS), BINS - 1)].append((step, guess == truth))
    return bins


@settings(max_examples=100, deadline=None)
@given(rows=pixels)
def test_every_bin_and_both_errors_equal_a_slow_loop(rows: list[tuple[int, float, int]]) -> None:
    found, bins = counted(rows), slow_bins(rows)
    total = sum(map(len, bins))
    gaps: list[tuple[Fraction, int]] = []
    for row, members in zip(found.table(), bins, strict=True):
        assert row["pixels"] == len(members)
        if not members:
            assert (row["confidence"], row["accuracy"]) == (None, None)
            continue
        sure = sum((step for step, _ in members), Fraction()) / len(members)
        share = Fraction(sum(int(right) for _, right in members), len(members))
        assert (row["confidence"], row["accuracy"]) == (pytest.approx(float(sure)), float(share))
        gaps.append((abs(sure - share), len(members)))
    if not total:
        assert all(map(math.isnan, (found.ece(), found.largest_error(), found.mean_confidence())))
        return
    assert found.ece() == pytest.approx(float(sum(gap * count for gap, count in gaps) / total))
    assert found.largest_error() == pytest.approx(float(max(gap for gap, _ in gaps)))
    everyone = [step for members in bins for step, _ in members]
    assert found.mean_confidence() == pytest.approx(float(sum(everyone) / total))


def test_a_model_that_is_always_right_and_always_sure_has_no_error() -> None:
    found = counted([(0, 1.0, 0), (1, 1.0, 1)])
    assert (found.ece(), found.largest_error()) == (0, 0)
    assert found.table()[-1]["pixels"] == 2, "1 belongs to the last bin"


def test_one_that_is_sure_and_half_right_is_off_by_the_other_half() -> None:
    found = counted([(0, 1.0, 0), (1, 1.0, 0)])
    assert (found.ece(), found.largest_error(), found.mean_confidence()) == (0.5, 0.5, 1)


def test_parts_merged_in_any_order_equal_the_whole_to_the_last_bit() -> None:
    rng = np.random.default_rng(0)
    guess, truth = rng.integers(0, K, (2, 6, 400))
    sure = rng.random((6, 400), np.float32)
    whole, merged = Calibration(K, VOID, num_bins=15), Calibration(K, VOID, num_bins=15)
    whole.update(guess, sure, truth)
    for number in (4, 1, 0, 5, 3, 2):
        part = Calibration(K, VOID, num_bins=15)
        part.update(*(torch.from_numpy(values[number]) for values in (guess, sure, truth)))
        merged.merge(part if number % 2 else part.counts)
    assert np.array_equal(merged.counts, whole.counts)
    assert merged.ece() == whole.ece()


def test_maps_larger_than_a_strip_are_counted_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [(number % K, number / 100, number % 2) for number in range(100)]
    whole = counted(rows)
    monkeypatch.setattr("seg_models.calibration.STRIP_PIXELS", 33)
    assert np.array_equal(counted(rows).counts, whole.counts)


def test_a_confidence_a_little_above_one_is_rounding_and_others_are_refused() -> None:
    assert counted([(0, 1.00001, 0)]).mean_confidence() == 1
    for wrong in (-0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match="confidences lie between 0 and 1"):
            counted([(0, wrong, 0)])


def test_what_cannot_be_counted_is_refused() -> None:
    with pytest.raises(ValueError, match="1 to 1024 bins, found 0"):
        Calibration(K, VOID, num_bins=0)
    with pytest.raises(ValueError, match="cannot merge counts of 3 bins into 7"):
        Calibration(K, VOID, num_bins=7).merge(Calibration(K, VOID, num_bins=3))
    found = Calibration(K, VOID, num_bins=7)
    with pytest.raises(ValueError, match=r"confidence \(1,\) and target \(2,\) differ in shape"):
        found.update(np.zeros(2, int), np.zeros(1, np.float32), np.zeros(2, int))
    with pytest.raises(ValueError, match="prediction holds 3"):
        found.update(np.full(2, 3), np.zeros(2, np.float32), np.zeros(2, int))
    assert not found.counts.any()
