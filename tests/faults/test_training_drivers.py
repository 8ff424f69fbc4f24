"""Two `segray train` of one run: one at a time trains, and one that is told to end saves and leaves the run free."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from jobs.training.checkpoints import checkpoint_steps
from jobs.training.holder import require_free
from tests.faults.training import EVERY, Driver, job_of, last_step, recipe_of, start_driver, wait_for
from tests.tiny_data import write_dataset


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.xdist_group("ray")
def test_a_second_driver_is_refused_and_one_that_is_told_to_end_saves_and_leaves_the_run_free(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "data", shard_sizes=(6, 6))
    recipe = recipe_of(steps=1000, brake=tmp_path / "brake")
    job = job_of(dataset.root, tmp_path / "runs", recipe, workers=1)
    run = tmp_path / "runs" / "tiny"
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

    reached = last_step(run)
    third = start_driver(job, tmp_path / "third.json", environment={})
    wait_for(lambda: last_step(run) > reached, what="the next step", alive=third.is_alive)
    third.process.send_signal(signal.SIGINT)
    ends_in_order(third, run)


def ends_in_order(driver: Driver, run: Path) -> None:
    """What whoever has interrupted a driver sees."""
    assert driver.process.wait(timeout=60) == 130
    printed = driver.log.read_text()
    assert "segray: interrupted; run the same command again to continue" in printed
    assert "*** SIGTERM" not in printed
    saved = checkpoint_steps(str(run))[-1]
    assert saved >= last_step(run) - 1, "saved at once, not at the last interval"
    require_free(str(run))
