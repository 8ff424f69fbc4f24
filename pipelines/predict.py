"""Prediction over a folder, an object-store prefix or a dataset -> index PNG, coloured overlays, or a label table.

    <output>/labels/<id>.png     index PNG (the class colours are its palette; 16-bit from 256 classes on)
    <output>/overlays/<id>.png   the class colours over the image
    <output>/table/              label table with confidence, readable like a label set

Running again continues: files and shards that are there are kept, images that failed are tried again. `plan.json` says
what they were made of and with: another source and other settings are refused. `images.json` says what version of each
file of a folder was predicted: a replaced one is predicted anew. Images that cannot be read are listed with a reason.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from pipelines import schema, storage
from pipelines.codecs import LABEL_CODECS, decode_label
from pipelines.images import decode_image
from pipelines.label_files import file_name
from pipelines.label_run import shards_in_scope
from pipelines.pictures import Picture, picture_views
from pipelines.predict_worker import (
    FOLDERS,
    NUM_SAMPLES,
    BatchResult,
    Format,
    ImageBatch,
    ImageFile,
    PredictWorker,
    Sample,
)
from pipelines.published import Checkpoint, device_of, open_checkpoint, threads_of
from pipelines.schema import ShardKey
from pipelines.shard_counts import by_class
from pipelines.shards import CommitBuffer, ComputeSpec, ShardTask, run_shards
from pipelines.sources.base import unique_ids, visible_files
from pipelines.tables import Dataset, Table, differing_keys, read_shard_file
from seg_models.predictor import PredictorSpec

BATCH_IMAGES = 64  # files of a folder in one task
FILES_SPLIT = "predict"  # the split of a table made from a folder


@dataclass(frozen=True)
class PredictWork:
    """What is to be predicted, checked before work starts."""

    checkpoint: Checkpoint
    predictor: PredictorSpec
    format: Format
    output: str
    batches: tuple[ImageBatch, ...]
    plan: dict[str, Any]
    images_uri: str = ""
    """The image table, where the images come from a dataset."""
    fingerprint: str = ""
    """SHA-256 over the image table, or over names, sizes and times (content tags in an object store) of the files."""

    @property
    def num_images(self) -> int:
        """Images in scope."""
        return sum(batch.num_rows for batch in self.batches)

    @property
    def place(self) -> str:
        """Where predictions are written."""
        return storage.join(self.output, FOLDERS[self.format])


@dataclass(frozen=True)
class PredictResult:
    """What a run did."""

    images_in: int
    predicted: int
    """In this run."""
    existing: int
    """By earlier runs."""
    failures: dict[str, str]
    """Reason by id, of every image without a prediction."""
    class_pixels: dict[str, int]
    """Pixels by class name, of this run."""
    seconds: float
    actors: int
    pictures: tuple[Picture, ...] = field(repr=False)

    def as_dict(self) -> dict[str, Any]:
        """JSON-serialisable form, without picture bytes."""
        return {
            "images_in": self.images_in,
            "predicted": self.predicted,
            "existing": self.existing,
            "rejected": len(self.failures),
            "rejected_rows": [{"id": image_id, "reason": reason} for image_id, reason in sorted(self.failures.items())],
            "class_pixels": self.class_pixels,
            "seconds": round(self.seconds, 3),
            "images_per_s": round(self.predicted / self.seconds, 3) if self.seconds > 0 else 0.0,
            "actors": self.actors,
            "pictures": [picture.as_dict() for picture in self.pictures],
        }


def plan_predict(
    checkpoint: str,
    *,
    images: str,
    output: str,
    split: str | None = None,
    format: Format = "png",
    predictor: PredictorSpec | None = None,
    compute: ComputeSpec | None = None,
) -> PredictWork:
    """Check everything that can be checked before work starts; nothing is written.

    Args:
        images: a folder, an object-store prefix, or a dataset.
        split: of a dataset.

    Raises:
        ValueError: no such checkpoint, folder or split, no images, or predictions of other images or settings in
            `output`.
    """
    predictor, compute = predictor or PredictorSpec(), compute or ComputeSpec()
    opened, place = open_checkpoint(checkpoint, predictor=predictor), storage.normalise(images)
    plan = {
        "kind": "predict",
        "source": place,
        "checkpoint_sha256": opened.sha256,
        "predictor": predictor.model_dump(mode="json"),
        "format": format,
        "device": device_of(compute),
        "torch": str(torch.__version__),
    }
    work = PredictWork(opened, predictor, format, storage.normalise(output), (), plan)
    work = _of_dataset(work, place, split) if _is_dataset(place) else _of_folder(work, place, split)
    _check_plan(work)
    return work


def _is_dataset(place: str) -> bool:
    return storage.exists(storage.join(place, "dataset.json"))


def _of_dataset(work: PredictWork, place: str, split: str | None) -> PredictWork:
    dataset = Dataset.open(place)
    images = dataset.images
    shards = shards_in_scope(dataset, images, split)
    batches = tuple(ImageBatch(shard.key, shard.num_rows, shard_path=shard.path) for shard in shards)
    digest = images.fingerprint()
    return replace(
        work, batches=batches, images_uri=images.uri, plan={**work.plan, "images": digest}, fingerprint=digest
    )


def _of_folder(work: PredictWork, place: str, split: str | None) -> PredictWork:
    if split is not None:
        raise ValueError(f"split: takes no effect, {place} is a folder of images and no dataset")
    files, _ = visible_files(place)
    if not files:
        raise ValueError(f"images: no files in {place}")
    ids = unique_ids([file.relative for file in files])
    named = [
        ImageFile(image_id, file.uri, f"{file.size_bytes} {file.tag}")
        for image_id, file in zip(ids, files, strict=True)
    ]
    starts = range(0, len(named), BATCH_IMAGES)
    batches = tuple(_batch(number, named[start : start + BATCH_IMAGES]) for number, start in enumerate(starts))
    listing = "\n".join(f"{file.id}\0{file.version}" for file in named)
    digest = hashlib.sha256(listing.encode()).hexdigest()
    # The whole listing decides what is in a shard, so a table depends on it; single PNG files do not.
    plan = {**work.plan, "images": digest} if work.format == "table" else work.plan
    return replace(work, batches=batches, plan=plan, fingerprint=digest)


def _batch(number: int, files: Sequence[ImageFile]) -> ImageBatch:
    return ImageBatch(ShardKey(FILES_SPLIT, number), len(files), files=tuple(files))


def _check_plan(work: PredictWork) -> None:
    place = storage.join(work.output, "plan.json")
    if not storage.exists(place):
        return
    there = json.loads(storage.read_bytes(place))
    if there.get("source") != work.plan["source"]:
        raise ValueError(
            f"output: {work.output} holds predictions of {there.get('source', 'other images')}, "
            f"images is {work.plan['source']}; choose another output"
        )
    differing = differing_keys(work.plan, there)
    if differing:
        raise ValueError(
            f"{work.output}: predictions made with other settings are here ({'; '.join(differing[:4])}); "
            "choose another output"
        )


def run_predict(work: PredictWork, *, compute: ComputeSpec) -> PredictResult:
    """Predict what was planned and is not there yet; Ray must be running.

    Raises:
        ShardError: a worker failed for a reason that is no image's.
    """
    start = time.monotonic()
    storage.write_text(storage.join(work.output, "plan.json"), json.dumps(work.plan, indent=2))
    _forget_replaced(work)
    table = _open_table(work) if work.format == "table" else None
    done = table.committed() if table is not None else set()
    todo = [batch for batch in work.batches if batch.key not in done]
    tally = _Tally(table)
    worker_args = {
        "checkpoint": work.checkpoint,
        "predictor": work.predictor,
        "format": work.format,
        "output_uri": work.place,
        "images_uri": work.images_uri,
        "device": device_of(compute),
        "threads": threads_of(compute),
    }
    try:
        stats = run_shards(
            PredictWorker,
            tasks=[ShardTask(str(batch.key), batch, batch.num_rows) for batch in todo],
            worker_args=worker_args,
            compute=compute,
            on_result=lambda _, result: tally.add(result),
            label="predict",
        )
    finally:
        tally.flush()
    return tally.result(work, seconds=time.monotonic() - start, actors=stats.actors)


def _forget_replaced(work: PredictWork) -> None:
    """Remove the predictions of files that were replaced, then note what the files are now.

    In this order: a run that is killed in between does both again.
    """
    now = {file.id: file.version for batch in work.batches for file in batch.files}
    if work.format == "table" or not now:
        return
    place = storage.join(work.output, "images.json")
    before: dict[str, str] = json.loads(storage.read_bytes(place)) if storage.exists(place) else {}
    for image_id, version in now.items():
        if before.get(image_id, version) != version:
            storage.delete(storage.join(work.place, file_name(image_id)))
    storage.write_text(place, json.dumps({**before, **now}))


def _open_table(work: PredictWork) -> Table:
    if storage.exists(storage.join(work.place, "_delta_log")):
        return Table.open(work.place)
    space = work.checkpoint.label_space.model_dump(mode="json")
    info = {"kind": "predictions", "label_space": space, "codecs": LABEL_CODECS, "plan": work.plan}
    return Table.create(work.place, columns=schema.LABELS, info=info)


class _Tally:
    """Adds up batches as they come in, and commits their shards."""

    def __init__(self, table: Table | None) -> None:
        self._table = table
        self._buffer = CommitBuffer(table.commit) if table is not None else None
        self._earlier = table.counts() if table is not None else None
        self._total = BatchResult()

    def add(self, result: BatchResult) -> None:
        """Add one batch."""
        if self._buffer is not None and result.receipt is not None:
            self._buffer.add([result.receipt])
        self._total.predicted += result.predicted
        self._total.existing += result.existing
        self._total.failures.update(result.failures)
        self._total.pixels.update(result.pixels)
        samples = [*self._total.samples, *result.samples]
        self._total.samples = heapq.nsmallest(NUM_SAMPLES, samples, key=Sample.by_hash)

    def flush(self) -> None:
        """Commit what is held."""
        if self._buffer is not None:
            self._buffer.flush()

    def result(self, work: PredictWork, *, seconds: float, actors: int) -> PredictResult:
        """Everything together."""
        space, total = work.checkpoint.label_space, self._total
        chosen = enumerate(total.samples)
        return PredictResult(
            images_in=work.num_images,
            predicted=total.predicted,
            existing=total.existing + (self._earlier.good if self._earlier is not None else 0),
            failures=self._table.reasons() if self._table is not None else total.failures,
            class_pixels=by_class({str(index): count for index, count in total.pixels.items()}, space),
            seconds=seconds,
            actors=actors,
            pictures=tuple(_render(work, f"fixed-{number:02d}", sample) for number, sample in chosen),
        )


def _render(work: PredictWork, name: str, sample: Sample) -> Picture:
    batch = sample.batch
    if batch.shard_path:
        rows = read_shard_file(work.images_uri, batch.shard_path, columns=("image",))
        data = rows.column("image")[sample.row].as_py()
    else:
        data = storage.read_bytes(batch.files[sample.row].uri)
    space, prediction = work.checkpoint.label_space, decode_label(sample.prediction)
    return Picture(name, sample.id, None, picture_views(decode_image(data), space=space, prediction=prediction))
