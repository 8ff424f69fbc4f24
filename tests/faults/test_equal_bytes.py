"""One plan, equal bytes: whatever the number of actors, of images fetched at once, and of actors killed."""

from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs.pssl import plan_work
from jobs.specs import PsslJob
from pipelines.label_run import ImageShard
from pipelines.pssl import PsslWork, run_pssl
from pipelines.pssl_worker import PsslWorker
from pipelines.schema import Receipt
from pipelines.shards import ComputeSpec
from pipelines.tables import Dataset, Table
from tests.faults.labelling import settings, write_dataset, write_weights
from tests.faults.training import wait_for

SHARDS, ROWS, SAMPLES = 6, 8, 8


class Mortal(PsslWorker):
    """A worker that begins when there are two, and waits with its second shard in hand until one that waits is killed.

    folder/pids/     a file for each process that was a worker
    folder/waiting/  a file for each that waits
    folder/killed    there when one was killed
    """

    def __init__(self, *, folder: str, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._folder, self._shards = Path(folder), 0
        (self._folder / "pids" / str(os.getpid())).touch()
        wait(lambda: len(names(self._folder / "pids")) >= 2, what="two workers")

    def __call__(self, shard: ImageShard) -> Receipt:
        """Label a shard."""
        self._shards += 1
        if self._shards == 2:
            (self._folder / "waiting" / str(os.getpid())).touch()
            wait((self._folder / "killed").exists, what="a killed worker")
        return super().__call__(shard)


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def wait(happened: Callable[[], bool], *, what: str) -> None:
    wait_for(happened, what=what, alive=lambda: True, seconds=60)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("equal")
    write_dataset(str(folder / "data"), shards=SHARDS, rows=ROWS)
    write_weights(folder)
    return folder


def planned(base: Path, name: str, *, samples: int = SAMPLES, **compute: Any) -> tuple[PsslWork, ComputeSpec]:
    """A label set of that name to be written, three images at once, with a quarter of a CPU an actor."""
    table = settings(str(base / "data"), base / "classifier.safetensors", samples=samples, chunk=3 * samples, **compute)
    job = PsslJob.model_validate(table | {"labels": name})
    return plan_work(job), job.compute.model_copy(update={"cpus": 0.25})


def labels(base: Path, name: str, **compute: Any) -> Table:
    work, spec = planned(base, name, **compute)
    result = run_pssl(work, compute=spec)
    assert (result.labelled, result.rejected) == (SHARDS * ROWS - 2, 2)
    assert result.actors == spec.actors
    return work.open()


@pytest.fixture(scope="module")
def calm(base: Path, ray_local: None) -> Table:
    """Labels made by one actor that decodes one image ahead."""
    return labels(base, "calm", actors=1, fetch=1)


@pytest.mark.faults
@pytest.mark.usefixtures("ray_local")
@pytest.mark.parametrize(
    ("actors", "fetch"),
    [(3, 8), *(pytest.param(*pair, marks=pytest.mark.slow) for pair in ((1, 8), (2, 1), (2, 8), (3, 1)))],
)
def test_labels_are_equal_bytes_whatever_the_actors_and_the_images_fetched_at_once(
    base: Path, calm: Table, actors: int, fetch: int
) -> None:
    found = labels(base, f"set-{actors}-{fetch}", actors=actors, fetch=fetch)
    assert found.info["plan"] == calm.info["plan"]
    assert found.label_digest() == calm.label_digest()
    assert found.files() == calm.files()  # names are SHA-256: equal Parquet files


@pytest.mark.faults
@pytest.mark.usefixtures("ray_local")
def test_labels_are_equal_bytes_with_an_actor_killed(base: Path, calm: Table) -> None:
    folder = base / "mortal"
    for name in ("pids", "waiting"):
        (folder / name).mkdir(parents=True)
    work, spec = planned(base, "killed", actors=2, fetch=8)
    work = dataclasses.replace(work, worker=Mortal, worker_args={**work.worker_args, "folder": str(folder)})
    killed: list[str] = []

    def kill(numbers: dict[str, float], done: int) -> None:
        if not killed:
            wait(lambda: bool(names(folder / "waiting")), what="a worker that waits")
            killed.append(names(folder / "waiting")[0])
            os.kill(int(killed[0]), signal.SIGKILL)
            (folder / "killed").touch()

    result = run_pssl(work, compute=spec, on_progress=kill)
    assert len(killed) == 1
    assert len(names(folder / "pids")) >= 3  # somebody took its place, and its shard
    assert result.labelled == SHARDS * ROWS - 2
    found = Dataset.open(str(base / "data")).labels("killed")
    assert found.files() == calm.files()
    assert found.label_digest() == calm.label_digest()
