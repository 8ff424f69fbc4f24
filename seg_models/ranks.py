"""Exact rank deciles of a score map: sort the values, compare with nine of them, deal out ties.

Ranks are 0..n-1 for n pixels, equal scores in order of pixel index. numpy sorts plain float32 values with vector
instructions, many times faster than it finds the order of the pixels; that order matters only between the few pixels
whose float32 value equals a cut.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def deciles(scores: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """Decile floor(10 * rank / n), 0..9, of each pixel, in the shape of the scores.

    Infinities have their rank, and -0.0 equals 0.0.

    Raises:
        ValueError: a score is NaN.
    """
    flat = scores.reshape(-1)
    found = np.zeros(flat.size, np.uint8)
    if flat.size == 0:
        return found.reshape(scores.shape)
    with np.errstate(over="ignore"):  # too large for float32 is infinite there, and compared exactly below
        coarse = flat.astype(np.float32, copy=False)
    ordered = np.sort(coarse)
    if np.isnan(ordered[-1]):  # NaNs are sorted to the end
        raise ValueError(f"{int(np.isnan(flat).sum())} of {flat.size} scores are NaN and have no rank")
    for decile in range(1, 10):
        first_rank = -(-decile * flat.size // 10)
        if first_rank < flat.size:  # else no pixel is in it
            found += _reaches(first_rank, flat, coarse, ordered).view(np.uint8)
    return found.reshape(scores.shape)


def _reaches(
    rank: int, flat: NDArray[np.floating[Any]], coarse: NDArray[np.float32], ordered: NDArray[np.float32]
) -> NDArray[np.bool_]:
    """Which pixels have this rank or a higher one.

    Args:
        coarse: the scores `flat` as float32, which never reverses their order.
        ordered: `coarse`, sorted.
    """
    cut = ordered[rank]
    reaches: NDArray[np.bool_] = np.greater_equal(coarse, cut)
    num_below = rank - int(ordered.searchsorted(cut))  # pixels equal to the cut in float32, but of lower rank
    if num_below > 0:
        equal = np.flatnonzero(coarse == cut)
        reaches[equal[flat[equal].argsort(kind="stable")[:num_below]]] = False
    return reaches
