"""A data set of one's own: a folder of images, a folder of labels, a class list. No code."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import ValidationError, model_validator

from pipelines import storage
from pipelines.labels import LabelSpace
from pipelines.sources.base import (
    KNOWN_SPLITS,
    LabelCodec,
    Listing,
    Source,
    few,
    read_lines,
    require_folder,
    root_split,
    visible_files,
    without_suffix,
)
from pipelines.sources.pairs import LabelFolder, Leftovers, SplitPart, open_labels, pair_parts
from pipelines.storage import FileInfo
from seg_models.names import did_you_mean

PLACEHOLDER = "{split}"


class FolderSource(Source):
    """Two folders and a class list; images and labels pair by relative path without suffix."""

    kind: Literal["folder"] = "folder"
    images: str
    """Folder of images, on disk or `s3://`; may hold `{split}`, as in `data/{split}/images`."""
    labels: str | None = None
    """Folder of label maps, laid out like `images`; without it no label set is written."""
    classes: str | tuple[str, ...] | None = None
    """Class names in the order of their indices, or the path of a text file with one name a line."""
    colors: tuple[tuple[int, int, int], ...] | None = None
    """One RGB colour a class: needed where labels are colour images."""
    raw_values: tuple[int, ...] | None = None
    """The value each class has in the label files; default 0, 1, 2 …"""
    void_values: tuple[int, ...] | None = None
    """Values of the label files that mean: not labelled; default: 255, from 256 classes on 65535."""
    mirror_pairs: tuple[tuple[str, str], ...] | None = None
    """Pairs of classes swapped in a mirrored image; default: whose names differ in the words left and right."""
    label_suffix: str = ""
    """What a label's name has after its image's: `_mask` for `a.jpg` and `a_mask.png`."""
    label_codec: LabelCodec = "auto"
    """index: grey or palette values; rgb: colours; auto: rgb for colour files where `colors` is given."""
    splits: str | dict[str, str | float] = "auto"
    """auto: sub-folders named train, val, test …; another word: the split of all images; a table: split ->
    sub-folder, or a text file that lists images; or split -> share, such as { test = 0.2 }: images are drawn by the
    hash of their name, and the rest is train."""

    @model_validator(mode="after")
    def _no_setting_without_effect(self) -> FolderSource:
        if self.labels is None:
            for name in ("label_suffix", "label_codec", "raw_values", "void_values"):
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(f"`{name}` takes no effect without `labels`")
        if self.label_codec == "rgb" and self.colors is None:
            raise ValueError("label_codec = 'rgb' needs `colors`, one RGB colour a class")
        if self.colors is not None and self.classes is None:
            raise ValueError("`colors` needs `classes`")
        if self.mirror_pairs and self.classes is None:
            raise ValueError("`mirror_pairs` needs `classes`")
        paired = list(itertools.chain.from_iterable(self.mirror_pairs or ()))
        if twice := [name for name in paired if paired.count(name) > 1]:
            raise ValueError(f"mirror_pairs: {twice[0]!r} is named twice; a class has one counterpart")
        if self.labels is not None and (PLACEHOLDER in self.images) != (PLACEHOLDER in self.labels):
            raise ValueError("`{split}` must be in both `images` and `labels`, or in neither")
        self._check_shares()
        return self

    def _check_shares(self) -> None:
        shares = self._shares
        if not shares:
            return
        wrong = {split: share for split, share in shares.items() if not 0 < share <= 1}
        if wrong:
            split, share = next(iter(wrong.items()))
            raise ValueError(f"splits.{split} = {share:g} is no share of the images: it must be above 0 and at most 1")
        if (total := math.fsum(shares.values())) > 1 + 1e-9:
            raise ValueError(f"the shares in `splits` sum up to {total:g}, which is over 1")
        if self._places:
            raise ValueError("`splits` must be all shares, or all sub-folders and list files")
        if PLACEHOLDER in self.images:
            raise ValueError("`splits` cannot be shares where `images` holds `{split}`")

    @property
    def _shares(self) -> dict[str, float]:
        """Split -> share of the images, if the splits are given in that way."""
        given = self.splits if isinstance(self.splits, dict) else {}
        return {split: value for split, value in given.items() if isinstance(value, float)}

    @property
    def _places(self) -> dict[str, str]:
        """Split -> sub-folder or list file, if the splits are given in that way."""
        given = self.splits if isinstance(self.splits, dict) else {}
        return {split: value for split, value in given.items() if isinstance(value, str)}

    @property
    def has_labels(self) -> bool:
        """Whether a label folder is given."""
        return self.labels is not None

    @property
    def codec(self) -> LabelCodec:
        """How label files hold class ids."""
        if self.label_codec == "auto" and self.colors is None:
            return "index"
        return self.label_codec

    def label_space(self) -> LabelSpace | None:
        """The classes of the list; None where there is neither list nor labels."""
        if self.classes is None:
            if self.labels is not None:
                raise ValueError(f"source.classes: the class list is missing{self._class_file_hint()}")
            return None
        names = self.classes
        if isinstance(names, tuple) and len(names) == 1 and names[0].endswith(".txt"):
            names = names[0]  # a path given on the command line
        if isinstance(names, str):
            if names.endswith(".json"):  # its lines would be taken for names
                raise ValueError(
                    f"source.classes: found {names!r}; allowed: names, or a text file with one name a line"
                )
            names = tuple(read_lines(names, key="source.classes"))
        twice = [name for name in names if names.count(name) > 1]
        if twice or not names:
            raise ValueError("source.classes: " + (f"{twice[0]!r} is listed twice" if twice else "the list is empty"))
        pairs = self.mirror_pairs
        try:
            return LabelSpace(
                names=names,
                colors=self.colors or (),
                raw_values=self.raw_values or (),
                void_values=self.void_values,
                mirror_pairs=pairs and tuple((_place(left, names), _place(right, names)) for left, right in pairs),
            )
        except ValidationError as error:
            told = (detail["msg"].removeprefix("Value error, ") for detail in error.errors())
            raise ValueError("\n".join(f"source: {text}" for text in told)) from error

    def list_samples(self) -> Listing:
        """Pair the images of every split with their labels."""
        if PLACEHOLDER in self.images:
            return self._list_split_folders()
        root = require_folder(self.images, key="source.images")
        files, num_ignored = visible_files(root)
        files = [file for file in files if file.uri not in self._own_files()]
        if not files:
            raise ValueError(
                f"source.images: the data set is empty: no file in {root!r} ({num_ignored} hidden or junk files)"
            )
        labels = self._open_labels(self.labels)
        by_split, notes = self._deal(files, root)
        parts = [SplitPart(split=split, images=images, labels=labels) for split, images in by_split.items()]
        return pair_parts(parts, key="source.images", left=Leftovers(num_ignored, tuple(notes)))

    def _open_labels(self, uri: str | None) -> LabelFolder | None:
        return None if uri is None else open_labels(uri, key="source.labels", suffix=self.label_suffix)

    def _own_files(self) -> set[str]:
        """Files that these settings name, which are no images even where they lie among them."""
        named = [self.classes] if isinstance(self.classes, str) else list(self.classes or ())[:1]
        named += [value for value in self._places.values() if value.endswith(".txt")]
        return {storage.normalise(uri) for uri in named}

    def _class_file_hint(self) -> str:
        """Where a class list seems to lie."""
        parent = storage.normalise(self.images.partition(PLACEHOLDER)[0]).rstrip("/").rpartition("/")[0]
        near = storage.join(parent, "classes.txt")
        if storage.exists(near):
            return f"; found {near!r}: add classes = {near!r}"
        return ': add classes = ["first", "second", …] or the path of a text file with one name a line'

    def _list_split_folders(self) -> Listing:
        """Splits that each have their own folders of images and labels."""
        parts, num_ignored = [], 0
        for split, name in self._split_names().items():
            root = require_folder(self.images.replace(PLACEHOLDER, name), key=f"source.images ({split})")
            files, hidden = visible_files(root)
            labels = self._open_labels(self.labels.replace(PLACEHOLDER, name) if self.labels else None)
            parts.append(SplitPart(split=split, images=files, labels=labels, prefix=f"{split}/"))
            num_ignored += hidden
        return pair_parts(parts, key="source.images", left=Leftovers(num_ignored))

    def _split_names(self) -> dict[str, str]:
        """Split -> what `{split}` stands for."""
        if self._places:
            return self._places
        if isinstance(self.splits, str) and self.splits != "auto":
            return {self.splits: self.splits}
        require_folder(self.images.partition(PLACEHOLDER)[0], key="source.images")
        folders = {name: storage.normalise(self.images.replace(PLACEHOLDER, name)) for name in KNOWN_SPLITS}
        names = [name for name, folder in folders.items() if storage.is_dir(folder)]
        if not names:
            raise ValueError(f"source.images: no split folder fits {self.images!r}; name them in source.splits")
        return {name: name for name in names}

    def _deal(self, files: Sequence[FileInfo], root: str) -> tuple[dict[str, list[FileInfo]], list[str]]:
        """Files by split, and notes about what is in none."""
        if self._shares:
            return deal_by_share(files, shares=self._shares), []
        if self._places:
            return deal_by_table(files, splits=self._places)
        if isinstance(self.splits, str) and self.splits != "auto":
            return {self.splits: list(files)}, []
        return deal_by_name(files, root=root)


def deal_by_name(files: Sequence[FileInfo], *, root: str) -> tuple[dict[str, list[FileInfo]], list[str]]:
    """Files by the first folders that are named like splits, and a note about files beside these folders.

    Without such folders all files are one split.

    Raises:
        ValueError: folders of other names hold files too, so that nobody knows which split those belong to.
    """
    by_folder: dict[str, list[FileInfo]] = defaultdict(list)
    for file in files:
        first, slash, _ = file.relative.partition("/")
        by_folder[first if slash else ""].append(file)
    loose = by_folder.pop("", [])
    splits = [name for name in by_folder if name.lower() in KNOWN_SPLITS]
    if not splits:
        return {root_split(root): list(files)}, []
    others = [name for name in by_folder if name not in splits]
    if others:
        raise ValueError(
            f"source.splits = 'auto': {root!r} holds the split folders {few(splits)} beside {few(others)}; name "
            f"the folder of each split (splits.{splits[0]} = {splits[0]!r} …) or one split of all (splits = 'train')"
        )
    note = f"{len(loose)} files lie beside the split folders {few(splits)} and are left out: "
    return dict(by_folder), [note + few([file.relative for file in loose])] if loose else []


def deal_by_table(
    files: Sequence[FileInfo], *, splits: Mapping[str, str]
) -> tuple[dict[str, list[FileInfo]], list[str]]:
    """Files of each split of a table, and a note about the files in none.

    Raises:
        ValueError: a sub-folder is not there, or a list names an image that is not there.
    """
    dealt = {
        split: from_list(files, split=split, path=value)
        if value.endswith(".txt")
        else from_folder(files, split=split, name=value)
        for split, value in splits.items()
    }
    used = {file.uri for part in dealt.values() for file in part}
    left = [file.relative for file in files if file.uri not in used]
    return dealt, [f"{len(left)} files are in no split of source.splits: {few(left)}"] if left else []


def deal_by_share(files: Sequence[FileInfo], *, shares: Mapping[str, float]) -> dict[str, list[FileInfo]]:
    """Files of each split by the order of their names' hashes; `train` gets what is left over.

    Raises:
        ValueError: there are too few images for a share.
    """
    drawn = sorted(files, key=_name_hash)
    dealt: dict[str, list[FileInfo]] = {}
    ends = [0, *(round(len(drawn) * share) for share in itertools.accumulate(shares.values()))]
    for (split, share), (start, end) in zip(shares.items(), itertools.pairwise(ends), strict=True):
        if start == end:
            raise ValueError(f"source.splits.{split}: a share of {share:g} of {len(drawn)} images is no image")
        dealt[split] = drawn[start:end]
    if drawn[ends[-1] :]:
        dealt.setdefault("train", []).extend(drawn[ends[-1] :])
    return dealt


def _name_hash(file: FileInfo) -> bytes:
    return hashlib.sha256(without_suffix(file.relative).encode(errors="surrogateescape")).digest()


def from_folder(files: Sequence[FileInfo], *, split: str, name: str) -> list[FileInfo]:
    """The files below one sub-folder."""
    folder = name.strip("/") + "/"
    found = [file for file in files if file.relative.startswith(folder)]
    if not found:
        known = {file.relative.rpartition("/")[0] for file in files} - {""}
        raise ValueError(f"source.splits.{split}: no file in sub-folder {name!r}{did_you_mean(name, known)}")
    return found


def from_list(files: Sequence[FileInfo], *, split: str, path: str) -> list[FileInfo]:
    """The files that a text file names, one a line, with or without suffix."""
    by_name = {without_suffix(file.relative): file for file in files} | {file.relative: file for file in files}
    names = list(dict.fromkeys(read_lines(path, key=f"source.splits.{split}")))
    missing = [name for name in names if name not in by_name]
    if missing:
        raise ValueError(
            f"source.splits.{split}: {len(missing)} of {len(names)} images of {path!r} are not in source.images: "
            f"{few(missing)}{did_you_mean(missing[0], list(by_name)[:10_000])}"
        )
    return [by_name[name] for name in names]


def _place(name: str, names: Sequence[str]) -> int:
    """The index of a class.

    Raises:
        ValueError: no class has that name; the message holds the nearest one.
    """
    if name not in names:
        raise ValueError(f"source.mirror_pairs: found {name!r}{did_you_mean(name, names)}; allowed: {', '.join(names)}")
    return list(names).index(name)
