"""Which of a teacher's labels are kept: thresholds, the border of the frame, classes taken from coarse human labels.

Integer arithmetic on what a teacher's label set holds (classes, confidence in twentieths), so that a label set made
later from it equals one made at once, byte for byte. Sources: HMSA (arXiv 2005.10821, section 3.3) and its released
loader.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from pipelines.confidence import CONFIDENCE_STEPS
from pipelines.labels import LabelSpace
from seg_models.spec import Spec, did_you_mean

NAMED_THRESHOLDS = {"released": 0.5, "paper": 0.9}


def _by_name(value: Any) -> Any:
    """The threshold behind a name; numbers pass."""
    if isinstance(value, str) and value not in NAMED_THRESHOLDS:
        known = ", ".join(NAMED_THRESHOLDS)
        raise ValueError(f"found {value!r}{did_you_mean(value, NAMED_THRESHOLDS)}; allowed: a number 0..1, {known}")
    return NAMED_THRESHOLDS[value] if isinstance(value, str) else value


def _in_twentieths(value: float) -> float:
    """Confidence is stored in twentieths: a threshold between two of them would say what nobody can check."""
    if not 0 <= value <= 1:
        raise ValueError(f"found {value:g}; confidence is kept in twentieths, use 0..1")
    if abs(value * CONFIDENCE_STEPS - round(value * CONFIDENCE_STEPS)) > 1e-9:
        low = int(value * CONFIDENCE_STEPS)
        near = f"{low / CONFIDENCE_STEPS:g} or {(low + 1) / CONFIDENCE_STEPS:g}"
        raise ValueError(f"found {value:g}; confidence is kept in twentieths, use {near}")
    return value


Threshold = Annotated[float, BeforeValidator(_by_name), AfterValidator(_in_twentieths)]
"""Least confidence of a kept pixel: a multiple of 1/20, or `released` (0.5) or `paper` (0.9)."""


class BorderSpec(Spec):
    """Margins of the frame that become void, for what a camera's own car or a lens covers."""

    top: float = Field(0, ge=0, allow_inf_nan=False)
    bottom: float = Field(0, ge=0, allow_inf_nan=False)
    left: float = Field(0, ge=0, allow_inf_nan=False)
    right: float = Field(0, ge=0, allow_inf_nan=False)
    unit: Literal["px", "share"] = "px"
    """`px`: pixels of the stored image; `share`: of its height and width, rounded to pixels."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name in ("top", "bottom", "left", "right"):
            value = getattr(self, name)
            if self.unit == "px" and value != int(value):
                raise ValueError(f'{name}: found {value:g} px; whole pixels, or unit = "share"')
        if self.unit == "share" and max(self.top + self.bottom, self.left + self.right) >= 1:
            raise ValueError("opposite margins cover the whole frame")
        return self

    def inside(self, height: int, width: int) -> tuple[slice, slice]:
        """Rows and columns that are left of a frame."""
        rows, columns = (1, 1) if self.unit == "px" else (height, width)
        top, bottom = round(self.top * rows), round(self.bottom * rows)
        left, right = round(self.left * columns), round(self.right * columns)
        return slice(top, max(top, height - bottom)), slice(left, max(left, width - right))


class CoarseSpec(Spec):
    """Classes that are taken from human labels, however coarse, because teachers confuse them."""

    labels: str
    """The label set with the human labels: the same dataset and the same class list."""
    classes: tuple[str, ...] = Field(min_length=1)
    """Where the teacher or the human label says one of these, the human label stands, void included."""
    released: bool = False
    """Do what the released loader does: such a class is the union of both, where the teacher sees it at all in the
    image; confidence is asked last, also under human pixels."""


class KeepSpec(Spec):
    """Which of a teacher's labels are kept; the other pixels become void."""

    threshold: Threshold = 0.5
    """Least confidence, in twentieths: 0.5 is `released`, 0.9 the `paper`."""
    class_thresholds: dict[str, Threshold] = Field(default_factory=dict)
    """Other thresholds for single classes, by name."""
    border: BorderSpec = BorderSpec()
    coarse: CoarseSpec | None = None

    def check(self, space: LabelSpace) -> None:
        """Make sure that every class named is one of the teacher's.

        Raises:
            ValueError: it is not; the message has the nearest name.
        """
        _check_names(self.class_thresholds, space, key="keep.class_thresholds")
        _check_names(self.coarse.classes if self.coarse else (), space, key="keep.coarse.classes")


def _check_names(names: Any, space: LabelSpace, *, key: str) -> None:
    for name in names:
        if name not in space.names:
            listed = ", ".join(space.names[:20]) + (" …" if space.num_classes > 20 else "")
            raise ValueError(f"{key}: no class {name!r}{did_you_mean(name, space.names)}; the teacher's are: {listed}")


@dataclass(frozen=True)
class Kept:
    """A label (H, W), and why pixels of it are void."""

    label: NDArray[Any]
    below: NDArray[np.bool_]
    """(H, W) pixels whose confidence is too low."""
    inside: tuple[slice, slice]
    """Rows and columns inside the border."""


class KeepRule:
    """A `KeepSpec` ready for use with one class list.

    Args:
        keep: what is kept.
        space: the teacher's classes; `keep` was checked against it.
    """

    def __init__(self, keep: KeepSpec, space: LabelSpace) -> None:
        self._keep, self._space = keep, space
        self._least = np.zeros(space.void + 1, np.uint8)  # void needs no confidence
        self._least[: space.num_classes] = _steps(keep.threshold)
        for name, value in keep.class_thresholds.items():
            self._least[space.names.index(name)] = _steps(value)
        self._classes = _indices(keep.coarse.classes if keep.coarse else (), space)
        self._is_coarse = np.zeros(space.void + 1, bool)
        self._is_coarse[list(self._classes)] = True

    def apply(self, found: NDArray[Any], steps: NDArray[np.uint8], *, coarse: NDArray[Any] | None = None) -> Kept:
        """Decide every pixel.

        Args:
            found: (H, W) the teacher's classes.
            steps: (H, W) its confidence in twentieths.
            coarse: (H, W) the human label, where the rule takes classes from one.
        """
        if self._keep.coarse is not None and self._keep.coarse.released:
            assert coarse is not None
            return self._as_released(found, steps, coarse)
        inside = self._keep.border.inside(*found.shape)
        below = steps < self._least[found]
        label = np.where(below, found.dtype.type(self._space.void), found)
        if coarse is not None:
            theirs = self._is_coarse[found] | self._is_coarse[coarse]
            label[theirs] = coarse[theirs]
        return Kept(self._only(label, inside), below, inside)

    def _as_released(self, found: NDArray[Any], steps: NDArray[np.uint8], coarse: NDArray[Any]) -> Kept:
        """The released loader's order: border, union class by class, threshold; a later class lies over a former."""
        inside = self._keep.border.inside(*found.shape)
        seen = self._only(found, inside)
        label = seen.copy()
        for index in self._classes:
            if (seen == index).any():
                label[(coarse == index) & ((seen < index) | (seen == self._space.void))] = index
        below = steps < self._least[label]
        label[below] = self._space.void
        return Kept(label, below, inside)

    def _only(self, label: NDArray[Any], inside: tuple[slice, slice]) -> NDArray[Any]:
        """The label, void outside the border."""
        framed = np.full_like(label, self._space.void)
        framed[inside] = label[inside]
        return framed


def _steps(threshold: float) -> int:
    return round(threshold * CONFIDENCE_STEPS)


def _indices(names: Sequence[str], space: LabelSpace) -> tuple[int, ...]:
    return tuple(sorted(space.names.index(name) for name in names))
