"""Generated scenes for the demo: textured shapes on textured ground, with exact masks. numpy and Pillow only.

A class is a shape together with a texture. Four folders are written:

    labelled/{images,labels}/{train,test}/   scenes of several objects, every pixel labelled
    objects/<class>/                         one object an image: its class is known, its place is not
    unlabelled/                              scenes without labels
    classes.txt                              ground first, then the classes
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from pipelines.labels import default_colors

CLASSES = ("ground", "disc", "square", "triangle", "ring", "cross")
GROUND_COLOR = (52, 58, 70)
COLORS = (GROUND_COLOR, *default_colors(len(CLASSES) - 1))
SIZE = 64  # pixels a side

Pixels = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class SceneCounts:
    """How many images each part has."""

    train: int = 24
    test: int = 120
    objects_per_class: int = 80
    unlabelled: int = 120


def write_scenes(root: Path, *, seed: int, counts: SceneCounts | None = None) -> None:
    """Write all four parts below `root`; equal seeds give equal files."""
    counts = counts or SceneCounts()
    streams = np.random.SeedSequence(seed).spawn(4)
    for split, count, stream in (("train", counts.train, streams[0]), ("test", counts.test, streams[1])):
        rng = np.random.default_rng(stream)
        for number in range(count):
            image, label = scene(rng, num_objects=int(rng.integers(1, 4)))
            _save(image, root / "labelled" / "images" / split / f"{number:04d}.png")
            _save(label, root / "labelled" / "labels" / split / f"{number:04d}.png")
    _write_objects(root / "objects", np.random.default_rng(streams[2]), count=counts.objects_per_class)
    rng = np.random.default_rng(streams[3])
    for number in range(counts.unlabelled):
        image, _ = scene(rng, num_objects=int(rng.integers(1, 4)))
        _save(image, root / "unlabelled" / f"{number:04d}.png")
    (root / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    (root / "synsets.txt").write_text("\n".join(CLASSES[1:]) + "\n")


def _write_objects(root: Path, rng: np.random.Generator, *, count: int) -> None:
    for index, name in enumerate(CLASSES[1:], start=1):
        for number in range(count):
            image, _ = scene(rng, classes=[index])
            _save(image, root / name / f"{number:04d}.png")


def scene(rng: np.random.Generator, *, num_objects: int = 1, classes: list[int] | None = None) -> tuple[Pixels, Pixels]:
    """One picture (SIZE, SIZE, 3) and its label (SIZE, SIZE); later objects cover earlier ones.

    Args:
        num_objects: number of objects of random classes.
        classes: these classes instead, one object each.
    """
    image = _ground(rng)
    label = np.zeros((SIZE, SIZE), np.uint8)
    chosen = classes or [int(index) for index in rng.integers(1, len(CLASSES), num_objects)]
    for index in chosen:
        mask = _shape(rng, index)
        image[mask] = _texture(rng, index)[mask]
        label[mask] = index
    noisy = image.astype(np.float64) + rng.normal(0.0, 8.0, image.shape)
    return noisy.clip(0, 255).astype(np.uint8), label


def _ground(rng: np.random.Generator) -> Pixels:
    """Smooth clutter of random colours: low-resolution noise enlarged."""
    cells = int(rng.integers(3, 9))
    coarse = rng.integers(40, 216, (cells, cells, 3)).astype(np.uint8)
    enlarged = Image.fromarray(coarse).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    return np.array(enlarged)


def _texture(rng: np.random.Generator, index: int) -> Pixels:
    """Each class has its own pattern in two random colours, so that colour alone tells nothing."""
    rows, columns = np.mgrid[:SIZE, :SIZE] + rng.integers(0, 8)
    patterns: dict[int, Callable[[], Mask]] = {
        1: lambda: rows % 6 < 3,
        2: lambda: columns % 6 < 3,
        3: lambda: (rows // 4 + columns // 4) % 2 == 0,
        4: lambda: (rows + columns) % 8 < 4,
        5: lambda: (rows % 6 < 2) & (columns % 6 < 2),
    }
    dark, light = rng.integers(0, 110, 3), rng.integers(145, 256, 3)
    return np.where(patterns[index]()[..., None], light, dark).astype(np.uint8)


def _shape(rng: np.random.Generator, index: int) -> Mask:
    radius = float(rng.uniform(9, 15))
    x, y = rng.uniform(radius, SIZE - radius, 2)
    canvas = Image.new("1", (SIZE, SIZE))
    draw = ImageDraw.Draw(canvas)
    box = (x - radius, y - radius, x + radius, y + radius)
    if index == 1:
        draw.ellipse(box, fill=1)
    elif index == 2:
        draw.rectangle(box, fill=1)
    elif index == 3:
        draw.polygon([(x, y - radius), (x - radius, y + radius), (x + radius, y + radius)], fill=1)
    elif index == 4:
        draw.ellipse(box, fill=1)
        inner = radius * 0.45
        draw.ellipse((x - inner, y - inner, x + inner, y + inner), fill=0)
    else:
        arm = radius * 0.4
        draw.rectangle((x - radius, y - arm, x + radius, y + arm), fill=1)
        draw.rectangle((x - arm, y - radius, x + arm, y + radius), fill=1)
    return np.asarray(canvas)


def _save(pixels: Pixels, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
