"""Two `segray train` of one run: one at a time trains, and one that is told to end saves and leaves the run free."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import pytest

from jobs.training.checkpoints import checkpoint_steps
from jobs.training.holder import require_free
from tests.faults.training import EVERY, Driver, job_of, last_step, recipe_of, start_driver, wait_for

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(400), pytest.mark.xdist_group("ray")]


def test_a_second_driver_is_refused_and_one_that_gets_sigterms_saves_and_leaves_the_run_free(
    dataset: str, tmp_path: Path
) -> None:
    job, run = job_under(tmp_path, dataset), tmp_path / "runs" / "tiny"
    first = start_driver(job, tmp_path / "first.json", environment={})
    wait_for(lambda: (run / "drivers").exists(), what="the first driver", alive=first.is_alive)
    second = start_driver(job, tmp_path / "second.json", environment={})
    assert second.process.wait(timeout=120) == 2
    told = second.log.read_text()
    assert f"{run}: is being trained by process {first.process.pid} on " in told
    assert "let it finish, or stop it and run this again" in told

    wait_for(lambda: last_step(run) > EVERY, what="a checkpoint", alive=first.is_alive)
    while first.is_alive():  # as whoever loses patience does
        first.process.send_signal(signal.SIGTERM)
        time.sleep(0.1)
    ends_in_order(first, run)


def test_one_that_is_told_to_end_saves_another_goes_on_and_saves_at_ctrl_c(dataset: str, tmp_path: Path) -> None:
    job, run = job_under(tmp_path, dataset), tmp_path / "runs" / "tiny"
    for name, number in (("first", signal.SIGTERM), ("next", signal.SIGINT)):
        reached = last_step(run)
        driver = start_driver(job, tmp_path / f"{name}.json", environment={})
        wait_for(lambda done=reached: last_step(run) > done, what="the next step", alive=driver.is_alive)  # type: ignore[misc]
        driver.process.send_signal(number)
        ends_in_order(driver, run)


def job_under(folder: Path, dataset: str) -> dict[str, Any]:
    recipe = recipe_of(steps=1000, brake=folder / "brake")
    return job_of(dataset, folder / "runs", recipe, workers=1)


def ends_in_order(driver: Driver, run: Path) -> None:
    """What whoever has interrupted a driver sees."""
    assert driver.process.wait(timeout=60) == 130
    printed = driver.log.read_text()
    assert "segray: interrupted; run the same command again to continue" in printed
    assert "*** SIGTERM" not in printed
    saved = checkpoint_steps(str(run))[-1]
    assert saved >= last_step(run) - 1, "saved at once, not at the last interval"
    require_free(str(run))
