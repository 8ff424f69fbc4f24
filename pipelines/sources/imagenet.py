"""ImageNet and other sets of images with one class each: class folders, a flat folder with a list, WebDataset tars."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Literal

from pipelines import storage
from pipelines.labels import LabelSpace, with_background
from pipelines.sources.base import (
    KNOWN_SPLITS,
    Listing,
    Sample,
    Source,
    few,
    printable,
    read_text,
    require_folder,
    root_split,
    unique_ids,
    visible_files,
    without_suffix,
)
from pipelines.sources.synsets import ClassList, load_classes
from pipelines.sources.webdataset import list_tars
from pipelines.storage import FileInfo
from seg_models.names import did_you_mean

INDEX_NAMES = ("index.tsv", "index.csv")
FILE_COLUMNS = ("file", "filename", "file_name", "image", "path", "id")
CLASS_COLUMNS = ("class_index", "wnid", "synset", "class", "label")
SUFFIXED_DELIMITERS = {".tsv": "\t", ".csv": ","}


class ImageNetSource(Source):
    """Images with one class each; the label space is the classes and one background class after them."""

    kind: Literal["imagenet"] = "imagenet"
    root: str
    """Folder of the class folders (or of splits that hold them), of the images, or of the tars."""
    layout: Literal["auto", "class_folders", "flat", "webdataset"] = "auto"
    """auto: webdataset where `root` holds tars, flat where there is a class list, else class folders."""
    index: str | None = None
    """Class list of the flat layout, .tsv or .csv with a header: a file column and `class_index` or `wnid`; default
    index.tsv or index.csv in `root`."""
    synsets: str | None = None
    """Text file with one synset (class folder name) a line, in class order; default: ImageNet's 1000."""

    @property
    def has_labels(self) -> bool:
        """Classes only, no label maps."""
        return False

    def label_space(self) -> LabelSpace:
        """The classes, then background."""
        return with_background(load_classes(self.synsets).names)

    def list_samples(self) -> Listing:
        """The images and their classes."""
        root = require_folder(self.root, key="source.root")
        classes = load_classes(self.synsets)
        files, num_ignored = visible_files(root)
        if not files:
            raise ValueError(f"source.root: the data set is empty: no file in {root!r} ({num_ignored} hidden files)")
        layout = self._layout(files, root)
        if layout == "webdataset":
            return list_tars(files, classes=classes, num_ignored=num_ignored, root_split=root_split(root))
        if layout == "class_folders":
            samples, notes = list_class_folders(files, classes=classes, split=root_split(root))
        else:
            samples, notes = list_flat(files, classes=classes, index=self._index(root), split=root_split(root))
        return Listing(samples=samples, num_ignored=num_ignored, notes=tuple(notes))

    def _layout(self, files: Sequence[FileInfo], root: str) -> str:
        """The layout named, or the one seen.

        Raises:
            ValueError: `index` is given where no class list is used.
        """
        layout: str = self.layout
        if layout == "auto":
            has_tar = any(file.relative.endswith((".tar", ".tar.gz", ".tgz")) for file in files)
            has_index = self.index is not None or any(file.relative in INDEX_NAMES for file in files)
            layout = "webdataset" if has_tar else "flat" if has_index else "class_folders"
        if self.index is not None and layout != "flat":
            raise ValueError(f"source.index: takes no effect in the layout {layout!r} of {root!r}")
        return layout

    def _index(self, root: str) -> str:
        if self.index is not None:
            return storage.normalise(self.index)
        found = [name for name in INDEX_NAMES if storage.exists(storage.join(root, name))]
        if not found:
            raise ValueError(f"source.index: the class list is missing: no {' or '.join(INDEX_NAMES)} in {root!r}")
        return storage.join(root, found[0])


def list_class_folders(
    files: Sequence[FileInfo], *, classes: ClassList, split: str
) -> tuple[tuple[Sample, ...], list[str]]:
    """Samples of `[<split>/]<synset>/<image>`, and a note about files outside class folders.

    Raises:
        ValueError: there is no class folder, or a folder is no known synset.
    """
    depth = class_depth(files, classes)
    inside = [file for file in files if file.relative.count("/") > depth]
    outside = [file.relative for file in files if file.relative.count("/") <= depth]
    folders = [file.relative.split("/")[depth] for file in inside]
    for folder, file in zip(folders, inside, strict=True):
        if folder not in classes.index:
            place = printable("/".join(file.relative.split("/")[: depth + 1]))
            raise ValueError(
                f"source.root: class folder {place!r} is no known synset{classes.nearest(folder)}; "
                "give your own list with source.synsets"
            )
    ids = unique_ids([file.relative for file in inside])
    samples = tuple(
        Sample(
            id=sample_id,
            split=file.relative.split("/")[0] if depth else split,
            image_uri=file.uri,
            size_bytes=file.size_bytes,
            class_index=classes.index[folder],
        )
        for sample_id, file, folder in zip(ids, inside, folders, strict=True)
    )
    return samples, [f"{len(outside)} files are in no class folder: {few(outside)}"] if outside else []


def class_depth(files: Sequence[FileInfo], classes: ClassList) -> int:
    """0 where the first folders are the classes, 1 where they are splits that hold them.

    Raises:
        ValueError: there are no folders at all.
    """
    paths = [file.relative.split("/")[:-1] for file in files if "/" in file.relative]
    if not paths:
        raise ValueError(
            "source.root: no class folders; expected <synset>/<image>, <split>/<synset>/<image>, "
            "tars, or a flat folder with source.index"
        )
    if any(path[0] in classes.index for path in paths):
        return 0
    holds_classes = any(len(path) > 1 and path[1] in classes.index for path in paths)
    return 1 if holds_classes or all(path[0].lower() in KNOWN_SPLITS for path in paths) else 0


def list_flat(
    files: Sequence[FileInfo], *, classes: ClassList, index: str, split: str
) -> tuple[tuple[Sample, ...], list[str]]:
    """Samples of a folder whose classes a list tells, and notes about what one has and the other not.

    Raises:
        ValueError: the list is faulty, or names no image of the folder.
    """
    listed = read_index(index, classes=classes)
    images = [file for file in files if file.uri != index]
    found = {file.uri: key for file in images if (key := listed_name(file.relative, listed)) is not None}
    if not found:
        names = few(list(listed), 2)
        raise ValueError(f"source.index: {index!r} names no image of source.root (it lists {names})")
    ids = unique_ids([file.relative for file in images])
    samples = tuple(
        Sample(
            id=sample_id,
            split=split,
            image_uri=file.uri,
            size_bytes=file.size_bytes,
            class_index=listed[found[file.uri]] if file.uri in found else None,
        )
        for sample_id, file in zip(ids, images, strict=True)
    )
    unlisted = [file.relative for file in images if file.uri not in found]
    missing = sorted(set(listed) - set(found.values()))
    notes = [f"{len(unlisted)} images are not in the class list and have no class: {few(unlisted)}"] if unlisted else []
    return samples, notes + ([f"{len(missing)} listed images are not there: {few(missing)}"] if missing else [])


def listed_name(relative: str, listed: Mapping[str, int]) -> str | None:
    """The name under which a file is listed: its path, or its path without suffix."""
    return next((name for name in (relative, without_suffix(relative)) if name in listed), None)


def read_index(uri: str, *, classes: ClassList) -> dict[str, int]:
    """Class index by file name (or by id) of a .tsv or .csv with a header.

    Raises:
        ValueError: a column is missing, a class is unknown, or two columns of a line disagree.
    """
    delimiter = SUFFIXED_DELIMITERS.get(uri[-4:].lower())
    if delimiter is None:
        raise ValueError(f"source.index: {uri!r} must be a .tsv or .csv file")
    reader = csv.DictReader(io.StringIO(read_text(uri, key="source.index")), delimiter=delimiter)
    columns = list(reader.fieldnames or ())
    file_column = next((name for name in FILE_COLUMNS if name in columns), None)
    class_columns = [name for name in CLASS_COLUMNS if name in columns]
    if file_column is None or not class_columns:
        wanted = FILE_COLUMNS if file_column is None else CLASS_COLUMNS
        hint = did_you_mean(wanted[0], columns)
        raise ValueError(f"source.index: {uri!r} has columns {columns}; one of {', '.join(wanted)} is missing{hint}")
    table: dict[str, int] = {}
    for row in reader:
        table[row[file_column]] = row_class(row, class_columns, classes=classes, place=f"{uri}:{reader.line_num}")
    return table


def row_class(row: Mapping[str, str | None], columns: Sequence[str], *, classes: ClassList, place: str) -> int:
    """The class of one line of a class list."""
    values = {column: row[column] or "" for column in columns}
    try:
        found = {column: classes.parse(value) for column, value in values.items()}
    except ValueError as error:
        raise ValueError(f"source.index: {place}: {error}") from None
    if len(set(found.values())) > 1:
        raise ValueError(f"source.index: {place}: {', '.join(f'{k} {v!r}' for k, v in values.items())} disagree")
    return next(iter(found.values()))
