"""Data sets in the folder layout of their authors: the root, lists of ids, splits published without labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pipelines import storage
from pipelines.sources.base import LabelCodec, Listing, Source, few, read_lines, require_folder, without_suffix
from pipelines.sources.pairs import LabelFolder, Leftovers, SplitPart, pair_parts
from pipelines.storage import FileInfo
from seg_models.names import did_you_mean

KEY = "source.root"
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")


class PublishedSource(Source):
    """A data set whose label files are index or palette PNGs; the values count, not the colours."""

    @property
    def has_labels(self) -> bool:
        """Labelled, unless only splits without labels are asked for."""
        return True

    @property
    def codec(self) -> LabelCodec:
        """Values of a PNG's pixels."""
        return "index"


def open_root(uri: str, *, name: str, markers: Sequence[str], layout: str, inside: Sequence[str] = ()) -> str:
    """The folder of a data set: the one named, or the one that its archive unpacks to below it.

    Args:
        uri: what the user named.
        name: the data set's, for the error.
        markers: folders of which the data set has at least one.
        layout: what is expected, for the error.
        inside: where below `uri` the data set may lie too.

    Raises:
        ValueError: none of these is the data set; the message has the nearest name that is there.
    """
    root = require_folder(uri, key=KEY)
    for place in (root, *(storage.join(root, below) for below in inside)):
        if any(storage.is_dir(storage.join(place, marker)) for marker in markers):
            return place
    missing, hint = markers[0], did_you_mean(markers[0], storage.list_dirs(root))
    raise ValueError(f"{KEY}: {root!r} is not {name}: no folder {missing!r}{hint}; expected {layout}")


def require_below(root: str, below: str) -> str:
    """A folder of the layout.

    Raises:
        ValueError: it is missing; the message names the nearest one beside what is there of its path.
    """
    place = root
    for name in below.split("/"):
        place = require_folder(storage.join(place, name), key=KEY)
    return place


def read_ids(uri: str) -> list[str]:
    """The image ids of a list: one a line, with or without suffix, or the first of DeepLab's pairs of paths.

    Raises:
        ValueError: the list is missing or names no image.
    """
    names = [line.split()[0].rpartition("/")[2] for line in read_lines(uri, key=KEY)]
    if not names:
        raise ValueError(f"{KEY}: {uri!r} lists no image")
    ids = [without_suffix(name) if name.lower().endswith(IMAGE_SUFFIXES) else name for name in names]
    return list(dict.fromkeys(ids))


def pick(files: Sequence[FileInfo], ids: Sequence[str], *, listed_in: str) -> list[FileInfo]:
    """The image files of these ids.

    Raises:
        ValueError: an id has no image.
    """
    by_stem = {without_suffix(file.relative): file for file in files}
    missing = [name for name in ids if name not in by_stem]
    if missing:
        raise ValueError(
            f"{KEY}: {len(missing)} of {len(ids)} images of {listed_in!r} are not there: "
            f"{few(missing)}{did_you_mean(missing[0], list(by_stem)[:10_000])}"
        )
    return [by_stem[name] for name in ids]


def labels_of(images: Sequence[FileInfo], labels: LabelFolder) -> LabelFolder:
    """The labels of these images alone: a folder that several lists share has no orphans."""
    stems = {without_suffix(image.relative) for image in images}
    own = {stem: files for stem, files in labels.by_stem.items() if stem in stems}
    return replace(labels, by_stem=own or labels.by_stem)  # all where none fits: the error shows what is there


def pair_published(parts: Sequence[SplitPart], *, num_ignored: int = 0) -> Listing:
    """Samples of all parts; images of a part without labels say that there are none to be had.

    Raises:
        ValueError: there is no image, an image is in two splits, or labels were given and no image has one.
    """
    listing = pair_parts(parts, key=KEY, left=Leftovers(num_ignored))
    bare = [part.split for part in parts if part.labels is None]
    if not bare or len(bare) == len(parts):
        return listing
    samples = tuple(
        replace(sample, label_reason=f"no label file (split {sample.split!r} is published without labels)")
        if sample.split in bare
        else sample
        for sample in listing
    )
    num_bare = sum(sample.split in bare for sample in samples)
    note = f"{num_bare} images have no label, because their split is published without: {few(bare)}"
    return replace(listing, samples=samples, notes=(*listing.notes, note))
