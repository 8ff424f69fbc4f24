"""Tiny trees in the layouts in which data sets are published: two training images, one validation image."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from pipelines.sources import (
    Ade20kSource,
    CityscapesSource,
    LipSource,
    MapillarySource,
    PascalContextSource,
    Source,
    VocSource,
)
from tests.source_files import HEIGHT, WIDTH, encoded, put, scene


@dataclass(frozen=True)
class Published:
    """A data set made by a test, and what its source must say about it."""

    source: Callable[[Path], Source]
    """The source with its default settings, for a root."""
    make: Callable[[Path], None]
    """Write the tree."""
    num_classes: int
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


def make_ade20k(root: Path) -> None:
    """images and annotations, training and validation."""
    for folder, name in (("training", "ADE_train_1"), ("training", "ADE_train_2"), ("validation", "ADE_val_1")):
        picture(root / "images" / folder / f"{name}.jpg")
        put(root / "annotations" / folder / f"{name}.png", stripes((0, 1, 2, 13, 150)))
    text(root / "objectInfo150.txt", "Idx\tRatio\tTrain\tVal\tStuff\tName")


def make_pascal_context(root: Path) -> None:
    """JPEGImages, label maps as the Detail API's annotations are exported, two lists."""
    for name in ("2008_000002", "2008_000003", "2008_000007", "2010_000001"):
        picture(root / "JPEGImages" / f"{name}.jpg")
        put(root / "SegmentationClassContext" / f"{name}.png", stripes((0, 1, 2, 55, 58, 59)))
    lists = root / "ImageSets" / "SegmentationContext"
    text(lists / "train.txt", "2008_000002", "2008_000003")
    text(lists / "val.txt", "2008_000007")


VISTAS = {"Bird": True, "Road": True, "Sky": True, "Unlabeled": False}


def make_mapillary(root: Path) -> None:
    """images, labels and instances of training and validation, and the class list."""
    for folder, name in (("training", "aB-1"), ("training", "aB_2"), ("validation", "c3")):
        picture(root / folder / "images" / f"{name}.jpg")
        put(root / folder / "labels" / f"{name}.png", stripes((0, 1, 2, 3), palette=True))
        put(root / folder / "instances" / f"{name}.png", stripes((0,)))
    classes = [
        {"color": [number, 0, 9], "instances": True, "readable": name, "name": f"x--{name.lower()}", "evaluate": counts}
        for number, (name, counts) in enumerate(VISTAS.items())
    ]
    text(root / "config.json", json.dumps({"labels": classes, "version": 1.1, "mapping": "public"}))


def make_lip(root: Path) -> None:
    """The folders of the two archives, with one image that no list names."""
    for split, name in (("train", "77_1"), ("train", "77_2"), ("train", "77_3"), ("val", "36_1")):
        picture(root / "TrainVal_images" / f"{split}_images" / f"{name}.jpg")
        put(root / "TrainVal_parsing_annotations" / f"{split}_segmentations" / f"{name}.png", stripes((0, 5, 14, 19)))
    text(root / "TrainVal_images" / "train_id.txt", "77_1", "77_2")
    text(root / "TrainVal_images" / "val_id.txt", "36_1")


PUBLISHED: dict[str, Published] = {
    "cityscapes": Published(
        source=lambda root: CityscapesSource(root=str(root)),
        make=make_cityscapes,
        num_classes=19,
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
        num_classes=21,
        splits={"2007_000032": "train", "2007_000039": "train", "2007_000033": "val"},
        lost="SegmentationClass/2007_000032.png",
        expected="2007_000032",
        pixels={0: "background", 1: "aeroplane", 15: "person", 20: "tvmonitor", 255: "(void)"},
        renamed=("JPEGImages", "JPEGImage"),
        message="is not VOC 2012: no folder 'JPEGImages' (did you mean 'JPEGImage'?); expected JPEGImages, ",
    ),
    "ade20k": Published(
        source=lambda root: Ade20kSource(root=str(root)),
        make=make_ade20k,
        num_classes=150,
        splits={"train/ADE_train_1": "train", "train/ADE_train_2": "train", "val/ADE_val_1": "val"},
        lost="annotations/training/ADE_train_1.png",
        expected="ADE_train_1",
        pixels={0: "(void)", 1: "wall", 2: "building", 13: "person", 150: "flag"},
        renamed=("images/training", "images/trainig"),
        message="images/training: no such folder (did you mean 'trainig'?)",
    ),
    "pascal_context": Published(
        source=lambda root: PascalContextSource(root=str(root)),
        make=make_pascal_context,
        num_classes=59,
        splits={"2008_000002": "train", "2008_000003": "train", "2008_000007": "val"},
        lost="SegmentationClassContext/2008_000002.png",
        expected="2008_000002",
        pixels={0: "(void)", 1: "aeroplane", 2: "bag", 55: "tvmonitor", 58: "window", 59: "wood"},
        renamed=("SegmentationClassContext", "SegmentationContext"),
        message="is not PASCAL-Context: no folder 'SegmentationClassContext' (did you mean 'SegmentationContext'?)",
    ),
    "mapillary": Published(
        source=lambda root: MapillarySource(root=str(root)),
        make=make_mapillary,
        num_classes=3,
        splits={"train/aB-1": "train", "train/aB_2": "train", "val/c3": "val"},
        lost="training/labels/aB-1.png",
        expected="aB-1",
        pixels={0: "Bird", 1: "Road", 2: "Sky", 3: "(void)"},
        renamed=("training/labels", "training/label"),
        message="training/labels: no such folder (did you mean 'label'?)",
    ),
    "lip": Published(
        source=lambda root: LipSource(root=str(root)),
        make=make_lip,
        num_classes=20,
        splits={"train/77_1": "train", "train/77_2": "train", "val/36_1": "val"},
        lost="TrainVal_parsing_annotations/train_segmentations/77_1.png",
        expected="77_1",
        pixels={0: "background", 5: "upper-clothes", 14: "left-arm", 19: "right-shoe"},
        renamed=("TrainVal_images", "TrainVal_image"),
        message="is not LIP: no folder 'TrainVal_images' (did you mean 'TrainVal_image'?)",
    ),
}
"""Each published data set, by the kind of its source."""
