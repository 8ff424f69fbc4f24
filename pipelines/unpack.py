"""A label set as files, one per image: for people, other tools and archives.

    <output>/labels/<id>.png|.jxl   class indices (or <output>/deciles/: 0..9), losslessly; PNG with the class colours
    <output>/train/<wnid>/…npz      the layout of the released pseudo-labels, with train.txt and the synset file
    <output>/classes.json           names, colours and void of the indices

Running again continues: files that are there are kept. `plan.json` says what they were made of: an output that holds
another label set's files, or files of nobody, is refused.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

from pipelines import storage
from pipelines.codecs import LOCO_CODEC, imagecodecs
from pipelines.label_run import shards_in_scope
from pipelines.released import SYNSETS, TRAIN_LIST
from pipelines.shards import ComputeSpec, ShardTask, run_shards
from pipelines.sources.synsets import load_classes
from pipelines.tables import Dataset, Table, differing_keys
from pipelines.unpack_worker import Content, FileFormat, LabelShard, UnpackResult, UnpackWorker

FOLDERS = {"label": "labels", "deciles": "deciles"}


@dataclass(frozen=True)
class UnpackWork:
    """What is to be unpacked, checked before work starts."""

    dataset: Dataset
    table: Table
    format: FileFormat
    content: Content
    output: str
    shards: tuple[LabelShard, ...]
    synsets: tuple[str, ...]
    """Of every class, where the released layout is asked for."""
    plan: dict[str, Any]

    @property
    def num_images(self) -> int:
        """Rows in scope."""
        return sum(shard.num_rows for shard in self.shards)

    @property
    def place(self) -> str:
        """Where the files' paths begin; the released layout has a folder of its own in them."""
        return self.output if self.format == "npz" else storage.join(self.output, FOLDERS[self.content])


@dataclass(frozen=True)
class Unpacked:
    """What a run did."""

    images_in: int
    written: int
    """In this run."""
    existing: int
    """By earlier runs."""
    num_bytes: int
    """Of the files written in this run."""
    failures: dict[str, str]
    """Reason by id, of every image without a file."""
    seconds: float
    actors: int

    def as_dict(self) -> dict[str, Any]:
        """JSON-serialisable form."""
        return {
            "images_in": self.images_in,
            "written": self.written,
            "existing": self.existing,
            "bytes": self.num_bytes,
            "rejected": len(self.failures),
            "reasons": dict(Counter(self.failures.values()).most_common()),
            "rejected_rows": [{"id": image_id, "reason": reason} for image_id, reason in sorted(self.failures.items())],
            "seconds": round(self.seconds, 3),
            "images_per_s": round(self.written / self.seconds, 3) if self.seconds > 0 else 0.0,
            "actors": self.actors,
        }


def plan_unpack(
    dataset: str,
    *,
    labels: str,
    output: str,
    format: FileFormat = "png",
    content: Content = "label",
    split: str | None = None,
) -> UnpackWork:
    """Check everything that can be checked before work starts; nothing is written.

    Raises:
        ValueError: no such dataset, label set or split, a format that cannot hold the content, or an output that holds
            other files.
    """
    opened = Dataset.open(dataset)
    table = opened.labels(labels)
    _check_content(table, content=content, format=format, where=f"{dataset}: label set {labels!r}")
    images = {file.key: file.path for file in shards_in_scope(opened, opened.images, split)}
    shards = tuple(
        LabelShard(file.key, file.path, images.get(file.key, ""), file.num_rows) for file in table.files(split=split)
    )
    if not shards:
        raise ValueError(f"{dataset}: label set {labels!r} has no rows" + (f" in split {split!r}" if split else ""))
    plan = {
        "kind": "unpack",
        "source": table.uri,
        "table": table.id,
        "split": split,
        "format": format,
        "content": content,
    }
    synsets = _synsets(opened) if format == "npz" else ()
    plan["synsets"] = hashlib.sha256("\n".join(synsets).encode()).hexdigest() if synsets else None
    work = UnpackWork(opened, table, format, content, storage.normalise(output), shards, synsets, plan)
    _check_output(work)
    return work


def _check_content(table: Table, *, content: Content, format: FileFormat, where: str) -> None:
    """Refuse what the label set does not hold, the format cannot hold, or this machine cannot write."""
    if content == "deciles" and "deciles" not in table.info["codecs"]:
        raise ValueError(f"{where} keeps no deciles; make it with keep_deciles = true")
    if content == "deciles" and format == "npz":
        raise ValueError("content: the released layout holds labels, not deciles; use format png or jxl")
    if format == "jxl" or (content == "deciles" and table.info["codecs"]["deciles"] == LOCO_CODEC):
        imagecodecs()


def _synsets(dataset: Dataset) -> tuple[str, ...]:
    """The synset of every class.

    Raises:
        ValueError: the classes are no synsets.
    """
    settings = dataset.info.source.get("settings", {})
    if settings.get("kind") != "imagenet":
        found = settings.get("kind", "none")
        raise ValueError(
            f"format: npz names files by synset, so it needs a dataset of source.kind 'imagenet', found {found!r}; "
            "use format png or jxl"
        )
    classes = load_classes(settings.get("synsets"))
    named = dataset.info.label_space.names
    if classes.names != named[: len(classes.names)]:
        raise ValueError(
            f"source.synsets: {settings.get('synsets')} names other classes than the dataset {dataset.root} was made "
            f"with (first {named[0]!r}, here {classes.names[0]!r}); put the list back, or start where it lies"
        )
    return classes.ids


def _check_output(work: UnpackWork) -> None:
    if storage.exists(storage.join(work.output, "dataset.json")):
        raise ValueError(f"output: {work.output} is a dataset; choose another output")
    place = storage.join(work.output, "plan.json")
    if not storage.exists(place):
        if storage.exists(storage.join(work.output, "train") if work.format == "npz" else work.place):
            raise ValueError(f"output: {work.output} holds files that unpack did not write; choose another output")
        return
    there = json.loads(storage.read_bytes(place))
    differing = differing_keys(work.plan, there)
    if differing:
        raise ValueError(
            f"output: {work.output} holds files made otherwise ({'; '.join(differing[:4])}); choose another output"
        )


def run_unpack(work: UnpackWork, *, compute: ComputeSpec) -> Unpacked:
    """Write the files that are not there yet; Ray must be running.

    Raises:
        ValueError: two images have the same name in the released layout.
        ShardError: a worker failed for a reason that is no row's.
    """
    start = time.monotonic()
    storage.write_text(storage.join(work.output, "plan.json"), json.dumps(work.plan, indent=2))
    storage.write_text(storage.join(work.output, "classes.json"), work.table.label_space.model_dump_json(indent=2))
    total = _Total()
    stats = run_shards(
        UnpackWorker,
        tasks=[ShardTask(str(shard.key), shard, shard.num_rows) for shard in work.shards],
        worker_args={
            "labels_uri": work.table.uri,
            "images_uri": storage.join(work.dataset.root, "images"),
            "output_uri": work.place,
            "format": work.format,
            "content": work.content,
            "space": work.table.label_space,
            "synsets": work.synsets,
        },
        compute=compute,
        on_result=lambda _, result: total.add(result),
        label="unpack",
    )
    if work.format == "npz":
        _write_lists(work, sorted(total.ids))
    return Unpacked(
        images_in=work.num_images,
        written=total.sum.written,
        existing=total.sum.existing,
        num_bytes=total.sum.num_bytes,
        failures=total.sum.failures,
        seconds=time.monotonic() - start,
        actors=stats.actors,
    )


class _Total:
    """Adds up shards as they come in; no two images may share a file."""

    def __init__(self) -> None:
        self.sum = UnpackResult()
        self.ids: dict[str, str] = {}
        """Id of the image behind every path."""

    def add(self, result: UnpackResult) -> None:
        """Add one shard.

        Raises:
            ValueError: an image has the path of another one.
        """
        self.sum.written += result.written
        self.sum.existing += result.existing
        self.sum.num_bytes += result.num_bytes
        self.sum.failures.update(result.failures)
        for image_id, path in result.paths.items():
            other = self.ids.setdefault(path, image_id)
            if other != image_id:
                raise ValueError(f"{path}: images {other!r} and {image_id!r} have this name both; unpack one --split")


def _write_lists(work: UnpackWork, paths: list[str]) -> None:
    """The lists of the released layout, written last: with them the release is whole."""
    synsets = "".join(f"{synset}\n" for synset in work.synsets)
    storage.write_text(storage.join(work.output, SYNSETS), synsets)
    storage.write_text(storage.join(work.output, TRAIN_LIST), "".join(f"{path}\n" for path in paths))
