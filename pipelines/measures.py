"""What an evaluation measures, added up in whole numbers: the same figures however the images are dealt to workers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, field_validator
from torch import Tensor

from pipelines.labels import LabelSpace
from seg_models.boundaries import BoundaryCounts, BoundaryScore, check_widths
from seg_models.calibration import Calibration
from seg_models.metrics import ConfusionMatrix, mean_of_known
from seg_models.spec import Spec


class MetricsSpec(Spec):
    """What is measured beside the confusion matrix; each takes some time."""

    boundary_px: tuple[int, ...] = ()
    """Widths of boundary F, in pixels, rising, say 3 5 9 12; default: none, and no boundary F. Some tenths of a second
    for an image of two megapixels on a CPU."""
    calibration_bins: int | None = Field(None, ge=2, le=1024)
    """Bins of the expected calibration error, say 15; default: no calibration. The probability of the answer is then
    computed too."""

    @field_validator("boundary_px")
    @classmethod
    def _check_widths(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if value:
            check_widths(value)
        return value


class MeasureCounts(NamedTuple):
    """Counts of some images; small, travels. The matrix as its non-zero cells: 1001 classes would be 8 MB."""

    cells: NDArray[np.int64]
    counts: NDArray[np.int64]
    boundary: BoundaryCounts | None
    calibration: NDArray[np.int64] | None

    def matrix(self, num_classes: int) -> NDArray[np.int64]:
        """The (K, K) confusion matrix."""
        flat = np.zeros(num_classes * num_classes, np.int64)
        flat[self.cells] = self.counts
        return flat.reshape(num_classes, num_classes)


@dataclass(frozen=True)
class Measures:
    """Everything that is measured of some images."""

    confusion: ConfusionMatrix
    boundary: BoundaryScore | None
    calibration: Calibration | None

    @classmethod
    def of(cls, space: LabelSpace, spec: MetricsSpec, *, device: torch.device | str = "cpu") -> Self:
        """Nothing counted yet."""
        num_classes, void = space.num_classes, space.void
        widths, bins = spec.boundary_px, spec.calibration_bins
        return cls(
            ConfusionMatrix(num_classes, void, device=device),
            BoundaryScore(num_classes, void, widths_px=widths, device=device) if widths else None,
            Calibration(num_classes, void, num_bins=bins, device=device) if bins is not None else None,
        )

    def update(
        self, label: Tensor | NDArray[Any], truth: Tensor | NDArray[Any], *, confidence: Tensor | None = None
    ) -> None:
        """Count one image: predicted label, its confidence where calibration is measured, and true label, all (H, W).

        Raises:
            ValueError: shapes differ, or a value is no class.
        """
        self.confusion.update(label, truth)
        if self.boundary is not None:
            self.boundary.update(label, truth)
        if self.calibration is not None:
            assert confidence is not None, "calibration is measured of confidences"
            self.calibration.update(label, confidence, truth)

    def counts(self) -> MeasureCounts:
        """All counts, to be merged elsewhere."""
        matrix = self.confusion.matrix.reshape(-1)
        cells = np.flatnonzero(matrix)
        return MeasureCounts(
            cells,
            matrix[cells],
            self.boundary.counts if self.boundary is not None else None,
            self.calibration.counts if self.calibration is not None else None,
        )

    def merge(self, other: MeasureCounts) -> None:
        """Add the counts of other images, measured by the same settings."""
        self.confusion.merge(other.matrix(self.confusion.num_classes))
        if self.boundary is not None and other.boundary is not None:
            self.boundary.merge(other.boundary)
        if self.calibration is not None and other.calibration is not None:
            self.calibration.merge(other.calibration)

    def figures(self) -> dict[str, float | None]:
        """One number for each measure, by name; None where it is undefined."""
        figures = self.confusion.figures()
        if self.boundary is not None:
            means = zip(self.boundary.widths_px, self.boundary.mean_f(), strict=True)
            figures |= {boundary_key(width): f for width, f in means}
        if self.calibration is not None:
            figures["ece"] = self.calibration.ece()
        return {name: known(value) for name, value in figures.items()}

    def class_table(self, space: LabelSpace) -> list[dict[str, Any]]:
        """One row per class: class, iou, accuracy, precision, boundary F of every width, pixels, predicted_pixels."""
        rows = self.confusion.class_table(space.names)
        if self.boundary is not None:
            for width, fs in zip(self.boundary.widths_px, self.boundary.f(), strict=True):
                for row, f in zip(rows, fs.tolist(), strict=True):
                    row[boundary_key(width)] = known(f)
        return rows

    def boundary_table(self) -> list[dict[str, Any]]:
        """One row per width: px, f, precision and recall (means over classes), published_f; empty if not measured."""
        if self.boundary is None:
            return []
        columns = {
            "f": self.boundary.mean_f(),
            "precision": [mean_of_known(row) for row in self.boundary.precision()],
            "recall": [mean_of_known(row) for row in self.boundary.recall()],
            "published_f": self.boundary.published_f(),
        }
        return [
            {"px": width, **{key: known(values[place]) for key, values in columns.items()}}
            for place, width in enumerate(self.boundary.widths_px)
        ]

    def calibration_table(self) -> dict[str, Any] | None:
        """ece, largest_error, mean_confidence and the bins; None if not measured."""
        if self.calibration is None:
            return None
        return {
            "ece": known(self.calibration.ece()),
            "largest_error": known(self.calibration.largest_error()),
            "mean_confidence": known(self.calibration.mean_confidence()),
            "bins": self.calibration.table(),
        }


def boundary_key(width_px: int) -> str:
    """Name of the figure of a width."""
    return f"boundary_f_{width_px}px"


def known(value: float) -> float | None:
    """A number, or None for nan: JSON has none."""
    return None if np.isnan(value) else float(value)
