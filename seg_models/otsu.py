"""The threshold that parts scores into two groups (Otsu 1979): how much of an image its object takes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

NUM_BINS = 256


def otsu_threshold(scores: NDArray[np.floating[Any]]) -> float:
    """The edge, of 256 equal bins, above and below which the variance between the two groups is largest.

    Where all scores are equal it is that score, and nothing lies above.

    Raises:
        ValueError: no scores, or one is not finite.
    """
    low, high = float(scores.min()), float(scores.max())
    if low == high:
        return high
    counts, edges = np.histogram(scores, bins=NUM_BINS, range=(low, high))
    middles = (edges[1:] + edges[:-1]) / 2
    below, above = np.cumsum(counts), np.cumsum(counts[::-1])[::-1]
    sums = np.cumsum(counts * middles)
    mean_below = sums / np.maximum(below, 1)
    mean_above = (sums[-1] - sums + counts * middles) / np.maximum(above, 1)
    between = below[:-1] * above[1:] * (mean_below[:-1] - mean_above[1:]) ** 2
    return float(edges[int(np.argmax(between)) + 1])
