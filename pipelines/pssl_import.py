"""Import of released pseudo-labels: one .npz file per image (specs: PSSL section 5).

The layout is in released.py. Where the synset file exists, an image whose class differs is rejected.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from pipelines import storage
from pipelines.codecs import encode_label
from pipelines.label_run import ImageShard, OnProgress, shards_in_scope
from pipelines.labels import LabelSpace
from pipelines.pssl import PsslResult, PsslWork, run_pssl
from pipelines.pssl_plan import pssl_label_space
from pipelines.pssl_worker import label_table, pssl_counts
from pipelines.released import MinusOne, mask_to_label, npz_paths, read_mask, read_synsets
from pipelines.schema import Receipt
from pipelines.shard_counts import RowError, ShardCounts
from pipelines.shards import ComputeSpec
from pipelines.tables import Dataset, read_shard_file, write_shard


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
        self._wnids = {index: wnid for wnid, index in synsets.items()}

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
            wnid, data = self._find(row["id"], class_index=row["class"])
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

    def _find(self, image_id: str, *, class_index: int) -> tuple[str, bytes]:
        """The wnid and content of the file that belongs to an image."""
        for wnid, path in npz_paths(image_id, wnid=self._wnids.get(class_index)):
            place = storage.join(self._folder, path)
            if storage.exists(place):
                return wnid, storage.read_bytes(place)
        raise RowError("no released label for this image")
