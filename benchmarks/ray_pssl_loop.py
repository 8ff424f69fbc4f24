"""PSSL on Ray against a hand-written multiprocessing loop with the same kernels: images per CPU-second.

    SEGRAY_DATA=../shared/data python -m benchmarks.ray_pssl_loop

Both label the same photographs with the same two classifiers in two worker processes; the labels are equal bytes. Ours
hands addresses of shards to Ray Data, its workers read them and write a Parquet file each, the driver commits. The loop
is a `multiprocessing.Pool` that reads JPEG files and writes label files. Counted is the steady state: the CPU time of
driver and workers from the end of each worker's first shard (or as many files) to the last image's result. What Ray's
own services (scheduler, object store, logs) burn meanwhile is printed apart.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import statistics
import tempfile
import threading
import time
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch

from benchmarks.measure import Effort, Entries, Skipped, command, median_pair
from benchmarks.processes import PROC, Process, family
from jobs.cluster import ray_session
from pipelines.codecs import encode_label
from pipelines.images import decode_image
from pipelines.ingest import ingest
from pipelines.ingest_plan import plan_ingest
from pipelines.label_run import ImageShard
from pipelines.labels import LabelSpace
from pipelines.pssl import PsslWork, plan_pssl, run_pssl
from pipelines.pssl_plan import LabelPlan, build_ensemble
from pipelines.pssl_spec import EnsembleSpec, PsslSpec
from pipelines.pssl_worker import PsslWorker
from pipelines.schema import Receipt
from pipelines.shards import ComputeSpec
from pipelines.sources.imagenet import ImageNetSource
from pipelines.tables import Dataset
from seg_models.consensus import pseudo_label
from seg_models.ensemble import Ensemble, Query
from seg_models.explain import SmoothGradSpec
from seg_models.numerics import Numerics
from seg_models.weights.classifiers import ClassifierSpec
from seg_models.weights.collected import collected_ensemble

CLASSIFIERS = ("mobilenetv1_100_224", "mobilenetv2_100_224_tv")
SETTINGS = PsslSpec(explainer=SmoothGradSpec(samples=4, score="logit"), resize="square", numerics=Numerics(chunk=4))
NUM_WORKERS = 2
START_LIMIT_S = 300
COMPUTE = ComputeSpec(actors=NUM_WORKERS)
SAME_PRIORITY = {"RAY_worker_niceness": "0"}
"""Else Ray's workers stand back wherever anything else runs, while the driver's clock ticks on."""


class Task(NamedTuple):
    """An image file to label."""

    path: Path
    image_id: str
    class_index: int


@dataclass(frozen=True)
class Spent:
    """CPU-seconds so far."""

    wall_s: float
    work: dict[int, float]
    """Of the driver and of each worker, by process id."""
    services_s: float
    """Of all other processes below the driver."""


@dataclass(frozen=True)
class Cost:
    """What a run's images cost, starting up left out."""

    images_per_cpu_s: float
    driver_cores: float
    """Cores that the driver keeps busy."""
    service_cores: float
    """Cores that everything else but driver and workers keeps busy."""


class Ready(NamedTuple):
    """Where a worker stood when it had its first shard behind it."""

    cpu_s: float
    images: int


class Meter:
    """Measures a run of so many images, whose workers `wait_for_all` when built and `tell_ready` when warm."""

    def __init__(self, folder: Path, *, num_images: int) -> None:
        for each in (folder, _built(folder)):
            each.mkdir()
        self.folder, self.num_images = folder, num_images
        self._start: Spent | None = None
        self._end: Spent | None = None
        self._watch = threading.Thread(target=self._wait, daemon=True)
        self._watch.start()

    def _wait(self) -> None:
        """The driver counts from when the first worker is warm."""
        while not any(self.folder.iterdir()):
            time.sleep(0.05)
        self._start = spent()

    def done(self, images: int) -> None:
        """So many images have their result."""
        if images == self.num_images:
            self._end = spent()

    def cost(self) -> Cost:
        """After the last image."""
        start, end = self._start, self._end
        assert start is not None
        assert end is not None
        ready = {int(file.name): Ready(*json.loads(file.read_text())) for file in self.folder.iterdir()}
        assert len(ready) == NUM_WORKERS, "every worker had more than a shard to do"
        wall_s, driver = end.wall_s - start.wall_s, os.getpid()
        driver_s = end.work[driver] - start.work[driver]
        workers_s = sum(end.work[pid] - before.cpu_s for pid, before in ready.items())
        images = self.num_images - sum(before.images for before in ready.values())
        services_s = end.services_s - start.services_s
        return Cost(images / (driver_s + workers_s), driver_s / wall_s, services_s / wall_s)


def _built(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}-built")


def wait_for_all(folder: Path) -> None:
    """Begin together: a worker that starts late would find no work left.

    Raises:
        TimeoutError: another worker was not built.
    """
    (_built(folder) / str(os.getpid())).touch()
    limit = time.monotonic() + START_LIMIT_S
    while len(list(_built(folder).iterdir())) < NUM_WORKERS:
        if time.monotonic() > limit:
            raise TimeoutError(f"not all of {NUM_WORKERS} workers were built within {START_LIMIT_S} s")
        time.sleep(0.05)


def tell_ready(folder: Path, *, images: int) -> None:
    """Leave this process's CPU time, and the images it has done, in the meter's folder."""
    part = folder.with_name(f"{folder.name}-{os.getpid()}")
    part.write_text(json.dumps((time.process_time(), images)))
    part.rename(folder / str(os.getpid()))


def entries(effort: Effort) -> Entries:
    """Whole runs of ours and of the loop in turns."""
    data = Path(os.environ.get("SEGRAY_DATA", "../shared/data"))
    for needed in (PROC / "self/stat", data / "images/imagenet-sample-1000", data / "weights/imagenet-classifiers"):
        if not needed.exists():
            return {"ray_pssl_loop": Skipped(f"needs {needed}")}
    shard_images, num_images = (2, 12) if effort.tiny else (8, 96)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        root, tasks = prepare(data, folder, num_images=num_images, shard_images=shard_images)
        pairs = []
        for number in range(effort.pairs):
            work = plan(root, data, labels=f"run{number}")
            first = ours(work, Meter(folder / f"ours{number}", num_images=num_images))
            meter = Meter(folder / f"loop{number}", num_images=num_images)
            pairs.append((first, loop(work, tasks, meter, warm_after=shard_images)))
            check_equal(work, tasks)
    rates = [(first.images_per_cpu_s, second.images_per_cpu_s) for first, second in pairs]
    driver = statistics.median(first.driver_cores for first, _ in pairs)
    services = statistics.median(first.service_cores for first, _ in pairs)
    note = f"driver {driver:.3f} cores; beside both, Ray's services {services:.3f}"
    return {"ray_pssl_loop": median_pair(rates, unit="images/CPU-s", more_is_better=True, note=note)}


def prepare(data: Path, folder: Path, *, num_images: int, shard_images: int) -> tuple[str, list[Task]]:
    """A dataset of the first photographs, and the same photographs as files in the order of its rows."""
    source = folder / "source"
    source.mkdir()
    origin = data / "images/imagenet-sample-1000"
    lines = (origin / "index.tsv").read_text().splitlines()[: num_images + 1]
    (source / "index.tsv").write_text("\n".join(lines) + "\n")
    for row in csv.DictReader(lines, delimiter="\t"):
        shutil.copy(origin / row["file"], source)
    settings = plan_ingest(ImageNetSource(root=str(source)), dataset=str(folder / "set"), shard_rows=shard_images)
    with ray_session(COMPUTE):
        ingest(settings, compute=COMPUTE)
    return settings.root, write_files(Dataset.open(settings.root), folder / "files")


def write_files(dataset: Dataset, folder: Path) -> list[Task]:
    """Every image of a dataset as a file, for the loop to read."""
    folder.mkdir()
    tasks: list[Task] = []
    for shard in dataset.images.files():
        for row in dataset.images.read(shard.key).to_pylist():
            path = folder / f"{len(tasks):04d}.jpg"
            path.write_bytes(row["image"])
            tasks.append(Task(path, row["id"], row["class"]))
    return tasks


def plan(root: str, data: Path, *, labels: str) -> PsslWork:
    """A label set to be made by two real classifiers, four noisy copies each."""
    known = collected_ensemble(str(data / "weights/imagenet-classifiers"))
    chosen = EnsembleSpec(classifiers=tuple(spec for spec in known if spec.title in CLASSIFIERS))
    return plan_pssl(root, labels=labels, pssl=SETTINGS, ensemble=chosen, compute=COMPUTE)


class ReadyWorker(PsslWorker):
    """The worker of a job, which says when it has its first shard behind it."""

    def __init__(self, *, ready: Path, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._ready: Path | None = ready
        wait_for_all(ready)

    def __call__(self, shard: ImageShard) -> Receipt:
        receipt = super().__call__(shard)
        if self._ready is not None:
            tell_ready(self._ready, images=receipt.num_rows)
            self._ready = None
        return receipt


def ours(work: PsslWork, meter: Meter) -> Cost:
    """The label set made on a local Ray."""
    watched = replace(work, worker=ReadyWorker, worker_args={**work.worker_args, "ready": meter.folder})
    with mock.patch.dict(os.environ, SAME_PRIORITY), ray_session(COMPUTE):
        run_pssl(watched, compute=COMPUTE, on_progress=lambda _, images: meter.done(images))
    return meter.cost()


def loop(work: PsslWork, tasks: list[Task], meter: Meter, *, warm_after: int) -> Cost:
    """The same labels by a pool of processes, each warm after so many images."""
    given = (work.worker_args["plan"], work.worker_args["classifiers"], work.space, meter.folder, warm_after)
    with get_context("spawn").Pool(NUM_WORKERS, start_worker, given) as pool:
        for _ in pool.imap(label_file, tasks):
            pass
        meter.done(len(tasks))
    return meter.cost()


@dataclass
class _Worker:
    ensemble: Ensemble
    space: LabelSpace
    ready: Path
    warm_after: int
    done: int = 0


_worker: list[_Worker] = []  # what a process of the pool holds


def start_worker(
    label_plan: LabelPlan, classifiers: tuple[ClassifierSpec, ...], space: LabelSpace, ready: Path, warm_after: int
) -> None:
    """Build the ensemble in a process of the pool."""
    torch.set_num_threads(label_plan.threads)
    _worker.append(_Worker(build_ensemble(label_plan, classifiers), space, ready, warm_after))
    wait_for_all(ready)


def label_file(task: Task) -> None:
    """Label one image file; the label is written beside it."""
    worker = _worker[0]
    space = worker.space
    image = decode_image(task.path.read_bytes())
    (found,) = worker.ensemble.scores([Query(image, task.class_index, task.image_id)])
    scores = found.scores
    assert scores is not None
    assert space.background is not None
    label = pseudo_label(scores.numpy(), class_index=task.class_index, background=space.background, dtype=space.dtype)
    label_path(task).write_bytes(encode_label(label))
    worker.done += 1
    if worker.done == worker.warm_after:
        tell_ready(worker.ready, images=worker.done)


def label_path(task: Task) -> Path:
    """Where the loop writes a label."""
    return task.path.with_suffix(".label")


def check_equal(work: PsslWork, tasks: list[Task]) -> None:
    """Make sure that both made the same labels, byte for byte; the loop's are deleted."""
    table = work.open()
    made = [row["label"] for shard in table.files() for row in table.read(shard.key).to_pylist()]
    assert made == [label_path(task).read_bytes() for task in tasks], "the labels of both sides differ"
    for task in tasks:
        label_path(task).unlink()


def spent() -> Spent:
    """What this process and all below it have spent so far."""
    running = family(os.getpid()).values()
    work = {process.pid: process.cpu_s for process in running if process.pid == os.getpid() or is_worker(process)}
    services_s = sum(process.cpu_s for process in running if process.pid not in work)
    return Spent(time.monotonic(), work, services_s)


def is_worker(process: Process) -> bool:
    """Whether a process is an actor of our pool of workers, or of the loop's."""
    return any(mark in process.command for mark in ("ray::MapWorker", "multiprocessing.spawn"))


if __name__ == "__main__":
    command(__doc__, entries)
