"""Exact metrics of label maps.

Shapes: K classes; the confusion matrix is (K, K) with truth in rows and prediction in columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class ConfusionMatrix:
    """Counts of (truth, prediction) pairs in int64, on any device; void truth is left out.

    Args:
        num_classes: K.
        void: the label that is left out.
        device: where to count; updates are moved there.
    """

    def __init__(self, num_classes: int, void: int, *, device: torch.device | str = "cpu") -> None:
        if 0 <= void < num_classes:
            raise ValueError(f"void {void} is one of the {num_classes} classes")
        self.num_classes = num_classes
        self.void = void
        self._counts = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=device)

    @property
    def matrix(self) -> NDArray[np.int64]:
        """(K, K) counts, truth in rows."""
        return self._counts.cpu().numpy().copy()

    def update(self, predicted: Tensor | NDArray[Any], target: Tensor | NDArray[Any]) -> None:
        """Count the pixels of one or more label maps of equal shape.

        Raises:
            ValueError: shapes differ, or a value is neither a class nor (in the target) void.
        """
        if tuple(predicted.shape) != tuple(target.shape):
            raise ValueError(f"prediction {tuple(predicted.shape)} and target {tuple(target.shape)} differ in shape")
        guess, truth = self._indices(predicted), self._indices(target)
        if guess.numel() == 0:
            return
        is_void = truth == self.void
        self._check(guess, "prediction")
        self._check(truth.masked_fill(is_void, 0), "target")
        pairs = truth.masked_fill(is_void, self.num_classes) * self.num_classes + guess  # void: a row that is cut off
        counts = torch.bincount(pairs, minlength=self.num_classes * (self.num_classes + 1))
        self._counts += counts.view(self.num_classes + 1, self.num_classes)[:-1]

    def merge(self, other: ConfusionMatrix | NDArray[np.int64]) -> None:
        """Add the counts of another part of the data.

        Raises:
            ValueError: another number of classes.
        """
        counts = other.matrix if isinstance(other, ConfusionMatrix) else np.asarray(other)
        if counts.shape != tuple(self._counts.shape):
            raise ValueError(f"cannot merge counts of {counts.shape[0]} classes into {self.num_classes}")
        self._counts += torch.from_numpy(counts.astype(np.int64)).to(self._counts.device)

    def iou(self) -> NDArray[np.float64]:
        """(K,) intersection over union; nan for a class that is neither in the truth nor predicted."""
        return _ratio(self._hits(), self.matrix.sum(0) + self.matrix.sum(1) - self._hits())

    def miou(self) -> float:
        """Mean IoU over the classes that are in the truth or predicted; nan if nothing was counted."""
        return _mean(self.iou())

    def accuracy(self) -> NDArray[np.float64]:
        """(K,) share of a class's pixels that are found (recall); nan for a class that is not in the truth."""
        return _ratio(self._hits(), self.matrix.sum(1))

    def precision(self) -> NDArray[np.float64]:
        """(K,) share of the pixels given to a class that are right; nan for a class never predicted."""
        return _ratio(self._hits(), self.matrix.sum(0))

    def pixel_accuracy(self) -> float:
        """Share of right pixels; nan if nothing was counted."""
        total = int(self.matrix.sum())
        return float(self._hits().sum()) / total if total else float("nan")

    def class_table(self, names: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """One row per class: class, iou, accuracy, precision (None where undefined), pixels, predicted_pixels.

        Args:
            names: class names; default the indices.
        """
        columns = {"iou": self.iou(), "accuracy": self.accuracy(), "precision": self.precision()}
        matrix = self.matrix
        return [
            {
                "class": names[k] if names is not None else str(k),
                **{key: None if np.isnan(values[k]) else float(values[k]) for key, values in columns.items()},
                "pixels": int(matrix[k].sum()),
                "predicted_pixels": int(matrix[:, k].sum()),
            }
            for k in range(self.num_classes)
        ]

    def _hits(self) -> NDArray[np.int64]:
        return np.diagonal(self.matrix).copy()

    def _indices(self, values: Tensor | NDArray[Any]) -> Tensor:
        """Flat indices, int32 where K·(K+1) fits: half the memory traffic."""
        dtype = torch.int32 if self.num_classes < 46_000 else torch.int64
        if isinstance(values, np.ndarray):
            values = torch.from_numpy(np.ascontiguousarray(values.astype(np.int32, copy=False)))
        return values.to(device=self._counts.device, dtype=dtype).reshape(-1)

    def _check(self, values: Tensor, what: str) -> None:
        low, high = (int(bound) for bound in torch.aminmax(values))
        if low < 0 or high >= self.num_classes:
            value = low if low < 0 else high
            raise ValueError(f"{what} holds {value}, which is none of the {self.num_classes} classes")


def _ratio(part: NDArray[np.int64], whole: NDArray[np.int64]) -> NDArray[np.float64]:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(whole > 0, part / whole, np.nan)


def _mean(values: NDArray[np.float64]) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")
