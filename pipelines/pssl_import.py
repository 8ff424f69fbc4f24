"""Import of released pseudo-labels: one .npz file per image (specs: PSSL section 5).

Layout: `train/<wnid>/<image>.JPEG_eiseg.npz` with an integer mask `arr_0` of the image's size: 1 is the object,
-1 is ignored, everything else is background. `imagenet_lsvrc_2015_synsets.txt` (one wnid per line, the line number is
the class) is read where it exists, and an image whose class differs is rejected.
"""

from __future__ import annotations

import dataclasses
import io
import posixpath
import zipfile
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipelines import storage
from pipelines.label_run import ImageShard, OnProgress, shards_in_scope
from pipelines.labels import LabelSpace, encode_label
from pipelines.pssl import PsslResult, PsslWork, run_pssl
from pipelines.pssl_plan import pssl_label_space
from pipelines.pssl_worker import label_table, pssl_counts
from pipelines.schema import Receipt
from pipelines.shard_counts import RowError, ShardCounts
from pipelines.shards import ComputeSpec
from pipelines.tables import Dataset, read_shard_file, write_shard

SYNSETS = "imagenet_lsvrc_2015_synsets.txt"
MAX_ITEM_BYTES = 8  # int64, the widest mask

MinusOne = Literal["void", "background"]


def import_npz(
    dataset: str,
    *,
    folder: str,
    labels: str,
    split: str | None = None,
    minus_one: MinusOne = "void",
    compute: ComputeSpec | None = None,
    max_rejected: float = 0.5,
    on_progress: OnProgress | None = None,
) -> PsslResult:
    """Write released pseudo-labels as a label set beside their images; Ray must be running.

    Args:
        dataset: an ingested ImageNet dataset.
        folder: what holds `train/<wnid>/…`, local or in an object store.
        minus_one: -1 is void; `background` is what the released loader makes of it.

    Raises:
        ValueError: no such folder, too many images without a label, or the label set has another plan.
        ShardError: a worker failed.
    """
    work = plan_import(dataset, folder=folder, labels=labels, split=split, minus_one=minus_one)
    return run_pssl(work, compute=compute or ComputeSpec(), max_rejected=max_rejected, on_progress=on_progress)


def plan_import(
    dataset: str, *, folder: str, labels: str, split: str | None = None, minus_one: MinusOne = "void"
) -> PsslWork:
    """Check what can be checked before work starts; nothing is written.

    Raises:
        ValueError: no such folder or split, or the label set has another plan.
    """
    folder = storage.normalise(folder)
    storage.require_dir(folder)
    if not storage.is_dir(storage.join(folder, "train")):
        raise ValueError(f"{folder}: no folder 'train' inside; the layout is train/<wnid>/<image>.JPEG_eiseg.npz")
    opened = Dataset.open(dataset)
    images = opened.images
    space = pssl_label_space(opened.info.label_space)
    work = PsslWork(
        verb="pssl",
        dataset=opened,
        labels=labels,
        split=split,
        space=space,
        plan={"kind": "pssl-import", "source": folder, "minus_one": minus_one, "images": images.fingerprint()},
        shards=shards_in_scope(opened, images, split),
        worker=NpzWorker,
        worker_args={
            "images_uri": images.uri,
            "folder": folder,
            "synsets": read_synsets(folder),
            "minus_one": minus_one,
            "space": space,
        },
    )
    work.committed()
    return work


def read_synsets(folder: str) -> dict[str, int]:
    """Class index of every wnid, from the synset file of the release; empty where there is none."""
    place = storage.join(folder, SYNSETS)
    if not storage.exists(place):
        return {}
    lines = storage.read_bytes(place).decode().splitlines()
    return {line.split()[0]: index for index, line in enumerate(lines) if line.strip()}


class NpzWorker:
    """Turns the .npz files of the images of a shard into a shard of labels."""

    def __init__(
        self,
        *,
        images_uri: str,
        labels_uri: str,
        folder: str,
        synsets: dict[str, int],
        minus_one: MinusOne,
        space: LabelSpace,
    ) -> None:
        self._images_uri, self._labels_uri = images_uri, labels_uri
        self._folder, self._synsets, self._minus_one, self._space = folder, synsets, minus_one, space

    def __call__(self, shard: ImageShard) -> Receipt:
        """Import a shard and return its receipt."""
        counts = pssl_counts()
        columns = ("id", "height", "width", "class", "reason")
        rows = read_shard_file(self._images_uri, shard.path, columns=columns).to_pylist()
        labels = [self._import_row(row, counts) for row in rows]
        table = label_table([row["id"] for row in rows], labels, counts)
        receipt = write_shard(self._labels_uri, shard.key, table)
        return dataclasses.replace(receipt, stats=counts.of_receipt())

    def _import_row(self, row: dict[str, Any], counts: ShardCounts) -> bytes | RowError:
        try:
            if row["reason"] is not None:
                raise RowError(f"image was rejected: {row['reason']}")
            if row["class"] is None:
                raise RowError("no image-level class")
            wnid, data = self._find(row["id"])
            if self._synsets and self._synsets.get(wnid) != row["class"]:
                raise RowError(
                    f"released label is of class {self._synsets.get(wnid)}, the image of class {row['class']}"
                )
            mask = read_mask(data, height=row["height"], width=row["width"])
            label = mask_to_label(mask, class_index=row["class"], space=self._space, minus_one=self._minus_one)
        except RowError as error:
            counts.reject(str(error))
            return error
        counts.count_pixels("pixels", label)
        return encode_label(label)

    def _find(self, image_id: str) -> tuple[str, bytes]:
        """The wnid and content of the file that belongs to an image."""
        for wnid, path in npz_paths(image_id):
            place = storage.join(self._folder, path)
            if storage.exists(place):
                return wnid, storage.read_bytes(place)
        raise RowError("no released label for this image")


def npz_paths(image_id: str) -> list[tuple[str, str]]:
    """Where the released label of an image may lie, as (wnid, path): by its folder, else by the wnid in its name."""
    folder, name = posixpath.split(image_id)
    stem = posixpath.splitext(name)[0] if name.lower().endswith((".jpeg", ".jpg", ".png")) else name
    wnids = [posixpath.basename(folder), stem.partition("_")[0]]
    return [(wnid, f"train/{wnid}/{stem}.JPEG_eiseg.npz") for wnid in dict.fromkeys(wnids) if wnid]


def read_mask(data: bytes, *, height: int, width: int) -> NDArray[np.integer[Any]]:
    """The integer mask (height, width) of an .npz file.

    Raises:
        RowError: damaged, of another size, or no integers.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            declared = archive.getinfo("arr_0.npy").file_size
        if declared > height * width * MAX_ITEM_BYTES + 4096:
            raise RowError(f"released label is larger than an image of {height}x{width} can need")
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            mask = arrays["arr_0"]
    except (KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise RowError(f"released label cannot be read ({type(error).__name__})") from error
    except ValueError as error:
        raise error if isinstance(error, RowError) else RowError(f"released label cannot be read ({error})") from error
    if mask.shape != (height, width):
        raise RowError(f"released label has shape {mask.shape}, the image {(height, width)}")
    if not np.issubdtype(mask.dtype, np.integer):
        raise RowError(f"released label holds {mask.dtype}, integers are expected")
    found: NDArray[np.integer[Any]] = mask
    return found


def mask_to_label(
    mask: NDArray[np.integer[Any]], *, class_index: int, space: LabelSpace, minus_one: MinusOne
) -> NDArray[Any]:
    """Label (H, W): 1 becomes the image's class, -1 void or background, everything else background."""
    label = np.full(mask.shape, space.background, space.dtype)
    label[mask == 1] = class_index
    if minus_one == "void":
        label[mask == -1] = space.void
    return label
