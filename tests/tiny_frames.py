"""Folders of pictures for tests of what reads such folders: street scenes with labels, and images with a class each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def write_frames(split: Path, *, count: int) -> None:
    """Frames whose upper half is sky and whose lower half is road, with their labels."""
    label = np.repeat(np.array([0, 3], np.uint8), 24)[:, None].repeat(64, axis=1)
    colors = np.zeros((12, 3), np.uint8)
    colors[[0, 3]] = (90, 160, 250), (70, 60, 50)
    for part, pixels in (("images", colors[label]), ("labels", label)):
        (split / part).mkdir(parents=True)
        for number in range(count):
            Image.fromarray(pixels).save(split / part / f"{number:02d}.png")


def write_images(folder: Path, *, count: int) -> None:
    """Pictures and their class list."""
    folder.mkdir(parents=True)
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, (64, 64, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    lines = ["file\tclass_index", *(f"{number}.png\t{number}" for number in range(count))]
    (folder / "index.tsv").write_text("\n".join(lines) + "\n")
