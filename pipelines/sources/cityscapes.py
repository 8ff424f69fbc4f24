"""Cityscapes, 19 classes, fine or coarse labels.

Cordts et al., "The Cityscapes Dataset for Semantic Urban Scene Understanding", CVPR 2016. Ids, train ids and colours
are those of cityscapesScripts. Layout of the archives: `leftImg8bit/<split>/<city>/<frame>_leftImg8bit.png` with
`gtFine/<split>/<city>/<frame>_gtFine_labelIds.png`, or `gtCoarse` and `_gtCoarse_labelIds.png`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from pydantic import Field

from pipelines.labels import RGB, LabelSpace
from pipelines.sources.base import Listing, visible_files, without_suffix
from pipelines.sources.pairs import LabelFolder, SplitPart, open_labels
from pipelines.sources.published import KEY, PublishedSource, open_root, pair_published, require_below
from pipelines.storage import FileInfo
from seg_models.names import did_you_mean

CLASSES: dict[str, tuple[int, RGB]] = {
    "road": (7, (128, 64, 128)),
    "sidewalk": (8, (244, 35, 232)),
    "building": (11, (70, 70, 70)),
    "wall": (12, (102, 102, 156)),
    "fence": (13, (190, 153, 153)),
    "pole": (17, (153, 153, 153)),
    "traffic light": (19, (250, 170, 30)),
    "traffic sign": (20, (220, 220, 0)),
    "vegetation": (21, (107, 142, 35)),
    "terrain": (22, (152, 251, 152)),
    "sky": (23, (70, 130, 180)),
    "person": (24, (220, 20, 60)),
    "rider": (25, (255, 0, 0)),
    "car": (26, (0, 0, 142)),
    "truck": (27, (0, 0, 70)),
    "bus": (28, (0, 60, 100)),
    "train": (31, (0, 80, 100)),
    "motorcycle": (32, (0, 0, 230)),
    "bicycle": (33, (119, 11, 32)),
}
"""Name -> id in labelIds files, colour; the order is that of the train ids."""

IGNORED_IDS = (*range(7), 9, 10, 14, 15, 16, 18, 29, 30)
"""Ids that the evaluation leaves out: void, parking, rail track, guard rail, bridge, tunnel, polegroup, caravan,
trailer."""
TRAIN_ID_VOID = 255
LABELLED = {"fine": ("train", "val"), "coarse": ("train", "train_extra", "val")}
FOLDERS = {"fine": "gtFine", "coarse": "gtCoarse"}
IMAGES = "leftImg8bit"

Split = Literal["train", "val", "test", "train_extra"]


class CityscapesSource(PublishedSource):
    """Cityscapes: 19 classes; all other ids are void."""

    kind: Literal["cityscapes"] = "cityscapes"
    root: str
    """Folder that holds leftImg8bit, and gtFine or gtCoarse."""
    annotations: Literal["fine", "coarse"] = "fine"
    """fine: train and val; coarse: train, val and the 19 998 frames of train_extra."""
    label_files: Literal["labelIds", "labelTrainIds"] = "labelIds"
    """The files as published, or those that cityscapesScripts makes of them."""
    splits: tuple[Split, ...] = Field(("train", "val"), min_length=1)
    """test has no labels (its published files are all void), train_extra no fine ones: their images are taken alone."""

    @property
    def has_labels(self) -> bool:
        """Whether one of the splits has labels."""
        return any(split in LABELLED[self.annotations] for split in self.splits)

    def label_space(self) -> LabelSpace:
        """The 19 classes, with the raw ids of the label files named."""
        colors = tuple(color for _, color in CLASSES.values())
        if self.label_files == "labelTrainIds":
            return LabelSpace(names=tuple(CLASSES), colors=colors, void_values=(TRAIN_ID_VOID,))
        ids = tuple(number for number, _ in CLASSES.values())
        return LabelSpace(names=tuple(CLASSES), colors=colors, raw_values=ids, void_values=IGNORED_IDS)

    def list_samples(self) -> Listing:
        """The frames of the splits; an id is `<split>/<city>/<frame>`."""
        root = open_root(
            self.root,
            name="Cityscapes",
            markers=(IMAGES,),
            layout=f"{IMAGES}/<split>/<city> and {FOLDERS[self.annotations]}/<split>/<city>",
        )
        parts, num_ignored = [], 0
        for split in dict.fromkeys(self.splits):
            files, hidden = visible_files(require_below(root, f"{IMAGES}/{split}"))
            frames = [as_frame(file) for file in files]
            parts.append(SplitPart(split, frames, self._labels(root, split), prefix=f"{split}/"))
            num_ignored += hidden
        return pair_published(parts, num_ignored=num_ignored)

    def _labels(self, root: str, split: str) -> LabelFolder | None:
        """The label files of a split, out of the four kinds that lie together; None where it has none."""
        if split not in LABELLED[self.annotations]:
            return None
        kind = FOLDERS[self.annotations]
        folder = require_below(root, f"{kind}/{split}")
        found = open_labels(folder, key=KEY, suffix=f"_{kind}_{self.label_files}")
        own = {stem: files for stem, files in found.by_stem.items() if stem.endswith(found.suffix)}
        if not own:
            kinds = sorted({stem.rpartition("_")[2] for stem in found.by_stem})
            raise ValueError(
                f"source.label_files = {self.label_files!r}: no *{found.suffix}.png in {folder!r}, but files of the "
                f"kinds {', '.join(kinds[:5])}{did_you_mean(self.label_files, kinds)}"
            )
        return replace(found, by_stem=own)


def as_frame(file: FileInfo) -> FileInfo:
    """An image under its frame's name, `<city>/<frame>`, to which the label files add theirs."""
    stem = without_suffix(file.relative)
    return replace(file, relative=stem.removesuffix(f"_{IMAGES}") + file.relative.removeprefix(stem))
