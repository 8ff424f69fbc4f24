"""Batches for training against torch's DataLoader with the same transforms: images per CPU-second.

    SEGRAY_DATA=../shared/data python -m benchmarks.data_path

Both decode the same photographs and label maps, augment them by the same function as the CamVid recipes do, and hand
out batches of 16 as uint8, made by two workers beside the process that takes them. Ours reads shards of a dataset:
`data_path_dataloader` by Ray Data's workers, `data_path_dataloader_threads` in threads of the taking process. The peer
is a `Dataset` over JPEG and PNG files in `DataLoader(num_workers=2)`. Counted is the steady state in the midst of a
run, when the taking process has seen every page of the object store that chunks come in: the CPU time of the taking
process for each image it took, and that of the workers for each image they began, for they are ahead of it by now
more, now less. What Ray's own services burn meanwhile is printed apart. Single pairs differ by a tenth.
"""

from __future__ import annotations

import io
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.measure import Effort, Entries, Skipped, command, median_pair
from benchmarks.processes import PROC, family
from jobs.cluster import ray_session
from pipelines import schema, tables
from pipelines.batch_plan import BatchPlan
from pipelines.batches import open_batches
from pipelines.codecs import encode_label
from pipelines.labels import LabelSpace
from pipelines.order import Sample, SampleOrder, sample_rng
from pipelines.samples import Part, SampleIndex, build_index
from pipelines.shards import ComputeSpec
from pipelines.sources.camvid import CLASSES, UNLABELLED
from pipelines.transforms import augment
from seg_models.recipes.shared import CAMVID

NAMES = ("data_path_dataloader", "data_path_dataloader_threads")
NUM_WORKERS, BATCH, SHARD_ROWS = 2, 16, 64
SPACE = LabelSpace(names=tuple(CLASSES))
SAME_PRIORITY = {"RAY_worker_niceness": "0"}
"""Else Ray's workers stand back wherever anything else runs, while the driver's clock ticks on."""

Pair = tuple[bytes, NDArray[np.uint8]]
"""An image's file and its label (H, W)."""


@dataclass(frozen=True)
class Lengths:
    """Batches of a run."""

    warm: int
    counted: int
    ahead: int = 81
    """Behind those that are counted, so that workers never run out of work."""


class Tally:
    """How many samples a worker has begun, and its CPU time then, in a file of its own."""

    EVERY = 8

    def __init__(self, folder: Path) -> None:
        self._folder, self._begun = folder, 0

    def add(self) -> None:
        """One more."""
        if self._begun % self.EVERY == 0:
            part = self._folder / f".{os.getpid()}"
            part.write_text(json.dumps((self._begun, time.process_time())))
            part.rename(self._folder / str(os.getpid()))
        self._begun += 1

    @staticmethod
    def read(folder: Path) -> dict[int, tuple[int, float]]:
        """Samples and CPU-seconds of every worker, by process id."""
        told = {int(file.name): json.loads(file.read_text()) for file in folder.glob("[0-9]*")}
        return {pid: (begun, cpu_s) for pid, (begun, cpu_s) in told.items()}


def entries(effort: Effort) -> Entries:
    """Runs of ours, both ways, and of the DataLoader in turns."""
    if not (PROC / "self/stat").exists():
        return dict.fromkeys(NAMES, Skipped(f"needs {PROC}/self/stat"))
    lengths = Lengths(1, 20, ahead=40) if effort.tiny else Lengths(40, 48)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pairs = photographs(32 if effort.tiny else 256)
        root, files = write_dataset(pairs, folder / "set"), write_files(pairs, folder / "files")
        rates = measure(root, files, lengths, warm_ups=0 if effort.tiny else 1, pairs=effort.more.pairs)
    peer = [rate for rate, _ in rates["loader"]]
    found = {}
    for name, way in zip(NAMES, ("ray", "threads"), strict=True):
        both = list(zip([rate for rate, _ in rates[way]], peer, strict=True))
        ratios = [first / second for first, second in both]
        note = f"pairs {min(ratios):.2f} to {max(ratios):.2f}"
        if way == "ray":
            note += f"; beside it, Ray's services {max(cores for _, cores in rates[way]):.3f} cores"
        found[name] = median_pair(both, unit="images/CPU-s", more_is_better=True, note=note)
    return found


def measure(
    root: str, files: Sequence[Path], lengths: Lengths, *, warm_ups: int, pairs: int
) -> dict[str, list[tuple[float, float]]]:
    """Images per CPU-second, and the cores that Ray's services kept busy, of every run by its way."""
    ways: dict[str, Callable[[Path], AbstractContextManager[Iterator[Any]]]] = {
        "ray": partial(ours, root, lengths, data_workers=NUM_WORKERS),
        "threads": partial(ours, root, lengths, data_workers=0),
        "loader": partial(loader, files, lengths),
    }
    rates: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    with mock.patch.dict(os.environ, SAME_PRIORITY), ray_session(ComputeSpec(), num_cpus=NUM_WORKERS + 1):
        for _ in range(warm_ups + pairs):
            for way, opened in ways.items():
                # workers may still be writing while they are ended
                with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as tally, opened(Path(tally)) as batches:
                    rates[way].append(images_per_cpu_s(batches, lengths, Path(tally), alone=way == "threads"))
    return {way: runs[warm_ups:] for way, runs in rates.items()}


def images_per_cpu_s(batches: Iterator[Any], lengths: Lengths, tally: Path, *, alone: bool) -> tuple[float, float]:
    """Rate in the steady state, and the cores that processes which are neither this one nor a worker kept busy.

    Args:
        alone: there are no workers beside this process.
    """
    for _ in range(lengths.warm):
        next(batches)
    before, own_s, wall_s, others_s = Tally.read(tally), time.process_time(), time.monotonic(), services_s(tally)
    for _ in range(lengths.counted):
        next(batches)
    after = Tally.read(tally)
    each_s = (time.process_time() - own_s) / (lengths.counted * BATCH)
    services = (services_s(tally) - others_s) / (time.monotonic() - wall_s)
    if not alone:
        begun, cpu_s = np.subtract([after[pid] for pid in before], list(before.values())).sum(axis=0)
        each_s += cpu_s / begun
    return 1 / each_s, services


def services_s(tally: Path) -> float:
    """CPU-seconds of all processes below this one but its workers."""
    workers = {os.getpid(), *Tally.read(tally)}
    return sum(one.cpu_s for pid, one in family(os.getpid()).items() if pid not in workers)


class TalliedOrder(SampleOrder):
    """An order that counts what a data worker asks of it."""

    def __init__(self, index: SampleIndex, *, folder: Path) -> None:
        super().__init__(index, lanes=48, seed=0)
        self._tally = Tally(folder)

    def sample(self, position: int) -> Sample:
        """The sample at a position of the run."""
        self._tally.add()
        return super().sample(position)


@contextmanager
def ours(root: str, lengths: Lengths, tally: Path, *, data_workers: int) -> Iterator[Iterator[Any]]:
    """Our batches of a dataset."""
    make_order = partial(TalliedOrder, build_index([Part(dataset=root)]), folder=tally)
    steps = lengths.warm + lengths.counted + lengths.ahead
    plan = BatchPlan(make_order, augment=CAMVID, global_batch=BATCH, steps=steps)
    with open_batches(plan, data_workers=data_workers, threads=NUM_WORKERS) as batches:
        yield iter(batches)


@contextmanager
def loader(files: Sequence[Path], lengths: Lengths, tally: Path) -> Iterator[Iterator[Any]]:
    """The peer's batches of files."""
    steps = lengths.warm + lengths.counted + lengths.ahead
    order = np.random.default_rng(0).integers(0, len(files), steps * BATCH).tolist()
    loaded = DataLoader(
        Files(files, tally),
        batch_size=BATCH,
        sampler=order,
        num_workers=NUM_WORKERS,
        multiprocessing_context="forkserver",
    )
    batches = iter(loaded)
    try:
        yield batches
    finally:
        del batches


class Files(Dataset[tuple[str, Tensor, Tensor]]):
    """An image file with its label beside it, as people write it for a DataLoader."""

    def __init__(self, files: Sequence[Path], tally: Path) -> None:
        self._files, self._tally = files, Tally(tally)

    def __getitem__(self, number: int) -> tuple[str, Tensor, Tensor]:
        self._tally.add()
        path = self._files[number]
        image = np.array(Image.open(path).convert("RGB"))
        label = np.array(Image.open(path.with_suffix(".png")))
        rng = sample_rng(path.name, seed=0, epoch=0, repeat=0, phase=0)
        return path.name, *augment(image, label, spec=CAMVID, void=SPACE.void, rng=rng)


def photographs(num: int) -> list[Pair]:
    """Frames of CamVid-11 where they are, else noise of their size; labels with our void."""
    folder = Path(os.environ.get("SEGRAY_DATA", "../shared/data")) / "datasets/camvid-11/train"
    names = sorted(path.stem for path in (folder / "images").glob("*.jpg"))[:num] if folder.is_dir() else []
    if not names:
        return [made(number) for number in range(num)]
    return [((folder / f"images/{name}.jpg").read_bytes(), _label(folder / f"labels/{name}.png")) for name in names]


def _label(path: Path) -> NDArray[np.uint8]:
    label = np.array(Image.open(path))
    return np.where(label == UNLABELLED, SPACE.void, label).astype(np.uint8)


def made(number: int) -> Pair:
    """A coloured picture of 360x480 with about the detail of a photograph, and rectangles as its label."""
    rng = np.random.default_rng(number)
    coarse = Image.fromarray(rng.integers(0, 256, (45, 60, 3), np.uint8)).resize((480, 360), Image.Resampling.BICUBIC)
    pixels = np.asarray(coarse).astype(np.int16) + rng.integers(-12, 13, (360, 480, 3))
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    label = np.kron(rng.integers(0, SPACE.num_classes, (12, 16), np.uint8), np.ones((30, 30), np.uint8))
    return buffer.getvalue(), label


def write_dataset(pairs: Sequence[Pair], folder: Path) -> str:
    """A dataset of the images, for ours."""
    dataset = tables.Dataset.create(
        str(folder), tables.DatasetInfo(name="photographs", label_space=SPACE, splits=("train",))
    )
    images, labels = dataset.images, dataset.create_labels("human", label_space=SPACE, plan={})
    for shard, first in enumerate(range(0, len(pairs), SHARD_ROWS)):
        key, rows = schema.ShardKey("train", shard), pairs[first : first + SHARD_ROWS]
        columns: dict[str, Sequence[Any]] = {
            "id": [f"{first + number:04d}" for number in range(len(rows))],
            "image": [image for image, _ in rows],
            "height": [label.shape[0] for _, label in rows],
            "width": [label.shape[1] for _, label in rows],
        }
        images.commit([tables.write_shard(images.uri, key, schema.shard_rows(columns, columns_of=schema.IMAGES))])
        coded: dict[str, Sequence[Any]] = {"id": columns["id"], "label": [encode_label(label) for _, label in rows]}
        labels.commit([tables.write_shard(labels.uri, key, schema.shard_rows(coded, columns_of=schema.LABELS))])
    return str(folder)


def write_files(pairs: Sequence[Pair], folder: Path) -> list[Path]:
    """The same images as files, for the peer."""
    folder.mkdir()
    paths = [folder / f"{number:04d}.jpg" for number in range(len(pairs))]
    for path, (image, label) in zip(paths, pairs, strict=True):
        path.write_bytes(image)
        Image.fromarray(label).save(path.with_suffix(".png"))
    return paths


if __name__ == "__main__":
    command(__doc__, entries)
