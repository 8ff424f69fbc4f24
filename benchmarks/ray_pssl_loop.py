"""PSSL on Ray against a hand-written multiprocessing loop with the same kernels: images per CPU-second.

    SEGRAY_DATA=../shared/data python -m benchmarks.ray_pssl_loop

Both label the same photographs with the same two classifiers in one worker process; the labels are equal bytes. Ours
hands addresses of shards to Ray Data, its worker reads them and writes a Parquet file each, the driver commits. The
loop is a `multiprocessing.Pool` that reads JPEG files and writes label files. Counted is the CPU time of driver and
workers between the result of the first shard and that of the last one, so that starting up is no part of it. What Ray's
own services (scheduler, object store, logs) burn beside that is printed apart.
"""

from __future__ import annotations

import csv
import os
import shutil
import tempfile
import time
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.measure import Effort, Entries, Skipped, command, median_pair
from benchmarks.processes import PROC, Process, family
from jobs.cluster import ray_session
from pipelines.codecs import encode_label
from pipelines.images import decode_image
from pipelines.ingest import ingest
from pipelines.ingest_plan import plan_ingest
from pipelines.labels import LabelSpace
from pipelines.pssl import PsslWork, plan_pssl, run_pssl
from pipelines.pssl_plan import LabelPlan, build_ensemble
from pipelines.pssl_spec import EnsembleSpec, PsslSpec
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
ONE_WORKER = ComputeSpec(actors=1)


class Task(NamedTuple):
    """An image file to label."""

    path: Path
    image_id: str
    class_index: int


@dataclass(frozen=True)
class Moment:
    """CPU-seconds spent until a number of images was done."""

    images: int
    wall_s: float
    work: dict[int, float]
    """Of the driver and of each worker, by process id."""
    services_s: float


@dataclass(frozen=True)
class Cost:
    """What the images between two moments cost."""

    images_per_cpu_s: float
    service_cores: float
    """Cores kept busy by everything that is neither driver nor worker."""


def entries(effort: Effort) -> Entries:
    """Whole runs of ours and of the loop in turns."""
    data = Path(os.environ.get("SEGRAY_DATA", "../shared/data"))
    for needed in (PROC / "self/stat", data / "images/imagenet-sample-1000", data / "weights/imagenet-classifiers"):
        if not needed.exists():
            return {"ray_pssl_loop": Skipped(f"needs {needed}")}
    shard_images, num_images = (2, 6) if effort.tiny else (16, 128)
    with tempfile.TemporaryDirectory() as folder:
        root, tasks = prepare(data, Path(folder), num_images=num_images, shard_images=shard_images)
        pairs = []
        for number in range(effort.pairs):
            work = plan(root, data, labels=f"run{number}")
            pairs.append((ours(work), loop(work, tasks, moment_every=shard_images)))
            check_equal(work, tasks)
    rates = [(first.images_per_cpu_s, second.images_per_cpu_s) for first, second in pairs]
    services = max(first.service_cores for first, _ in pairs)
    note = f"beside it Ray's services burn {services:.3f} cores"
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
    with ray_session(ONE_WORKER):
        ingest(settings, compute=ONE_WORKER)
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
    return plan_pssl(root, labels=labels, pssl=SETTINGS, ensemble=chosen, compute=ONE_WORKER)


def ours(work: PsslWork) -> Cost:
    """The label set made on a local Ray."""
    moments: list[Moment] = []
    with ray_session(ONE_WORKER):
        run_pssl(work, compute=ONE_WORKER, on_progress=lambda _, images: moments.append(moment(images)))
    return cost(moments)


def loop(work: PsslWork, tasks: list[Task], *, moment_every: int) -> Cost:
    """The same labels by a pool of one process."""
    moments: list[Moment] = []
    given = work.worker_args
    with get_context("spawn").Pool(1, start_worker, (given["plan"], given["classifiers"], given["space"])) as pool:
        for images, _ in enumerate(pool.imap(label_file, tasks), 1):
            if images % moment_every == 0:
                moments.append(moment(images))
    return cost(moments)


class _Worker(NamedTuple):
    ensemble: Ensemble
    space: LabelSpace


_worker: list[_Worker] = []  # what a process of the pool holds


def start_worker(label_plan: LabelPlan, classifiers: tuple[ClassifierSpec, ...], space: LabelSpace) -> None:
    """Build the ensemble in a process of the pool."""
    torch.set_num_threads(label_plan.threads)
    _worker.append(_Worker(build_ensemble(label_plan, classifiers), space))


def label_file(task: Task) -> None:
    """Label one image file; the label is written beside it."""
    ensemble, space = _worker[0]
    image = decode_image(task.path.read_bytes())
    (found,) = ensemble.scores([Query(image, task.class_index, task.image_id)])
    scores = found.scores
    assert scores is not None
    assert space.background is not None
    label = pseudo_label(scores.numpy(), class_index=task.class_index, background=space.background, dtype=space.dtype)
    label_path(task).write_bytes(encode_label(label))


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


def moment(images: int) -> Moment:
    """What this process and all below it have spent so far."""
    running = family(os.getpid()).values()
    workers = [process for process in running if process.pid == os.getpid() or is_worker(process)]
    services = sum(process.cpu_s for process in running) - sum(process.cpu_s for process in workers)
    return Moment(images, time.monotonic(), {process.pid: process.cpu_s for process in workers}, services)


def is_worker(process: Process) -> bool:
    """Whether a process is one of Ray's workers or one of the pool's."""
    return any(mark in process.command for mark in ("ray::", "default_worker.py", "multiprocessing.spawn"))


def cost(moments: list[Moment]) -> Cost:
    """From the first moment to the last."""
    first, last = moments[0], moments[-1]
    cpu_s = sum(spent - first.work.get(pid, 0.0) for pid, spent in last.work.items())
    services = (last.services_s - first.services_s) / (last.wall_s - first.wall_s)
    return Cost((last.images - first.images) / cpu_s, services)


if __name__ == "__main__":
    command(__doc__, entries)
