"""Ranks, deciles, consensus and labels against slow, obvious references."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from seg_models.consensus import Consensus, Mean, Normalise, normalise_map, pseudo_label, resize_map
from seg_models.ranks import deciles

Scores = NDArray[np.floating[Any]]


def slow_deciles(scores: Scores) -> NDArray[np.uint8]:
    """Count, for every pixel, the pixels that come before it."""
    flat = scores.ravel().tolist()
    ranks = [
        sum(other < value or (other == value and before < index) for before, other in enumerate(flat))
        for index, value in enumerate(flat)
    ]
    return np.array([10 * rank // len(flat) for rank in ranks], np.uint8).reshape(scores.shape)


def sorted_deciles(scores: Scores) -> NDArray[np.uint8]:
    """The rule by a stable order of all pixels."""
    found = np.empty(scores.size, np.uint8)
    found[np.argsort(scores, axis=None, kind="stable")] = 10 * np.arange(scores.size) // scores.size
    return found.reshape(scores.shape)


FEW = st.sampled_from([0.0, -0.0, 0.25, 0.5, 1.0, -1.0, np.inf, -np.inf])
CLOSE = st.integers(0, 40).map(lambda step: 1.0 + step * 2.0**-40)  # equal in float32, not in float64
ANY_SIZE = st.floats(allow_nan=False) | st.floats(0, 1e-310) | st.floats(1e300)


@settings(max_examples=300, deadline=None)
@given(
    values=st.lists(FEW, min_size=1, max_size=70)
    | st.lists(CLOSE, min_size=1, max_size=70)
    | st.lists(FEW | CLOSE | ANY_SIZE | st.floats(0, 1), min_size=1, max_size=70),
    width=st.integers(1, 7),
    dtype=st.sampled_from([np.float32, np.float64]),
)
def test_deciles_equal_a_slow_stable_rank_for_scores_of_every_size_and_where_many_are_equal(
    values: list[float], width: int, dtype: type[np.floating[Any]]
) -> None:
    with np.errstate(over="ignore"):
        scores = np.resize(np.array(values).astype(dtype), (max(1, len(values) // width), width))
    assert np.array_equal(deciles(scores), slow_deciles(scores))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "kind", ["uniform", "normal", "heavy tail", "half zeros", "five values", "one value", "tiny", "float32 cannot tell"]
)
def test_deciles_of_whole_maps_equal_the_stable_order_of_the_pixels(kind: str, dtype: type[np.floating[Any]]) -> None:
    rng = np.random.default_rng(0)
    shape = (113, 157)
    scores = {
        "uniform": rng.random(shape),
        "normal": rng.normal(size=shape),
        "heavy tail": rng.lognormal(0, 5, shape),
        "half zeros": np.maximum(rng.normal(size=shape), 0),
        "five values": rng.integers(0, 5, shape) / 4,
        "one value": np.full(shape, -3.0),
        "tiny": rng.random(shape) * 1e-42,
        "float32 cannot tell": 1 + rng.random(shape) * 2.0**-30,
    }[kind].astype(dtype)
    assert np.array_equal(deciles(scores), sorted_deciles(scores))
    assert np.array_equal(deciles(scores.T), sorted_deciles(scores.T))  # not contiguous


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_scores_that_are_not_numbers_are_refused(dtype: type[np.floating[Any]]) -> None:
    scores = np.ones((4, 5), dtype)
    scores[1, 2] = scores[3, 3] = np.nan
    with pytest.raises(ValueError, match="2 of 20 scores are NaN"):
        deciles(scores)


def test_no_pixels_have_no_deciles() -> None:
    assert deciles(np.zeros((0, 4))).shape == (0, 4)


@pytest.mark.parametrize("shape", [(1, 1), (3, 3), (2, 5), (10, 10), (17, 13), (224, 224)])
def test_the_top_decile_holds_a_tenth_of_the_pixels_even_where_all_scores_are_equal(shape: tuple[int, int]) -> None:
    num_pixels = shape[0] * shape[1]
    for scores in (np.zeros(shape), np.random.default_rng(0).random(shape)):
        assert int((deciles(scores) == 9).sum()) == num_pixels // 10


def test_a_label_holds_the_class_in_the_top_deciles_and_background_elsewhere() -> None:
    scores = np.arange(40, dtype=np.float64).reshape(5, 8)
    label = pseudo_label(scores, class_index=7, background=1000)
    assert label.dtype == np.uint16
    assert label.ravel().tolist() == [1000] * 36 + [7] * 4
    assert int((pseudo_label(scores, class_index=7, background=1000, top_deciles=3) == 7).sum()) == 12
    assert pseudo_label(scores, class_index=0, background=6, dtype=np.uint8).dtype == np.uint8


def test_every_rule_makes_maps_comparable() -> None:
    scores = torch.tensor([[1.0, 3.0], [3.0, 5.0]], dtype=torch.float64)
    expected = {
        "none": [[1.0, 3.0], [3.0, 5.0]],
        "l1": [[1 / 12, 3 / 12], [3 / 12, 5 / 12]],
        "max": [[0.2, 0.6], [0.6, 1.0]],
        "minmax": [[0.0, 0.5], [0.5, 1.0]],
        "rank": [[0.0, 0.5], [0.5, 1.0]],
    }
    for rule, values in expected.items():
        found = normalise_map(scores, rule=rule)  # type: ignore[arg-type]  # keys of a dict are plain text
        torch.testing.assert_close(found, torch.tensor(values, dtype=torch.float64))


def consensus(maps: Sequence[Tensor], *, rule: Normalise) -> Consensus:
    mean = Mean(rule=rule)
    for scores in maps:
        mean.add(scores)
    return mean.result()


def test_the_consensus_is_the_mean_of_normalised_maps_and_counts_the_ones_without_signal() -> None:
    first = torch.tensor([[1.0, 3.0]], dtype=torch.float64)
    second = torch.tensor([[1e6, 0.0]], dtype=torch.float64)
    broken = torch.tensor([[float("nan"), 1.0]], dtype=torch.float64)
    found = consensus([first, torch.zeros(1, 2).double(), second, broken], rule="l1")
    assert found.scores is not None
    torch.testing.assert_close(found.scores, torch.tensor([[0.625, 0.375]], dtype=torch.float64))
    assert (found.num_used, found.num_skipped, found.skipped) == (2, 2, (1, 3))
    unnormalised = consensus([first, second], rule="none")
    assert unnormalised.scores is not None
    assert float(unnormalised.scores[0, 0]) == pytest.approx((1 + 1e6) / 2)


def test_a_consensus_of_nothing_but_zero_maps_has_no_scores() -> None:
    found = consensus([torch.zeros(2, 2)] * 3, rule="l1")
    assert found.scores is None
    assert found.num_skipped == 3


def test_maps_are_brought_to_the_size_of_the_image_bilinearly() -> None:
    ramp = torch.arange(4.0, dtype=torch.float64).expand(2, 4)
    grown = resize_map(ramp, height=2, width=8)
    torch.testing.assert_close(grown[0], torch.tensor([0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3], dtype=torch.float64))
    assert resize_map(ramp, height=2, width=4) is ramp
    shrunk = resize_map(torch.tensor([[0.0, 0.0, 0.0, 8.0]] * 4, dtype=torch.float64), height=1, width=1)
    assert 0 < float(shrunk) < 8
