"""PASCAL VOC 2012 segmentation, 20 classes and background, also with the extra labels of SBD ("aug").

Everingham et al., "The PASCAL Visual Object Classes Challenge: A Retrospective", IJCV 2015; Hariharan et al.,
"Semantic Contours from Inverse Detectors", ICCV 2011. Layout of the development kit: `JPEGImages`,
`SegmentationClass` (palette PNG, 255 = void), `ImageSets/Segmentation/<split>.txt`. The extra labels lie as index PNG
in `SegmentationClassAug`, with a list of their own (10 582 images), as in DeepLab's and most later code.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from pydantic import Field, model_validator

from pipelines import storage
from pipelines.labels import RGB, LabelSpace
from pipelines.sources.base import Listing, visible_files
from pipelines.sources.pairs import LabelFolder, SplitPart, open_labels
from pipelines.sources.published import (
    KEY,
    PublishedSource,
    labels_of,
    open_root,
    pair_published,
    pick,
    read_ids,
    require_below,
)

CLASSES: dict[str, RGB] = {
    "background": (0, 0, 0),
    "aeroplane": (128, 0, 0),
    "bicycle": (0, 128, 0),
    "bird": (128, 128, 0),
    "boat": (0, 0, 128),
    "bottle": (128, 0, 128),
    "bus": (0, 128, 128),
    "car": (128, 128, 128),
    "cat": (64, 0, 0),
    "chair": (192, 0, 0),
    "cow": (64, 128, 0),
    "diningtable": (192, 128, 0),
    "dog": (64, 0, 128),
    "horse": (192, 0, 128),
    "motorbike": (64, 128, 128),
    "person": (192, 128, 128),
    "pottedplant": (0, 64, 0),
    "sheep": (128, 64, 0),
    "sofa": (0, 192, 0),
    "train": (128, 192, 0),
    "tvmonitor": (0, 64, 128),
}
"""Names in the order of their label values, with the colours of the files' palette."""

VOID = 255
IMAGES, LABELS, EXTRA_LABELS = "JPEGImages", "SegmentationClass", "SegmentationClassAug"
INSIDE = ("VOC2012", "VOCdevkit/VOC2012")
EXTRA_LISTS = ("Segmentation/trainaug.txt", "Segmentation/train_aug.txt", "SegmentationAug/train_aug.txt")
"""Names in use for the list of the augmented training set, below ImageSets."""


class VocSource(PublishedSource):
    """PASCAL VOC 2012: 21 classes, 255 void."""

    kind: Literal["voc"] = "voc"
    root: str
    """Folder VOC2012 of the development kit, or one above it."""
    augmented: bool = False
    """Train on the list trainaug.txt; labels that SegmentationClass lacks come from SegmentationClassAug."""
    splits: tuple[Literal["train", "val", "trainval", "test"], ...] = Field(("train", "val"), min_length=1)
    """Lists of ImageSets/Segmentation; test has no labels."""

    @model_validator(mode="after")
    def _no_setting_without_effect(self) -> VocSource:
        if self.augmented and "train" not in self.splits:
            raise ValueError("`augmented` takes no effect without 'train' in `splits`")
        return self

    @property
    def has_labels(self) -> bool:
        """Whether one of the splits has labels."""
        return any(split != "test" for split in self.splits)

    def label_space(self) -> LabelSpace:
        """Background and the 20 classes."""
        return LabelSpace(names=tuple(CLASSES), colors=tuple(CLASSES.values()), void_values=(VOID,), background=0)

    def list_samples(self) -> Listing:
        """The images of the lists; an id is the image's name."""
        root = open_root(
            self.root,
            name="VOC 2012",
            markers=(IMAGES,),
            layout=f"{IMAGES}, {LABELS} and ImageSets/Segmentation",
            inside=INSIDE,
        )
        files, num_ignored = visible_files(storage.join(root, IMAGES))
        parts = []
        for split in dict.fromkeys(self.splits):
            path = find_list(root, split, augmented=self.augmented)
            images = pick(files, read_ids(path), listed_in=path)
            labels = None if split == "test" else self._labels(root, split)
            parts.append(SplitPart(split, images, labels and labels_of(images, labels)))
        return pair_published(parts, num_ignored=num_ignored)

    def _labels(self, root: str, split: str) -> LabelFolder:
        """Label files; the finer ones of VOC go before those of SBD."""
        labels = open_labels(require_below(root, LABELS), key=KEY)
        if not (self.augmented and split == "train"):
            return labels
        extra = open_labels(require_below(root, EXTRA_LABELS), key=KEY)
        return replace(extra, by_stem=extra.by_stem | labels.by_stem)


def find_list(root: str, split: str, *, augmented: bool) -> str:
    """The text file that lists the images of a split."""
    sets = require_below(root, "ImageSets")
    if not (augmented and split == "train"):
        return storage.join(sets, "Segmentation", f"{split}.txt")
    paths = [storage.join(sets, name) for name in EXTRA_LISTS]
    return next((path for path in paths if storage.exists(path)), paths[0])
