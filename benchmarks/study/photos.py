"""Photographs with human masks and a class."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

AGREEING, CONFIDENCE = 4, 0.5
"""A class given by classifiers counts where this many of five agree, with a larger mean probability than this."""


@dataclass(frozen=True)
class Photo:
    """An image, where a person saw the object, and its class."""

    id: str
    path: Path
    mask_path: Path
    class_index: int

    def image(self) -> NDArray[np.uint8]:
        """Pixels (H, W, 3)."""
        return np.asarray(Image.open(self.path).convert("RGB"))

    def mask(self) -> NDArray[np.bool_]:
        """(H, W), true on the object."""
        return np.asarray(Image.open(self.mask_path).convert("1"))


SETS = {"ecssd-500": None, "weizmann-horse-164": 339}
"""Folder of a set, and the class of all its photographs where there is one (sorrel); else only confident ones count."""


def photos_of(data: Path, name: str, *, limit: int | None = None) -> list[Photo]:
    """The photographs of a set in a fixed mixed order, so that the first few are like the rest."""
    found = list(_listed(data / "datasets" / name, true_class=SETS[name]))
    order = np.random.default_rng(0).permutation(len(found))[:limit]
    return [found[index] for index in order]


def _listed(root: Path, *, true_class: int | None) -> Iterator[Photo]:
    with (root / "index.tsv").open() as file:
        for row in csv.DictReader(file, delimiter="\t"):
            sure = int(row["classifiers_agreeing_of_5"]) >= AGREEING and float(row["mean_probability"]) > CONFIDENCE
            if sure or true_class is not None:
                image, mask = (next((root / part).glob(f"{row['id']}.*")) for part in ("images", "masks"))
                yield Photo(row["id"], image, mask, int(row["class_index"]) if true_class is None else true_class)
