"""Label spaces: the only place where class ids and void are mapped.

A label is a (H, W) map of class indices; `void` marks pixels of no known class. Inside tables labels are coded
(codecs.py), people see PNG (label_files.py).
"""

from __future__ import annotations

import colorsys
import hashlib
import json
import re
from collections.abc import Sequence
from typing import Any, NoReturn, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from pipelines.codecs import value_runs
from pipelines.contours import Label
from seg_models.spec import Spec

RGB = tuple[int, int, int]

MAX_BYTE_CLASSES = 255  # 0..254 are classes, 255 is void; more classes need two bytes
RAW_IDS = range(-(1 << 15), 1 << 24)  # raw ids that a label file can hold: signed 16 bits to three bytes
OTHER_SIDE = {"left": "right", "Left": "Right", "LEFT": "RIGHT"}
OTHER_SIDE |= {right: left for left, right in OTHER_SIDE.items()}
SIDE = re.compile(rf"(?<![A-Za-z])({'|'.join(OTHER_SIDE)})(?![a-z])")  # no upright, but leftArm
MAX_LISTED = 20  # values named in one error

BLACK: RGB = (0, 0, 0)


class LabelValueError(ValueError):
    """A label holds values outside the class list."""


def default_colors(count: int) -> tuple[RGB, ...]:
    """`count` distinct colours, the same for the same count: golden-angle hues with alternating brightness."""
    colors = []
    for index in range(count):
        hue = (index * 0.61803398875) % 1.0
        value = (0.95, 0.75, 0.55)[index % 3]
        saturation = (0.85, 0.55)[(index // 3) % 2]
        red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
        colors.append((round(red * 255), round(green * 255), round(blue * 255)))
    return tuple(colors)


def _class_colors(names: Sequence[str]) -> tuple[RGB, ...]:
    """Generated colours; a class called background is black, so that the others stand out in pictures."""
    colors = iter(default_colors(len(names)))
    return tuple(BLACK if str(name).lower() == "background" else next(colors) for name in names)


def _sides(names: Sequence[str]) -> tuple[tuple[int, int], ...]:
    """Pairs of places whose names differ in the words left and right: Left-arm and Right-arm."""
    places = {str(name): place for place, name in enumerate(names)}
    other = {name: places.get(SIDE.sub(lambda side: OTHER_SIDE[side[0]], name)) for name in places}
    return tuple((place, twin) for name, place in places.items() if (twin := other[name]) is not None and place < twin)


class LabelSpace(Spec):
    """The classes of a label set, and how raw ids of the source map to them."""

    names: tuple[str, ...] = Field(min_length=1)
    """Class names; the position is the class index."""
    colors: tuple[RGB, ...] = ()
    """One RGB colour per class; default: generated."""
    raw_values: tuple[int, ...] = ()
    """Raw id of each class in the source's label images; default 0, 1, 2, …"""
    void_values: tuple[int, ...] | None = None
    """Raw ids that mean void; default: the void index itself where it is no raw id of a class."""
    background: int | None = None
    """Index of the class that means "none of the others", if there is one."""
    mirror_pairs: tuple[tuple[int, int], ...] = ()
    """Pairs of indices swapped in a mirrored image; default: whose names differ in the words left and right."""

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, data: Any) -> Any:
        if not isinstance(data, dict) or not data.get("names"):
            return data
        filled = dict(data)
        count = len(filled["names"])
        filled["colors"] = filled.get("colors") or _class_colors(filled["names"])
        filled["raw_values"] = filled.get("raw_values") or tuple(range(count))
        if filled.get("void_values") is None:
            void = _void_of(count)
            filled["void_values"] = () if void in filled["raw_values"] else (void,)
        if filled.get("mirror_pairs") is None:
            filled["mirror_pairs"] = _sides(filled["names"])
        return filled

    @model_validator(mode="after")
    def _check(self) -> Self:
        count = len(self.names)
        for key in ("colors", "raw_values"):
            if len(getattr(self, key)) != count:
                raise ValueError(f"{key} has {len(getattr(self, key))} entries for {count} classes")
        if len(set(self.raw_values)) != count:
            raise ValueError("raw_values names an id twice")
        odd = sorted(value for value in (*self.raw_values, *(self.void_values or ())) if value not in RAW_IDS)
        if odd:
            raise ValueError(f"raw ids {odd[:5]} are outside {RAW_IDS.start}..{RAW_IDS.stop - 1}")
        both = set(self.raw_values) & set(self.void_values or ())
        if both:
            raise ValueError(f"raw ids {sorted(both)} are both a class and void")
        if self.background is not None and not 0 <= self.background < count:
            raise ValueError(f"background {self.background} is no class index (0..{count - 1})")
        paired = [index for pair in self.mirror_pairs for index in pair]
        if len(set(paired)) != len(paired) or not set(paired) <= set(range(count)):
            raise ValueError(f"mirror_pairs {self.mirror_pairs} must name class indices (0..{count - 1}), each once")
        return self

    @property
    def num_classes(self) -> int:
        """Number of classes; void is none of them."""
        return len(self.names)

    @property
    def void(self) -> int:
        """The index of pixels without a known class: 255 for at most 255 classes, else 65535."""
        return _void_of(self.num_classes)

    @property
    def mirrored(self) -> tuple[int, ...]:
        """What each class index is in a mirrored image."""
        places = list(range(self.num_classes))
        for left, right in self.mirror_pairs:
            places[left], places[right] = right, left
        return tuple(places)

    @property
    def dtype(self) -> np.dtype[Any]:
        """uint8 for at most 255 classes, else uint16."""
        return np.dtype(np.uint8 if self.num_classes <= MAX_BYTE_CLASSES else np.uint16)

    def to_index(self, raw: npt.NDArray[Any]) -> Label:
        """Map raw ids (H, W) to class indices and void.

        Raises:
            LabelValueError: a value is neither a class nor void; the message names value, pixel count and remedy.
        """
        if raw.dtype.kind not in "iub":
            raise LabelValueError(f"label holds {raw.dtype} values; class ids are whole numbers")
        if raw.size == 0:
            return np.zeros(raw.shape, self.dtype)
        first, table, known = self._lookup()
        if raw.min() < first or raw.max() >= first + len(table):
            self._refuse(raw)
        position = raw.astype(np.intp) - first if first or raw.dtype.kind == "b" else raw
        if not known[position].all():
            self._refuse(raw)
        mapped: Label = table[position]
        return mapped

    def from_rgb(self, rgb: npt.NDArray[np.uint8]) -> Label:
        """Map a colour-coded label (H, W, 3) to class indices. Black is void unless it is a class's colour.

        Raises:
            LabelValueError: a colour is none of the class colours, or stands for two classes.
        """
        if len(set(self.colors)) < self.num_classes:
            raise LabelValueError("two classes have the same colour; give each its own in `colors`")
        codes, lengths = value_runs(_color_codes(rgb).reshape(-1))
        wanted = {(r << 16) | (g << 8) | b: index for index, (r, g, b) in enumerate(self.colors)}
        wanted.setdefault(0, self.void)
        values, inverse = np.unique(codes, return_inverse=True)
        counts = np.bincount(inverse, weights=lengths, minlength=len(values)).astype(np.int64)
        unknown = {int(code): int(n) for code, n in zip(values, counts, strict=True) if int(code) not in wanted}
        if unknown:
            raise LabelValueError(_unknown_colors(unknown))
        table = np.array([wanted[int(code)] for code in values], dtype=self.dtype)
        mapped: Label = np.repeat(table[inverse], lengths).reshape(rgb.shape[:2])
        return mapped

    def colorize(self, label: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
        """RGB picture (H, W, 3) of a label; void is black."""
        table = np.zeros((self.void + 1, 3), np.uint8)
        table[: self.num_classes] = self.colors
        picture: npt.NDArray[np.uint8] = table[label]
        return picture

    def same_classes(self, other: LabelSpace) -> bool:
        """Whether class index i means the same in both."""
        return self.names == other.names

    def fingerprint(self) -> str:
        """SHA-256 of everything that decides the meaning of an index."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def _lookup(self) -> tuple[int, Label, npt.NDArray[np.bool_]]:
        """The raw id of the tables' first entry (0, or below where ids are negative), indices, and which are known."""
        ids = (*self.raw_values, *(self.void_values or ()))
        first = min(0, *ids)
        size = max(ids) + 1 - first
        table = np.full(size, self.void, self.dtype)
        known = np.zeros(size, bool)
        known[np.array(ids) - first] = True
        table[np.array(self.raw_values) - first] = np.arange(self.num_classes, dtype=self.dtype)
        return first, table, known

    def _refuse(self, raw: npt.NDArray[Any]) -> NoReturn:
        """Name every value of `raw` that is neither a class nor void.

        Raises:
            LabelValueError: always.
        """
        void = self.void_values or ()
        values, counts = np.unique(raw, return_counts=True)
        known = {*self.raw_values, *void}
        unknown = {int(v): int(n) for v, n in zip(values, counts, strict=True) if int(v) not in known}
        listed = ", ".join(f"value {value} on {count} pixels" for value, count in list(unknown.items())[:MAX_LISTED])
        more = f" and {len(unknown) - MAX_LISTED} more values" if len(unknown) > MAX_LISTED else ""
        raise LabelValueError(
            f"{listed}{more} outside the class list (raw ids {_ranges(self.raw_values)}, void {list(void)}); "
            f"{self._remedy(set(unknown))}"
        )

    def _remedy(self, unknown: set[int]) -> str:
        """The line that makes a label with these unknown values fit."""
        if unknown == {255} and self.num_classes == 2:
            return "this looks like a 0/255 mask: add `raw_values = [0, 255]`"
        if len(unknown) > MAX_LISTED:
            return "is this the right class list, and is the file a label?"
        values = sorted({*(self.void_values or ()), *unknown})
        return f"add `void_values = {values}` if it means void, else name its class in the class list"


def _void_of(num_classes: int) -> int:
    return 255 if num_classes <= MAX_BYTE_CLASSES else 65535


def _color_codes(rgb: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint32]:
    wide = rgb.astype(np.uint32)
    codes: npt.NDArray[np.uint32] = np.left_shift(wide[..., 0], 16) | np.left_shift(wide[..., 1], 8) | wide[..., 2]
    return codes


def _unknown_colors(counts: dict[int, int]) -> str:
    colors = {(code >> 16, (code >> 8) & 255, code & 255): count for code, count in counts.items()}
    listed = ", ".join(f"colour {color} on {count} pixels" for color, count in list(colors.items())[:MAX_LISTED])
    if len(colors) > MAX_LISTED:
        more = len(colors) - MAX_LISTED
        return f"{listed} and {more} more colours are no class colours; is the file a colour-coded label, not resized?"
    lines = ", ".join(str(list(color)) for color in colors)
    return f"{listed}: no class colour; add {lines} to `colors`, with a name for each in the class list"


def _ranges(values: Sequence[int]) -> str:
    ordered = sorted(values)
    if ordered == list(range(ordered[0], ordered[-1] + 1)) and len(ordered) > 2:
        return f"{ordered[0]}..{ordered[-1]}"
    return ", ".join(map(str, ordered[:12])) + ("…" if len(ordered) > 12 else "")


def with_background(names: Sequence[str], *, name: str = "background") -> LabelSpace:
    """The label space of pseudo-labels: the image-level classes, then one background class (PSSL: 0..999 and 1000)."""
    count = len(names)
    return LabelSpace(names=(*names, name), colors=(*default_colors(count), BLACK), background=count)
