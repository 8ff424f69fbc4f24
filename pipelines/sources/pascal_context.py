"""PASCAL-Context, 59 classes, or 60 with background.

Mottaghi et al., "The Role of Context for Object Detection and Semantic Segmentation in the Wild", CVPR 2014: the
images of VOC 2010, 459 labels, of which the 59 most frequent are evaluated. Layout as the Detail API's annotations are
commonly exported: `JPEGImages`, `SegmentationClassContext` (index PNG, 0 = background) and
`ImageSets/SegmentationContext/<split>.txt`.

Two orders are about. The export numbers the classes in the order of their ids among the 459, which is alphabetical;
the authors' list of 59 names begins with the classes of VOC. Some code lists the names of the second beside the files
of the first (mmsegmentation's issues 1940 and 3021): scores do not change, names do.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipelines import storage
from pipelines.labels import LabelSpace
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

# fmt: off
VOC_FIRST: tuple[str, ...] = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "table", "dog", "horse",
    "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor", "bag", "bed", "bench", "book",
    "building", "cabinet", "ceiling", "cloth", "computer", "cup", "door", "fence", "floor", "flower", "food", "grass",
    "ground", "keyboard", "light", "mountain", "mouse", "curtain", "platform", "sign", "plate", "road", "rock",
    "shelves", "sidewalk", "sky", "snow", "bedclothes", "track", "tree", "truck", "wall", "water", "window", "wood",
)
"""The 59 names in the order of the authors' list."""
# fmt: on
BACKGROUND = 0
IMAGES, LABELS, LISTS = "JPEGImages", "SegmentationClassContext", "ImageSets/SegmentationContext"


class PascalContextSource(PublishedSource):
    """PASCAL-Context from index PNGs: 59 classes, 0 void; or 60 with background."""

    kind: Literal["pascal_context"] = "pascal_context"
    root: str
    """Folder VOC2010, or one above it."""
    num_classes: Literal[59, 60] = 59
    """59: background is void; 60: it is the first class."""
    order: Literal["alphabetical", "voc_first"] = "alphabetical"
    """How label values 1 to 59 are numbered: alphabetical as the Detail API's ids, or as the authors' list of 59."""
    splits: tuple[Literal["train", "val"], ...] = Field(("train", "val"), min_length=1)
    """Lists of ImageSets/SegmentationContext."""

    def label_space(self) -> LabelSpace:
        """The 59 classes, after background where it counts; colours are generated, as none are published."""
        names = tuple(sorted(VOC_FIRST)) if self.order == "alphabetical" else VOC_FIRST
        if self.num_classes == len(names):
            values = tuple(range(1, len(names) + 1))
            return LabelSpace(names=names, raw_values=values, void_values=(BACKGROUND,))
        return LabelSpace(names=("background", *names), background=BACKGROUND)

    def list_samples(self) -> Listing:
        """The images of the lists; an id is the image's name."""
        root = open_root(
            self.root,
            name="PASCAL-Context",
            markers=(LABELS,),
            layout=f"{IMAGES}, {LABELS} and {LISTS}",
            inside=("VOC2010", "VOCdevkit/VOC2010"),
        )
        files, num_ignored = visible_files(require_below(root, IMAGES))
        labels = open_labels(storage.join(root, LABELS), key=KEY)
        lists = require_below(root, LISTS)
        parts = []
        for split in dict.fromkeys(self.splits):
            path = storage.join(lists, f"{split}.txt")
            images = pick(files, read_ids(path), listed_in=path)
            parts.append(SplitPart(split, images, labels_of(images, labels)))
        return pair_published(parts, num_ignored=num_ignored)
