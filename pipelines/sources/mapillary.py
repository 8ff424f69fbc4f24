"""Mapillary Vistas 1.2, 65 evaluated classes.

Neuhold et al., "The Mapillary Vistas Dataset for Semantic Understanding of Street Scenes", ICCV 2017. Layout of the
archive: `training`, `validation` and `testing`, each with `images`, the first two with `labels` (palette PNG of class
ids; `instances` and `panoptic` are not read), and `config.json`, which names the classes in the order of their ids. The
archive of version 2.0 holds the same labels as `<split>/v1.2/labels` with `config_v1.2.json`.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field, ValidationError

from pipelines import storage
from pipelines.labels import RGB, LabelSpace
from pipelines.sources.base import Listing, read_text, visible_files
from pipelines.sources.pairs import LabelFolder, SplitPart, open_labels
from pipelines.sources.published import KEY, PublishedSource, open_root, pair_published, require_below

FOLDERS = {"train": "training", "val": "validation", "test": "testing"}
CONFIGS = ("config.json", "config_v1.2.json")


class VistasClass(BaseModel):
    """One entry of the class list, as far as it is read; its position is its id."""

    readable: str
    color: RGB
    evaluate: bool


class VistasConfig(BaseModel):
    """config.json, as far as it is read."""

    labels: list[VistasClass] = Field(min_length=1)


class MapillarySource(PublishedSource):
    """Mapillary Vistas 1.2: the classes that config.json marks for evaluation; the others (Unlabeled) are void."""

    kind: Literal["mapillary"] = "mapillary"
    root: str
    """Folder that holds training, validation and config.json."""
    splits: tuple[Literal["train", "val", "test"], ...] = Field(("train", "val"), min_length=1)
    """train is the folder training, val validation, test testing; test has no labels."""

    @property
    def has_labels(self) -> bool:
        """Whether one of the splits has labels."""
        return any(split != "test" for split in self.splits)

    def label_space(self) -> LabelSpace:
        """The evaluated classes of config.json.

        Raises:
            ValueError: config.json is missing or is not the one of the data set.
        """
        classes = dict(enumerate(read_config(self._open()).labels))
        counted = {number: entry for number, entry in classes.items() if entry.evaluate}
        return LabelSpace(
            names=tuple(entry.readable for entry in counted.values()),
            colors=tuple(entry.color for entry in counted.values()),
            raw_values=tuple(counted),
            void_values=tuple(number for number in classes if number not in counted),
        )

    def list_samples(self) -> Listing:
        """The images of the splits; an id is `<split>/<image>`."""
        root = self._open()
        parts, num_ignored = [], 0
        for split in dict.fromkeys(self.splits):
            files, hidden = visible_files(require_below(root, f"{FOLDERS[split]}/images"))
            labels = None if split == "test" else find_labels(root, FOLDERS[split])
            parts.append(SplitPart(split, files, labels, prefix=f"{split}/"))
            num_ignored += hidden
        return pair_published(parts, num_ignored=num_ignored)

    def _open(self) -> str:
        return open_root(
            self.root,
            name="Mapillary Vistas",
            markers=tuple(FOLDERS.values()),
            layout="training/images with training/labels, and config.json",
        )


def read_config(root: str) -> VistasConfig:
    """The class list of the data set.

    Raises:
        ValueError: it is missing, or holds no classes.
    """
    paths = [storage.join(root, name) for name in CONFIGS]
    path = next((path for path in paths if storage.exists(path)), paths[0])
    try:
        return VistasConfig.model_validate_json(read_text(path, key=KEY))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise ValueError(f"{KEY}: {path!r} is no class list of Mapillary Vistas: {place}: {first['msg']}") from None


def find_labels(root: str, folder: str) -> LabelFolder:
    """The label files of a split, in the layout of either archive."""
    newer = storage.join(root, folder, "v1.2", "labels")
    return open_labels(newer if storage.is_dir(newer) else require_below(root, f"{folder}/labels"), key=KEY)
