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

_TYPES = {torch.bool: torch.uint8, torch.uint16: torch.int32, torch.uint32: torch.int64}
"""What is counted instead of types that torch hardly calculates with."""
CPU_STRIP_PIXELS = 1 << 17
"""Pixels that are counted at once on a CPU: what is made of them stays in its cache."""
DEVICE_STRIP_PIXELS = 1 << 26
"""Pixels that keep an accelerator busy."""
CPU_TABLES = 4
"""Neighbouring pixels are mostly equal; in one table each would wait until the one before it is written."""


class ConfusionMatrix:
    """Counts of (truth, prediction) pairs in int64, on any device; void truth is left out.

    A pixel becomes one number in the smallest integer type that holds it, (row · K + prediction), and the numbers are
    counted. Row 0 is void, class k is row k + 1.

    Args:
        num_classes: K.
        void: the label that is left out.
        device: where to count; updates are moved there.

    Raises:
        ValueError: void is a class, or no label of 16 bits.
    """

    def __init__(self, num_classes: int, void: int, *, device: torch.device | str = "cpu") -> None:
        if 0 <= void < num_classes:
            raise ValueError(f"void {void} is one of the {num_classes} classes")
        if not 0 <= void <= 0xFFFF:
            raise ValueError(f"void {void} is no label of 16 bits (0 to 65535)")
        self.num_classes = num_classes
        self.void = void
        self._counts = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=device)
        on_cpu = self._counts.device.type == "cpu"
        self._strip = CPU_STRIP_PIXELS if on_cpu else DEVICE_STRIP_PIXELS
        self._last = 0xFF if max(void, num_classes) <= 0xFF else 0xFFFF
        self._bins = num_classes * (num_classes + 1)
        self._type = _smallest_type(self._bins, self._last)
        self._tables = CPU_TABLES if on_cpu and CPU_TABLES * self._bins <= torch.iinfo(torch.int16).max else 1
        starts = torch.arange(self._tables, device=device) * self._bins
        self._table_starts = starts.to(self._type).repeat(self._strip // CPU_TABLES if self._tables > 1 else 0)

    @property
    def matrix(self) -> NDArray[np.int64]:
        """(K, K) counts, truth in rows."""
        return self._counts.cpu().numpy().copy()

    def update(self, predicted: Tensor | NDArray[Any], target: Tensor | NDArray[Any]) -> None:
        """Count the pixels of one or more label maps of equal shape; nothing is counted where it raises.

        Raises:
            ValueError: shapes differ, maps are not of integers, or a value is neither a class nor (in the target) void.
        """
        if tuple(predicted.shape) != tuple(target.shape):
            raise ValueError(f"prediction {tuple(predicted.shape)} and target {tuple(target.shape)} differ in shape")
        guess, truth = (integers(part, self._counts.device).reshape(-1) for part in (predicted, target))
        counts = torch.zeros(self._tables * self._bins, dtype=torch.int64, device=self._counts.device)
        for start in range(0, guess.numel(), self._strip):
            strip = slice(start, start + self._strip)
            pairs = self._pairs(guess[strip], truth[strip])
            counts += torch.bincount(pairs, minlength=len(counts))
        self._counts += counts.view(self._tables, self.num_classes + 1, self.num_classes).sum(0)[1:]

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
        return ratio(self._hits(), self.matrix.sum(0) + self.matrix.sum(1) - self._hits())

    def miou(self) -> float:
        """Mean IoU over the classes that are in the truth or predicted; nan if nothing was counted."""
        return mean_of_known(self.iou())

    def accuracy(self) -> NDArray[np.float64]:
        """(K,) share of a class's pixels that are found (recall); nan for a class that is not in the truth."""
        return ratio(self._hits(), self.matrix.sum(1))

    def precision(self) -> NDArray[np.float64]:
        """(K,) share of the pixels given to a class that are right; nan for a class never predicted."""
        return ratio(self._hits(), self.matrix.sum(0))

    def pixel_accuracy(self) -> float:
        """Share of right pixels; nan if nothing was counted."""
        total = int(self.matrix.sum())
        return float(self._hits().sum()) / total if total else float("nan")

    def mean_accuracy(self) -> float:
        """Mean share of found pixels over the classes that are in the truth; nan if nothing was counted."""
        return mean_of_known(self.accuracy())

    def fwiou(self) -> float:
        """Frequency-weighted IoU: of every class, weighted by its share of the truth; nan if nothing was counted.

        Source: Long et al., Fully Convolutional Networks for Semantic Segmentation (2015), section 5.
        """
        pixels = self.matrix.sum(1)
        total = int(pixels.sum())
        return float(np.nansum(pixels / total * self.iou())) if total else float("nan")

    def figures(self) -> dict[str, float]:
        """The means over classes or pixels, by name; nan if nothing was counted."""
        return {
            "miou": self.miou(),
            "fwiou": self.fwiou(),
            "pixel_accuracy": self.pixel_accuracy(),
            "mean_accuracy": self.mean_accuracy(),
        }

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

    def _pairs(self, guess: Tensor, truth: Tensor) -> Tensor:
        """The number of each pixel of a strip."""
        guess, truth = (part.to(_TYPES.get(part.dtype, part.dtype)) for part in (guess, truth))
        self._check(guess, "prediction", below=self.num_classes)
        if truth.dtype != torch.uint8 or self._last > 0xFF:
            self._check(truth, "target", below=self._last + 1)
            truth = truth.to(self._type)
        rows = self._rows(truth)
        self._check(rows, "target", below=self.num_classes + 1, shift=1)
        pairs = rows.to(self._type).mul_(self.num_classes).add_(guess)
        return pairs.add_(self._table_starts[: len(pairs)]) if self._tables > 1 else pairs

    def _rows(self, truth: Tensor) -> Tensor:
        """0 for void, class + 1: adding 1 carries 255 or 65535 out of 8 or 16 bits, which is faster than comparing."""
        if self.void == self._last:
            return truth.add(1).bitwise_and_(self._last)
        return truth.to(self._type).add(1).masked_fill_(truth == self.void, 0)

    def _check(self, values: Tensor, what: str, *, below: int, shift: int = 0) -> None:
        """Refuse values outside 0 … below - 1; `shift` has been added to them."""
        low, high = (int(bound) for bound in torch.aminmax(values))
        if low < 0 or high >= below:
            value = (low if low < 0 else high) - shift
            raise ValueError(f"{what} holds {value}, which is none of the {self.num_classes} classes")


def integers(values: Tensor | NDArray[Any], device: torch.device) -> Tensor:
    """A label map (or image) as a tensor on a device, without a copy where none is needed.

    Raises:
        ValueError: it holds fractions.
    """
    held = torch.from_numpy(np.require(values, requirements=("C", "W"))) if isinstance(values, np.ndarray) else values
    if held.is_floating_point():
        raise ValueError(f"label maps hold integers, found {held.dtype}")
    return held.to(device)


def known_labels(
    predicted: Tensor | NDArray[Any],
    target: Tensor | NDArray[Any],
    *,
    num_classes: int,
    void: int,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """Both maps in int32 on a device, pixels of void truth -1 in both.

    Raises:
        ValueError: shapes differ, maps are not of integers, or a value is neither a class nor (in the target) void.
    """
    if tuple(predicted.shape) != tuple(target.shape):
        raise ValueError(f"prediction {tuple(predicted.shape)} and target {tuple(target.shape)} differ in shape")
    guess, truth = (integers(part, device).to(torch.int32) for part in (predicted, target))
    is_void = truth == void
    for what, values in (("prediction", guess), ("target", truth.masked_fill(is_void, 0))):
        low, high = (int(bound) for bound in torch.aminmax(values)) if values.numel() else (0, 0)
        if low < 0 or high >= num_classes:
            value = low if low < 0 else high
            raise ValueError(f"{what} holds {value}, which is none of the {num_classes} classes")
    return guess.masked_fill(is_void, -1), truth.masked_fill(is_void, -1)


def _smallest_type(num_bins: int, largest: int) -> torch.dtype:
    """The smallest signed type that holds the number of a bin and the largest label."""
    fitting = (kind for kind in (torch.int16, torch.int32) if max(num_bins, largest) <= torch.iinfo(kind).max)
    return next(fitting, torch.int64)


def ratio(part: NDArray[np.int64], whole: NDArray[np.int64]) -> NDArray[np.float64]:
    """Shares, nan where the whole is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(whole > 0, part / whole, np.nan)


def mean_of_known(values: NDArray[np.float64]) -> float:
    """Mean of the values that are not nan; nan if all are."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")
