"""Batches for training against torch's DataLoader with the same transforms: images per CPU-second.

    SEGRAY_DATA=../shared/data python -m benchmarks.data_path

Both decode the same photographs and label maps, augment them by the same function as the CamVid recipes do, and hand
out batches of 16 as uint8, made by two workers beside the process that takes them. Ours reads shards of a dataset:
`data_path_dataloader` by Ray Data's workers, `data_path_dataloader_threads` in threads of the taking process. The peer
is a `Dataset` over JPEG and PNG files in `DataLoader(num_workers=2)`. Counted is the steady state: the CPU time of the
taking process and of the workers between two batches in the midst of a run. What Ray's own services burn meanwhile is
printed apart.
"""

from __future__ import annotations

import io
import os
import tempfile
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
from pipelines.order import SampleOrder, sample_rng
from pipelines.samples import Part, build_index
from pipelines.shards import ComputeSpec
from pipelines.sources.camvid import CLASSES, UNLABELLED
from pipelines.transforms import augment
from seg_models.recipes.shared import CAMVID

NAMES = ("data_path_dataloader", "data_path_dataloader_threads")
NUM_WORKERS, BATCH, SHARD_ROWS = 2, 16, 64
SPACE = LabelSpace(names=tuple(CLASSES))
WORKERS = ("ray::MapWorker", "multiprocessing", "DataLoader", "pt_data_worker", "--multiprocessing-fork")
SAME_PRIORITY = {"RAY_worker_niceness": "0"}
"""Else Ray's workers stand back wherever anything else runs, while the driver's clock ticks on."""

Pair = tuple[bytes, NDArray[np.uint8]]
"""An image's file and its label (H, W)."""


@dataclass(frozen=True)
class Lengths:
    """Batches of a run; whole rounds of our data workers (27 batches are four), so that as much is ahead at the end of
    what is counted as at its beginning."""

    warm: int
    counted: int
    ahead: int = 81
    """Behind those that are counted, so that workers never run out of work."""


def entries(effort: Effort) -> Entries:
    """Runs of ours, both ways, and of the DataLoader in turns."""
    if not (PROC / "self/stat").exists():
        return dict.fromkeys(NAMES, Skipped(f"needs {PROC}/self/stat"))
    lengths = Lengths(1, 2, ahead=4) if effort.tiny else Lengths(27, 54)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pairs = photographs(32 if effort.tiny else 256)
        root, files = write_dataset(pairs, folder / "set"), write_files(pairs, folder / "files")
        rates = measure(root, files, lengths, pairs=min(effort.pairs, 2))
    peer = [rate for rate, _ in rates["loader"]]
    found = {}
    for name, way in zip(NAMES, ("ray", "threads"), strict=True):
        both = list(zip([rate for rate, _ in rates[way]], peer, strict=True))
        services = max(cores for _, cores in rates[way])
        note = f"beside it, Ray's services {services:.3f} cores" if way == "ray" else ""
        found[name] = median_pair(both, unit="images/CPU-s", more_is_better=True, note=note)
    return found


def measure(root: str, files: Sequence[Path], lengths: Lengths, *, pairs: int) -> dict[str, list[tuple[float, float]]]:
    """Images per CPU-second, and the cores that other processes kept busy, of every run by its way."""
    ways: dict[str, Callable[[], AbstractContextManager[Iterator[Any]]]] = {
        "ray": partial(ours, root, lengths, data_workers=NUM_WORKERS),
        "threads": partial(ours, root, lengths, data_workers=0),
        "loader": partial(loader, files, lengths),
    }
    rates: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    with mock.patch.dict(os.environ, SAME_PRIORITY), ray_session(ComputeSpec(), num_cpus=NUM_WORKERS + 1):
        for _ in range(pairs):
            for way, opened in ways.items():
                with opened() as batches:
                    rates[way].append(images_per_cpu_s(batches, lengths))
    return rates


def images_per_cpu_s(batches: Iterator[Any], lengths: Lengths) -> tuple[float, float]:
    """Rate of the batches that are counted, and the cores that other processes below this one kept busy."""
    for _ in range(lengths.warm):
        next(batches)
    before = spent()
    for _ in range(lengths.counted):
        next(batches)
    after = spent()
    work, services, wall = (later - earlier for later, earlier in zip(after, before, strict=True))
    return lengths.counted * BATCH / work, services / wall


def spent() -> tuple[float, float, float]:
    """CPU-seconds of this process and its workers, of all others below it, and the clock."""
    running = family(os.getpid())
    mine = {pid for pid, one in running.items() if pid == os.getpid() or any(mark in one.command for mark in WORKERS)}
    work = sum(running[pid].cpu_s for pid in mine)
    times = os.times()
    return work, sum(one.cpu_s for one in running.values()) - work, times.elapsed


@contextmanager
def ours(root: str, lengths: Lengths, *, data_workers: int) -> Iterator[Iterator[Any]]:
    """Our batches of a dataset."""
    make_order = partial(SampleOrder, build_index([Part(dataset=root)]), lanes=48, seed=0)
    steps = lengths.warm + lengths.counted + lengths.ahead
    plan = BatchPlan(make_order, augment=CAMVID, global_batch=BATCH, steps=steps)
    with open_batches(plan, data_workers=data_workers, threads=NUM_WORKERS) as batches:
        yield iter(batches)


@contextmanager
def loader(files: Sequence[Path], lengths: Lengths) -> Iterator[Iterator[Any]]:
    """The peer's batches of files."""
    steps = lengths.warm + lengths.counted + lengths.ahead
    order = np.random.default_rng(0).integers(0, len(files), steps * BATCH).tolist()
    batches = iter(
        DataLoader(
            Files(files), batch_size=BATCH, sampler=order, num_workers=NUM_WORKERS, multiprocessing_context="forkserver"
        )
    )
    try:
        yield batches
    finally:
        del batches


class Files(Dataset[tuple[str, Tensor, Tensor]]):
    """An image file with its label beside it, as people write it for a DataLoader."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = files

    def __getitem__(self, number: int) -> tuple[str, Tensor, Tensor]:
        path = self.files[number]
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
