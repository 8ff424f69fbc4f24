"""Two `segray pssl` on one label set at the same time: one completes, the other says so and stops."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest

from jobs.pssl import plan_work
from jobs.specs import PsslJob
from tests.faults.labelling import printed, settings, start, write_dataset, write_weights

SHARDS = 4


@pytest.mark.faults
@pytest.mark.timeout(400)
@pytest.mark.parametrize("engine", ["inline", pytest.param("ray", marks=pytest.mark.slow)])
def test_of_two_drivers_started_at_once_one_completes_and_the_other_says_so_and_fails(
    tmp_path: Path, engine: Literal["ray", "inline"]
) -> None:
    weights = write_weights(tmp_path)
    calm, shared = (write_dataset(str(tmp_path / name), shards=SHARDS) for name in ("calm", "shared"))
    job = settings(shared.root, weights, samples=4)
    plan_work(PsslJob.model_validate(job)).open()  # both continue a label set that is there
    (tmp_path / "gate").mkdir()
    files = [tmp_path / "first.json", tmp_path / "second.json"]
    drivers = [start(job, file, gate=tmp_path / "gate", engine=engine) for file in files]
    ends = {driver.wait(timeout=180): file for driver, file in zip(drivers, files, strict=True)}
    assert set(ends) == {0, 1}, [printed(file)[-2000:] for file in files]
    errors = [line for line in printed(ends[1]).splitlines() if "error" in line]
    assert len(errors) == 1, printed(ends[1])[-2000:]
    assert errors[0].endswith("another job is writing to this table; let it finish, or stop it, then run this again")
    alone = start(settings(calm.root, weights, samples=4), tmp_path / "calm.json", engine="inline")
    assert alone.wait(timeout=180) == 0
    found = shared.labels("pssl")
    assert found.files() == calm.labels("pssl").files()  # each shard once, or `files` raises
    stored = [path.relative_to(found.uri).as_posix() for path in Path(found.uri).rglob("*.parquet")]
    assert sorted(stored) == sorted(file.path for file in found.files())
