"""Tiny trees in the layouts in which data sets are published: two training images, one validation image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from pipelines.sources import CityscapesSource, Source, VocSource
from tests.source_files import HEIGHT, WIDTH, encoded, put, scene


@dataclass(frozen=True)
class Published:
    """A data set made by a test, and what its source must say about it."""

    source: Callable[[Path], Source]
    """The source with its default settings, for a root."""
    make: Callable[[Path], None]
    """Write the tree."""
    splits: dict[str, str]
    """Split by id."""
    lost: str
    """Label file of the first image of `splits`: the test takes it away."""
    expected: str
    """What is expected in its place, as the reason names it."""
    pixels: dict[int, str]
    """Raw values of that label -> class; void is `(void)`."""
    renamed: tuple[str, str]
    """A folder of the layout, and a misspelling of it."""
    message: str
    """What is said about the misspelling."""


def stripes(values: Sequence[int], *, palette: bool = False) -> bytes:
    """A label PNG whose columns hold these values, one after the other."""
    label = np.tile(np.resize(np.array(values, np.uint8), WIDTH), (HEIGHT, 1))
    image = Image.fromarray(label)
    if palette:
        image.putpalette(np.random.default_rng(0).integers(0, 256, 768).tolist())
    return encoded(image, "PNG")


def picture(path: Path) -> None:
    """An image file of the kind that its name tells."""
    put(path, encoded(scene(len(str(path))), "PNG" if path.suffix == ".png" else "JPEG"))


def text(path: Path, *lines: str) -> None:
    """A list, one entry a line."""
    put(path, ("\n".join(lines) + "\n").encode())


CITYSCAPES_PIXELS = {
    0: "(void)", 1: "(void)", 7: "road", 8: "sidewalk", 9: "(void)", 11: "building", 17: "pole", 18: "(void)",
    19: "traffic light", 21: "vegetation", 23: "sky", 24: "person", 26: "car", 28: "bus", 29: "(void)", 31: "train",
    33: "bicycle",
}  # fmt: skip


def make_cityscapes(root: Path) -> None:
    """leftImg8bit and gtFine, with the four files that every frame has."""
    for split, frame in (("train", "aachen_000000_000019"), ("train", "ulm_000001_000019"), ("val", "lindau_000000_1")):
        city = frame.partition("_")[0]
        picture(root / "leftImg8bit" / split / city / f"{frame}_leftImg8bit.png")
        labels = root / "gtFine" / split / city
        put(labels / f"{frame}_gtFine_labelIds.png", stripes(tuple(CITYSCAPES_PIXELS)))
        put(labels / f"{frame}_gtFine_instanceIds.png", stripes((24,)))
        put(labels / f"{frame}_gtFine_color.png", encoded(scene(1), "PNG"))
        text(labels / f"{frame}_gtFine_polygons.json", "{}")


def make_voc(root: Path) -> None:
    """JPEGImages with more images than the lists name, palette labels, lists of train, val and test."""
    for name in ("2007_000032", "2007_000039", "2007_000033", "2008_000001", "2008_000002"):
        picture(root / "JPEGImages" / f"{name}.jpg")
    for name in ("2007_000032", "2007_000039", "2007_000033"):
        put(root / "SegmentationClass" / f"{name}.png", stripes((0, 1, 15, 20, 255), palette=True))
    lists = root / "ImageSets" / "Segmentation"
    text(lists / "train.txt", "2007_000032", "2007_000039")
    text(lists / "val.txt", "2007_000033")
    text(lists / "test.txt", "2008_000001")


PUBLISHED: dict[str, Published] = {
    "cityscapes": Published(
        source=lambda root: CityscapesSource(root=str(root)),
        make=make_cityscapes,
        splits={
            "train/aachen/aachen_000000_000019": "train",
            "train/ulm/ulm_000001_000019": "train",
            "val/lindau/lindau_000000_1": "val",
        },
        lost="gtFine/train/aachen/aachen_000000_000019_gtFine_labelIds.png",
        expected="aachen/aachen_000000_000019_gtFine_labelIds",
        pixels=CITYSCAPES_PIXELS,
        renamed=("leftImg8bit", "leftImg8bits"),
        message="is not Cityscapes: no folder 'leftImg8bit' (did you mean 'leftImg8bits'?); expected leftImg8bit/",
    ),
    "voc": Published(
        source=lambda root: VocSource(root=str(root)),
        make=make_voc,
        splits={"2007_000032": "train", "2007_000039": "train", "2007_000033": "val"},
        lost="SegmentationClass/2007_000032.png",
        expected="2007_000032",
        pixels={0: "background", 1: "aeroplane", 15: "person", 20: "tvmonitor", 255: "(void)"},
        renamed=("JPEGImages", "JPEGImage"),
        message="is not VOC 2012: no folder 'JPEGImages' (did you mean 'JPEGImage'?); expected JPEGImages, ",
    ),
}
"""Each published data set, by the kind of its source."""
