"""Pair images with label files by the stem of their relative paths, split by split."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from pipelines.sources.base import (
    Listing,
    Sample,
    few,
    printable,
    require_folder,
    unique_ids,
    visible_files,
    without_suffix,
)
from pipelines.storage import FileInfo


@dataclass(frozen=True)
class LabelFolder:
    """Label files by the stem of their relative path."""

    uri: str
    by_stem: dict[str, list[FileInfo]]
    suffix: str = ""
    """What a label's stem has after its image's."""
    num_ignored: int = 0

    def find(self, image: FileInfo) -> tuple[FileInfo | None, str | None]:
        """The label of an image, or None and the reason."""
        stem = without_suffix(image.relative) + self.suffix
        found = self.by_stem.get(stem, [])
        if len(found) == 1:
            return found[0], None
        if not found:
            return None, f"no label file (expected {printable(stem)}.*)"
        names = few([file.relative for file in found])
        return None, f"several label files ({names}; keep one)"

    def orphans(self, images: Iterable[FileInfo]) -> list[str]:
        """Label files that belong to none of the images."""
        used = {without_suffix(image.relative) + self.suffix for image in images}
        return [file.relative for stem, files in self.by_stem.items() if stem not in used for file in files]


@dataclass(frozen=True)
class SplitPart:
    """The images of one split, and where their labels are."""

    split: str
    images: Sequence[FileInfo]
    labels: LabelFolder | None = None
    prefix: str = ""
    """Put before an image's relative path to make its id."""


@dataclass(frozen=True)
class Leftovers:
    """What was seen beside the samples."""

    num_ignored: int = 0
    notes: tuple[str, ...] = field(default=())


def open_labels(uri: str, *, key: str, suffix: str = "") -> LabelFolder:
    """List a folder of label files.

    Raises:
        ValueError: the folder is missing or holds no file.
    """
    folder = require_folder(uri, key=key)
    files, num_ignored = visible_files(folder)
    if not files:
        raise ValueError(f"{key}: folder {folder!r} holds no file")
    by_stem: dict[str, list[FileInfo]] = defaultdict(list)
    for file in files:
        by_stem[without_suffix(file.relative)].append(file)
    return LabelFolder(uri=folder, by_stem=dict(by_stem), suffix=suffix, num_ignored=num_ignored)


def pair_parts(parts: Sequence[SplitPart], *, key: str, left: Leftovers) -> Listing:
    """Samples of all parts, each with its label where it has one.

    Raises:
        ValueError: there is no image, an image is in two splits, or labels were given and no image has one.
    """
    check_splits(parts, key=key)
    names = [part.prefix + image.relative for part in parts for image in part.images]
    ids = iter(unique_ids(names))
    samples = tuple(pair(part, image, next(ids)) for part in parts for image in part.images)
    folders = {part.labels.uri: part.labels for part in parts if part.labels is not None}
    if folders and all(sample.label_uri is None for sample in samples):
        raise ValueError(no_pairs(parts, key=key))
    orphans = [name for folder in folders.values() for name in folder.orphans(images_of(parts, folder))]
    return Listing(
        samples=samples,
        num_ignored=left.num_ignored + sum(folder.num_ignored for folder in folders.values()),
        notes=(*left.notes, *lacking(samples), *unused(orphans)),
    )


def pair(part: SplitPart, image: FileInfo, sample_id: str) -> Sample:
    """One image and its label as a sample."""
    label, reason = part.labels.find(image) if part.labels is not None else (None, None)
    return Sample(
        id=sample_id,
        split=part.split,
        image_uri=image.uri,
        size_bytes=image.size_bytes,
        label_uri=label.uri if label is not None else None,
        label_bytes=label.size_bytes if label is not None else 0,
        label_reason=reason,
    )


def check_splits(parts: Sequence[SplitPart], *, key: str) -> None:
    """Refuse an empty data set, and an image that two splits claim."""
    owner: dict[str, str] = {}
    for part in parts:
        for image in part.images:
            other = owner.setdefault(image.uri, part.split)
            if other != part.split:
                raise ValueError(
                    f"{key}: image {printable(image.relative)!r} is in two splits, {other!r} and {part.split!r}"
                )
    if not owner:
        raise ValueError(f"{key}: the data set is empty: no file in {', '.join(repr(part.split) for part in parts)}")


def images_of(parts: Sequence[SplitPart], folder: LabelFolder) -> Iterable[FileInfo]:
    """The images whose labels lie in one folder."""
    own = [part for part in parts if part.labels is not None and part.labels.uri == folder.uri]
    return (image for part in own for image in part.images)


def no_pairs(parts: Sequence[SplitPart], *, key: str) -> str:
    """Why no image found a label: what was looked for, what is there, and the suffix that would fit."""
    part = next(part for part in parts if part.labels is not None and part.images)
    assert part.labels is not None
    stem = without_suffix(part.images[0].relative)
    label_stems = sorted(part.labels.by_stem)
    text = (
        f"{key}: no image has a label: for image {printable(part.images[0].relative)!r} expected "
        f"{printable(stem + part.labels.suffix)!r}.* in {part.labels.uri!r}, found {few(label_stems, 2)}"
    )
    fitting = [other.removeprefix(stem) for other in label_stems if other.startswith(stem)]
    return text + (f"; set label_suffix = {fitting[0]!r}" if fitting and not part.labels.suffix else "")


def lacking(samples: Sequence[Sample]) -> list[str]:
    """A note that names the images without a usable label file."""
    names = [sample.id for sample in samples if sample.label_reason is not None]
    return [f"{len(names)} of {len(samples)} images have no label: {few(names)}"] if names else []


def unused(orphans: Sequence[str]) -> list[str]:
    """A note that names the label files without an image."""
    return [f"{len(orphans)} label files belong to no image: {few(orphans)}"] if orphans else []
