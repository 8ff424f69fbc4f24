"""Two `segray train` of one run: one at a time trains, and one that is told to end saves and leaves the run free."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from jobs.training.checkpoints import checkpoint_steps
from jobs.training.holder import require_free
from tests.faults.training import EVERY, job_of, last_step, recipe_of, start_driver, wait_for
from tests.tiny_data import write_dataset


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.timeout(400)
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
    for _ in range(2):  # as whoever loses patience does
        first.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
    assert first.process.wait(timeout=60) == 130
    printed = first.log.read_text()
    assert "segray: interrupted; run the same command again to continue" in printed
    assert "*** SIGTERM" not in printed
    saved = checkpoint_steps(str(run))[-1]
    assert saved >= last_step(run) - 1, "saved at once, not at the last interval"
    require_free(str(run))
