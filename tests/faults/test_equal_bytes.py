"""One plan, equal bytes: whatever the number of actors, of images fetched at once, and of actors killed."""

from __future__ import annotations

import dataclasses
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from jobs.pssl import plan_work
from jobs.specs import PsslJob
from pipelines.pssl import PsslWork, run_pssl
from pipelines.pssl_worker import PsslWorker
from pipelines.shards import ComputeSpec
from pipelines.tables import Dataset, Table
from tests.faults.labelling import settings, write_dataset, write_weights

SHARDS, ROWS, SAMPLES = 6, 8, 8


class Mortal(PsslWorker):
    """A worker that says which process it is, and begins when there are two: each has work when one is killed."""

    def __init__(self, *, pids: str, **arguments: Any) -> None:
        super().__init__(**arguments)
        (Path(pids) / str(os.getpid())).touch()
        deadline = time.monotonic() + 60
        while len(list(Path(pids).iterdir())) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)


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
    pids = base / "pids"
    pids.mkdir()
    work, spec = planned(base, "killed", actors=2, fetch=8)
    work = dataclasses.replace(work, worker=Mortal, worker_args={**work.worker_args, "pids": str(pids)})
    killed: list[str] = []

    def kill(numbers: dict[str, float], done: int) -> None:
        if not killed:  # after the first shard; the pool has work in flight
            killed.extend(path.name for path in list(pids.iterdir())[:1])
            os.kill(int(killed[0]), signal.SIGKILL)

    result = run_pssl(work, compute=spec, on_progress=kill)
    assert len(killed) == 1
    assert len(list(pids.iterdir())) >= 3  # somebody took its place
    assert result.labelled == SHARDS * ROWS - 2
    found = Dataset.open(str(base / "data")).labels("killed")
    assert found.files() == calm.files()
    assert found.label_digest() == calm.label_digest()
