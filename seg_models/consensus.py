"""From explanation maps to a label: normalise, average over models, take the top deciles.

Specs: PSSL sections 3 and 4. Maps (H, W) are float64 and not negative.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from torch import Tensor
from torch.nn import functional

from seg_models.otsu import otsu_threshold
from seg_models.ranks import deciles

Normalise = Literal["none", "l1", "max", "minmax", "rank"]
AboveOtsu = Literal["background", "class", "void"]


class Consensus(NamedTuple):
    """Mean of the normalised maps of an ensemble."""

    scores: Tensor | None
    """(H, W) float64, or None where every map was skipped."""
    num_used: int
    skipped: tuple[int, ...]
    """Indices of the maps without any signal (a saturated softmax)."""

    @property
    def num_skipped(self) -> int:
        """How many maps had no signal."""
        return len(self.skipped)


def resize_map(scores: Tensor, *, height: int, width: int) -> Tensor:
    """Bring a map (h, w) to (height, width), bilinear, antialiased where it shrinks."""
    if tuple(scores.shape) == (height, width):
        return scores
    return functional.interpolate(
        scores[None, None], size=(height, width), mode="bilinear", antialias=True, align_corners=False
    )[0, 0]


def normalise_map(scores: Tensor, *, rule: Normalise) -> Tensor:
    """Make the maps of different models comparable; a map that is zero everywhere stays so.

    Rules: `none`; `l1` (sum 1); `max` (largest value 1); `minmax` (from 0 to 1); `rank` (mean rank of equal values,
    from 0 to 1).
    """
    if rule == "none":
        return scores
    if rule == "rank":
        return _mean_ranks(scores)
    low = scores.min() if rule == "minmax" else scores.new_zeros(())
    span = scores.sum() if rule == "l1" else scores.max() - low
    return (scores - low) / span if span > 0 else torch.zeros_like(scores)


class Mean:
    """The mean of the normalised maps of an ensemble for one image, built up map by map.

    Maps that are zero everywhere or not finite are skipped and counted.
    """

    def __init__(self, *, rule: Normalise) -> None:
        self._rule: Normalise = rule
        self._total: Tensor | None = None
        self._num_used = 0
        self._skipped: list[int] = []

    def add(self, scores: Tensor) -> None:
        """Take the next model's map (H, W); all have one size."""
        if not _has_signal(scores):
            self._skipped.append(self._num_used + len(self._skipped))
            return
        part = normalise_map(scores, rule=self._rule)
        self._total = part if self._total is None else self._total + part
        self._num_used += 1

    def result(self) -> Consensus:
        """The mean so far."""
        mean = None if self._total is None else self._total / self._num_used
        return Consensus(mean, self._num_used, tuple(self._skipped))


def pseudo_label(
    scores: NDArray[np.floating[Any]],
    *,
    class_index: int,
    background: int,
    top_deciles: int = 1,
    above_otsu: AboveOtsu = "background",
    dtype: DTypeLike = np.uint16,
) -> NDArray[Any]:
    """Label map (H, W): the image's class in the top deciles of the scores, background elsewhere.

    Args:
        above_otsu: what the pixels become that are in none of the top deciles, but above Otsu's threshold.
        dtype: uint8 or uint16, whose largest value is void.
    """
    label = np.full(scores.shape, background, dtype)
    values = {"background": background, "class": class_index, "void": np.iinfo(label.dtype).max}
    if above_otsu != "background":
        label[scores > otsu_threshold(scores)] = values[above_otsu]
    label[deciles(scores) >= 10 - top_deciles] = class_index
    return label


def _has_signal(scores: Tensor) -> bool:
    return bool(torch.isfinite(scores).all()) and bool((scores != 0).any())


def _mean_ranks(scores: Tensor) -> Tensor:
    """Mean of the ranks of equal values, from 0 to 1 (1/2 everywhere for a constant map of two pixels or more)."""
    _, inverse, counts = torch.unique(scores, return_inverse=True, return_counts=True)
    mean_rank = counts.cumsum(0) - (counts + 1) / 2
    ranks: Tensor = mean_rank[inverse] / max(scores.numel() - 1, 1)
    return ranks.to(scores.dtype)
