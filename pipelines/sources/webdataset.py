"""WebDataset tars: `key.jpg` beside `key.cls`. The driver reads headers only; workers read members by range."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from pipelines import storage
from pipelines.sources.base import KNOWN_SPLITS, Listing, Sample, few, is_junk, printable, unique_ids
from pipelines.sources.synsets import ClassList
from pipelines.storage import FileInfo

IMAGE_SUFFIXES = frozenset({"jpg", "jpeg", "png", "webp", "bmp", "ppm", "tif", "tiff", "gif", "img"})
TAR_THREADS = 16
"""Tars whose headers are read at once: in an object store every header is a round trip."""


@dataclass(frozen=True)
class Member:
    """An image inside a tar."""

    name: str
    offset: int
    size_bytes: int
    class_index: int | None


@dataclass(frozen=True)
class TarIndex:
    """The images of one tar, and the members that are none."""

    file: FileInfo
    members: tuple[Member, ...]
    num_ignored: int = 0
    lonely: tuple[str, ...] = field(default=())
    """Keys with a class and no image."""


def list_tars(files: Sequence[FileInfo], *, classes: ClassList, num_ignored: int, root_split: str) -> Listing:
    """Samples of all tars of a folder.

    Raises:
        ValueError: a tar is compressed, cut off or not a tar, or a class is unknown, or there is no image.
    """
    tars = [file for file in files if file.relative.endswith((".tar", ".tar.gz", ".tgz"))]
    if not tars:
        raise ValueError("source.root: no .tar file for the layout 'webdataset'")
    with ThreadPoolExecutor(TAR_THREADS) as pool:
        indices = list(pool.map(lambda file: index_tar(file, classes=classes), tars))
    found = [(index.file, member) for index in indices for member in index.members]
    if not found:
        raise ValueError(f"source.root: the data set is empty: no image in {len(tars)} tars")
    splits = {file.uri: tar_split(file.relative, default=root_split) for file in tars}
    ids = unique_ids([f"{splits[file.uri]}/{member.name}" for file, member in found])
    samples = tuple(
        Sample(
            id=sample_id,
            split=splits[file.uri],
            image_uri=file.uri,
            size_bytes=member.size_bytes,
            offset=member.offset,
            class_index=member.class_index,
        )
        for sample_id, (file, member) in zip(ids, found, strict=True)
    )
    ignored = num_ignored + len(files) - len(tars) + sum(index.num_ignored for index in indices)
    return Listing(samples=samples, num_ignored=ignored, notes=tuple(tar_notes(indices)))


def tar_notes(indices: Sequence[TarIndex]) -> list[str]:
    """What is incomplete in the tars."""
    classless = [member.name for index in indices for member in index.members if member.class_index is None]
    lonely = [f"{index.file.relative}: {key}" for index in indices for key in index.lonely]
    notes = [f"{len(classless)} images have no .cls member and no class: {few(classless)}"] if classless else []
    return notes + ([f"{len(lonely)} keys have a class and no image: {few(lonely)}"] if lonely else [])


def tar_split(relative: str, *, default: str) -> str:
    """The split a tar belongs to: a word of its path that is a split's name, else the default."""
    words = [word for word in re.split(r"[/_.\-]", relative) if word.lower() in KNOWN_SPLITS]
    return words[0] if words else default


def index_tar(file: FileInfo, *, classes: ClassList) -> TarIndex:
    """Where the images of a tar lie, and their classes; only headers and `.cls` members are read.

    Raises:
        ValueError: the tar cannot be read by range, is damaged, or a class is unknown.
    """
    name = printable(file.relative)
    if not file.relative.endswith(".tar"):
        raise ValueError(f"source.root: {name!r} is compressed and cannot be read by range; unpack it to .tar")
    images: dict[str, tarfile.TarInfo] = {}
    found: dict[str, int] = {}
    num_ignored = 0
    try:
        with storage.open_input(file.uri) as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
            for member in tar:
                key, suffix = split_key(member.name)
                if not member.isfile() or is_junk(member.name.removeprefix("./")):
                    num_ignored += member.isfile()
                elif suffix in IMAGE_SUFFIXES:
                    images[member.name] = member
                elif suffix == "cls":
                    found[key] = parse_class(tar, member, classes=classes, name=name)
                else:
                    num_ignored += 1
    except tarfile.TarError as error:
        raise ValueError(f"source.root: {name!r} is damaged or no tar ({error})") from error
    members = tuple(
        Member(path.removeprefix("./"), info.offset_data, info.size, found.get(split_key(path)[0]))
        for path, info in images.items()
    )
    with_image = {split_key(path)[0] for path in images}
    return TarIndex(file, members, num_ignored, lonely=tuple(key for key in found if key not in with_image))


def split_key(name: str) -> tuple[str, str]:
    """Key and suffix of a member: WebDataset cuts the file name at its first dot."""
    folder, slash, base = name.rpartition("/")
    key, _, suffix = base.partition(".")
    return folder + slash + key, suffix.lower()


def parse_class(tar: tarfile.TarFile, member: tarfile.TarInfo, *, classes: ClassList, name: str) -> int:
    """The class in a `.cls` member.

    Raises:
        ValueError: it holds no class index and no synset.
    """
    stream = tar.extractfile(member)
    assert stream is not None  # the member is a file
    try:
        return classes.parse(stream.read().decode("utf-8", "replace"))
    except ValueError as error:
        raise ValueError(f"source.root: {name!r}, member {printable(member.name)!r}: {error}") from None
