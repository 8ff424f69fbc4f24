"""Calibration: whether a model is right as often as it is sure.

Pixels are sorted by their confidence, the probability of the class that was answered, into bins of equal width. The
expected calibration error is the mean distance between confidence and accuracy of a bin, weighted by its pixels
(Naeini et al. 2015; Guo et al., On Calibration of Modern Neural Networks, 2017, equation 3), the largest one is their
equation 5. Bin b of B holds confidences from b/B to below (b + 1)/B, the last one also 1. Void takes no part.

Confidences are added up in whole 2⁻²⁰, so that neither order nor number of parts changes a figure.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seg_models.metrics import integers, known_labels, ratio

CONFIDENCE_BITS = 20
"""Confidence in steps of 2⁻²⁰: finer than any bin, and 2⁴³ pixels fit into an int64."""
STRIP_PIXELS = 1 << 18
"""Pixels that are counted at once, so that what is made of them stays small."""
_ONE = 1 << CONFIDENCE_BITS
_ROUNDING = 1e-4
"""A probability may exceed 1 by this much: the mean of several passes is rounded."""


class Calibration:
    """Pixels, right pixels and sum of confidences of every bin.

    Args:
        num_classes: K.
        void: the label that is left out.
        num_bins: B.
        device: where to count.

    Raises:
        ValueError: no bin, or more than 1024.
    """

    def __init__(self, num_classes: int, void: int, *, num_bins: int, device: torch.device | str = "cpu") -> None:
        if not 1 <= num_bins <= 1024:
            raise ValueError(f"calibration needs 1 to 1024 bins, found {num_bins}")
        self.num_classes, self.void, self.num_bins = num_classes, void, num_bins
        self.device = torch.device(device)
        self.counts: NDArray[np.int64] = np.zeros((num_bins, 3), np.int64)
        """(B, 3) int64: pixels, right pixels, sum of their confidences in 2⁻²⁰."""

    def update(
        self,
        predicted: Tensor | NDArray[Any],
        confidence: Tensor | NDArray[np.float32],
        target: Tensor | NDArray[Any],
    ) -> None:
        """Count the pixels of one or more label maps of equal shape.

        Args:
            confidence: probability of the predicted class, 0..1, of the same shape.

        Raises:
            ValueError: shapes differ, a value is neither a class nor (in the target) void, or a confidence is none.
        """
        shapes = [tuple(part.shape) for part in (predicted, confidence, target)]
        if len(set(shapes)) > 1:
            raise ValueError(f"prediction {shapes[0]}, confidence {shapes[1]} and target {shapes[2]} differ in shape")
        guess, truth = (integers(part, self.device).reshape(-1) for part in (predicted, target))
        sure = torch.as_tensor(confidence, device=self.device).reshape(-1)
        strips = (slice(start, start + STRIP_PIXELS) for start in range(0, len(sure), STRIP_PIXELS))
        added = [self._counts_of(guess[strip], sure[strip], truth[strip]) for strip in strips]
        self.counts = sum(added, start=self.counts)

    def _counts_of(self, predicted: Tensor, confidence: Tensor, target: Tensor) -> NDArray[np.int64]:
        """(B, 3) counts of flat pixels."""
        guess, truth = known_labels(predicted, target, num_classes=self.num_classes, void=self.void, device=self.device)
        steps = _steps(confidence)
        bins = (steps * self.num_bins >> CONFIDENCE_BITS).clamp(max=self.num_bins - 1)
        bins = bins.masked_fill(truth < 0, self.num_bins)
        right = torch.bincount(2 * bins + (guess == truth), minlength=2 * self.num_bins + 2).view(-1, 2)
        total = torch.zeros_like(right[:, 0]).index_add_(0, bins, steps)
        return torch.stack([right.sum(1), right[:, 1], total], dim=1)[:-1].cpu().numpy()

    def merge(self, other: Calibration | NDArray[np.int64]) -> None:
        """Add the counts of another part of the data.

        Raises:
            ValueError: another number of bins.
        """
        counts = other.counts if isinstance(other, Calibration) else other
        if counts.shape != self.counts.shape:
            raise ValueError(f"cannot merge counts of {counts.shape[0]} bins into {self.num_bins}")
        self.counts = self.counts + counts

    def confidence(self) -> NDArray[np.float64]:
        """(B,) mean confidence of every bin, 0..1; nan for an empty one."""
        return ratio(self.counts[:, 2], self.counts[:, 0]) / _ONE

    def accuracy(self) -> NDArray[np.float64]:
        """(B,) share of right pixels of every bin; nan for an empty one."""
        return ratio(self.counts[:, 1], self.counts[:, 0])

    def ece(self) -> float:
        """Expected calibration error, 0..1; nan if nothing was counted.

        Whole numbers are added up and divided once: weight times distance of a bin is |sum of confidences - right|.
        """
        pixels, right, steps = self.counts.T
        total = int(pixels.sum())
        return float(np.abs(steps - right * _ONE).sum()) / _ONE / total if total else float("nan")

    def largest_error(self) -> float:
        """Largest distance between confidence and accuracy of a bin, 0..1; nan if nothing was counted."""
        gaps = np.abs(self.confidence() - self.accuracy())
        return float(np.nanmax(gaps)) if self.counts.any() else float("nan")

    def mean_confidence(self) -> float:
        """Mean confidence of all pixels; above the pixel accuracy the model is too sure. nan if nothing was counted."""
        pixels, _, steps = self.counts.sum(0).tolist()
        return steps / _ONE / pixels if pixels else float("nan")

    def table(self) -> list[dict[str, Any]]:
        """One row per bin: low, high, pixels, confidence, accuracy (None where it is empty)."""
        columns = {"confidence": self.confidence(), "accuracy": self.accuracy()}
        return [
            {
                "low": place / self.num_bins,
                "high": (place + 1) / self.num_bins,
                "pixels": int(self.counts[place, 0]),
                **{key: None if np.isnan(values[place]) else float(values[place]) for key, values in columns.items()},
            }
            for place in range(self.num_bins)
        ]


def _steps(confidence: Tensor) -> Tensor:
    """Confidences in whole 2⁻²⁰, int64."""
    low, high = (float(bound) for bound in torch.aminmax(confidence))
    if not (low >= 0 and high <= 1 + _ROUNDING):
        raise ValueError(f"confidences lie between 0 and 1, found {low:.4g} to {high:.4g}")
    return (confidence.double() * _ONE).round().long().clamp(max=_ONE)
