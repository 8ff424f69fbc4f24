"""LIP (Look into Person), 19 body parts and background.

Gong et al., "Look into Person: Self-supervised Structure-sensitive Learning and a New Benchmark for Human Parsing",
CVPR 2017. Layout of the archives: `TrainVal_images/<split>_images` with
`TrainVal_parsing_annotations/<split>_segmentations` (index PNG) and `TrainVal_images/<split>_id.txt`; many copies have
these folders and lists in the root. In a mirrored image left and right arms, legs and shoes change places.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipelines import storage
from pipelines.labels import RGB, LabelSpace
from pipelines.sources.base import Listing, visible_files
from pipelines.sources.pairs import SplitPart, open_labels
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
    "hat": (128, 0, 0),
    "hair": (255, 0, 0),
    "glove": (0, 85, 0),
    "sunglasses": (170, 0, 51),
    "upper-clothes": (255, 85, 0),
    "dress": (0, 0, 85),
    "coat": (0, 119, 221),
    "socks": (85, 85, 0),
    "pants": (0, 85, 85),
    "jumpsuits": (85, 51, 0),
    "scarf": (52, 86, 128),
    "skirt": (0, 128, 0),
    "face": (0, 0, 255),
    "left-arm": (51, 170, 221),
    "right-arm": (0, 255, 255),
    "left-leg": (85, 255, 170),
    "right-leg": (170, 255, 85),
    "left-shoe": (255, 255, 0),
    "right-shoe": (255, 170, 0),
}
"""Names in the order of their label values, with the colours in common use."""

IMAGES, LABELS = "TrainVal_images", "TrainVal_parsing_annotations"


class LipSource(PublishedSource):
    """LIP: 20 classes."""

    kind: Literal["lip"] = "lip"
    root: str
    """Folder that holds TrainVal_images and TrainVal_parsing_annotations, or train_images and train_segmentations."""
    splits: tuple[Literal["train", "val"], ...] = Field(("train", "val"), min_length=1)
    """Lists train_id.txt and val_id.txt."""

    def label_space(self) -> LabelSpace:
        """Background and the 19 parts; no value means void."""
        names, colors = tuple(CLASSES), tuple(CLASSES.values())
        return LabelSpace(names=names, colors=colors, background=0)

    def list_samples(self) -> Listing:
        """The images of the lists; an id is `<split>/<image>`."""
        root = open_root(
            self.root,
            name="LIP",
            markers=(IMAGES, "train_images", "val_images"),
            layout=f"{IMAGES}/train_images with {LABELS}/train_segmentations",
            inside=("LIP",),
        )
        parts, num_ignored = [], 0
        for split in dict.fromkeys(self.splits):
            files, hidden = visible_files(require_below(root, place_of(root, IMAGES, f"{split}_images")))
            path = storage.join(root, place_of(root, IMAGES, f"{split}_id.txt"))
            images = pick(files, read_ids(path), listed_in=path)
            labels = open_labels(require_below(root, place_of(root, LABELS, f"{split}_segmentations")), key=KEY)
            parts.append(SplitPart(split, images, labels_of(images, labels), prefix=f"{split}/"))
            num_ignored += hidden
        return pair_published(parts, num_ignored=num_ignored)


def place_of(root: str, archive: str, name: str) -> str:
    """Path below `root` of a file or folder of an archive, or where it should be.

    It lies in the archive's folder, in that folder unpacked into one of the same name, or in the root itself.
    """
    places = (f"{archive}/{name}", f"{archive}/{archive}/{name}", name)
    found = [place for place in places if storage.exists(storage.join(root, place))]
    in_archives = storage.is_dir(storage.join(root, IMAGES))
    return found[0] if found else places[0 if in_archives else -1]
