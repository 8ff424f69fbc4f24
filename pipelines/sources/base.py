"""What every source gives: a list of samples, read lazily by the workers."""

from __future__ import annotations

import abc
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from pipelines import storage
from pipelines.labels import LabelSpace
from pipelines.storage import FileInfo
from seg_models.names import did_you_mean
from seg_models.spec import Spec

LabelCodec = Literal["auto", "index", "rgb"]

KNOWN_SPLITS = ("train", "training", "trainval", "val", "valid", "validation", "test", "testing", "unlabelled")
"""Folder names that are taken for splits where the user names none."""

JUNK = frozenset({"Thumbs.db", "desktop.ini", "__MACOSX", "@eaDir"})
"""Files and folders that operating systems leave behind; dotfiles are junk too."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One image of a source and what is known about it from the listing alone."""

    id: str
    """Unique in the data set: the path below the source's root, without suffix, printable."""
    split: str
    image_uri: str
    size_bytes: int
    offset: int | None = None
    """First byte of the image inside `image_uri` where that is a tar; None: the whole file."""
    label_uri: str | None = None
    label_bytes: int = 0
    label_reason: str | None = None
    """Why there is no label, where the source has labels and this image has none."""
    class_index: int | None = None


@dataclass(frozen=True)
class Listing:
    """Every sample of a source, in a fixed order, and what was left out of it."""

    samples: tuple[Sample, ...]
    num_ignored: int = 0
    """Hidden and junk files that are not samples."""
    notes: tuple[str, ...] = ()
    """What the user should know before work starts, one line each."""

    def __iter__(self) -> Iterator[Sample]:
        return iter(self.samples)

    def __len__(self) -> int:
        return len(self.samples)


class Source(Spec, abc.ABC):
    """Settings of a source."""

    kind: str

    @property
    @abc.abstractmethod
    def has_labels(self) -> bool:
        """Whether the source has label maps, so that a label set is written."""

    @property
    def codec(self) -> LabelCodec:
        """How label files hold class ids."""
        return "auto"

    @abc.abstractmethod
    def label_space(self) -> LabelSpace | None:
        """The classes; None for images without any.

        Raises:
            ValueError: the class list is missing or faulty.
        """

    @abc.abstractmethod
    def list_samples(self) -> Listing:
        """List the samples without reading them.

        Raises:
            ValueError: a folder is missing, the data set is empty, or its layout is not the one named.
        """


def read_image(sample: Sample) -> bytes:
    """The image file's bytes, by a range read where the image lies inside a tar.

    Raises:
        ValueError: the file is gone.
    """
    if sample.offset is None:
        return storage.read_bytes(sample.image_uri)
    return storage.read_range(sample.image_uri, offset=sample.offset, size_bytes=sample.size_bytes)


def require_folder(uri: str, *, key: str) -> str:
    """The normalised address of a folder that exists.

    Raises:
        ValueError: it does not; the message names the setting and the nearest sibling.
    """
    try:
        folder = storage.normalise(uri)
        storage.require_dir(folder)
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from None
    return folder


def read_text(uri: str, *, key: str | None = None) -> str:
    """The content of a text file.

    Args:
        uri: the file.
        key: the setting that names it, for the message; None where whoever catches the error says it.

    Raises:
        ValueError: the file is missing (the message names the nearest one beside it) or is not UTF-8.
    """
    path = storage.normalise(uri)
    above = storage.parent(path)
    where = path if key is None else f"{key}: {path}"
    if not storage.exists(path):
        beside = storage.list_files(above, recursive=False) if storage.is_dir(above) else []
        hint = did_you_mean(path.rpartition("/")[2], [file.relative for file in beside])
        raise ValueError(f"{where}: no such file{hint}")
    if storage.is_dir(path):
        raise ValueError(f"{where}: is a folder, a text file is needed")
    try:
        return storage.read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: not UTF-8 text ({error.reason} at byte {error.start})") from None


def read_lines(uri: str, *, key: str | None = None) -> list[str]:
    """The non-empty lines of a text file, without surrounding blanks.

    Raises:
        ValueError: the file is missing or is not UTF-8 text.
    """
    return [line.strip() for line in read_text(uri, key=key).splitlines() if line.strip()]


def is_junk(relative: str) -> bool:
    """Whether a path is hidden or left behind by an operating system."""
    return any(part.startswith(".") or part in JUNK for part in relative.split("/"))


def visible_files(uri: str) -> tuple[list[FileInfo], int]:
    """All files below a folder in name order, and how many hidden or junk files were left out."""
    found = storage.list_files(uri)
    kept = [file for file in found if not is_junk(file.relative)]
    return kept, len(found) - len(kept)


def printable(name: str) -> str:
    r"""A file name as text that can be stored and printed: bytes that are not UTF-8 become `\xNN`."""
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def without_suffix(relative: str) -> str:
    """A path without the last suffix of its file name."""
    return os.path.splitext(relative)[0]


def unique_ids(names: Sequence[str]) -> list[str]:
    """An id for each path: without suffix where that is unique, else whole, else numbered."""
    shown = [printable(name) for name in names]
    stems = Counter(without_suffix(name) for name in shown)
    wanted = [stem if stems[stem := without_suffix(name)] == 1 else name for name in shown]
    taken: set[str] = set()
    ids = []
    for name in wanted:
        free, number = name, 1
        while free in taken:
            number += 1
            free = f"{name}~{number}"
        taken.add(free)
        ids.append(free)
    return ids


def root_split(uri: str) -> str:
    """The split of a folder without split folders: its own name where that is a split's, else `train`."""
    name = uri.rstrip("/").rsplit("/", 1)[-1]
    return name if name.lower() in KNOWN_SPLITS else "train"


def few(names: Sequence[str], limit: int = 5) -> str:
    """The first names of a list, and how many more there are."""
    shown = ", ".join(repr(printable(name)) for name in names[:limit])
    return shown + (f" and {len(names) - limit} more" if len(names) > limit else "")
