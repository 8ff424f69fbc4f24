"""Otsu's threshold: the best of all bin edges, whatever the two groups' shares."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from seg_models.consensus import pseudo_label
from seg_models.otsu import NUM_BINS, otsu_threshold


def variance_between(scores: NDArray[np.float64], edge: int) -> float:
    """Variance between the groups below and above an edge, every score at the middle of its bin."""
    counts, edges = np.histogram(scores, bins=NUM_BINS)
    middles = np.repeat((edges[1:] + edges[:-1]) / 2, counts)
    num_below = int(counts[:edge].sum())
    low, high = middles[:num_below], middles[num_below:]
    return len(low) * len(high) * float(low.mean() - high.mean()) ** 2 if len(low) and len(high) else 0.0


@given(hnp.arrays(np.float64, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.integers(0, 60).map(float)))
def test_no_other_edge_parts_the_scores_better(scores: NDArray[np.float64]) -> None:
    found = otsu_threshold(scores)
    if scores.min() == scores.max():
        assert found == scores.max()
        return
    edges = np.histogram_bin_edges(scores, bins=NUM_BINS)
    (place,) = np.flatnonzero(edges == found)
    best = max(variance_between(scores, edge) for edge in range(1, NUM_BINS))
    assert variance_between(scores, int(place)) == pytest.approx(best)


@pytest.mark.parametrize("share", [0.05, 0.3, 0.6])
def test_two_groups_are_parted_whatever_their_share(share: float) -> None:
    scores = np.random.default_rng(0).normal(0.0, 0.05, (40, 50))
    wanted = np.arange(2000).reshape(40, 50) < 2000 * share
    scores[wanted] += 1.0
    np.testing.assert_array_equal(scores > otsu_threshold(scores), wanted)


@pytest.mark.parametrize("scores", [np.zeros((0, 3)), np.array([[0.0, np.nan]]), np.array([[0.0, np.inf]])])
def test_scores_that_are_missing_or_not_finite_are_refused(scores: NDArray[np.float64]) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - numpy's own words
        otsu_threshold(scores)


def test_a_label_can_tell_pixels_between_the_top_decile_and_background() -> None:
    scores = np.zeros((4, 10))
    scores[1:3] = 1.0
    scores[1, :4] = 2.0
    labels = {
        rule: pseudo_label(scores, class_index=7, background=3, above_otsu=rule, dtype=np.uint8)
        for rule in ("background", "class", "void")
    }
    assert [int((label == 7).sum()) for label in labels.values()] == [4, 20, 4]
    assert [int((label == 255).sum()) for label in labels.values()] == [0, 0, 16]
    np.testing.assert_array_equal(labels["void"][[0, 3]], 3)


def test_the_top_deciles_have_the_class_where_less_lies_above_the_threshold() -> None:
    scores = np.zeros((4, 10))
    scores[0, 0] = 1.0
    label = pseudo_label(scores, class_index=1, background=0, above_otsu="class")
    assert int((label == 1).sum()) == 4
