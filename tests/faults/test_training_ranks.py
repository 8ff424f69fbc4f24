"""Ranks killed in the middle of a training: the run ends with the bytes of one that nobody interfered with."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs import train
from jobs.specs import TrainJob
from tests.faults.training import (
    EVERY,
    SLACK,
    STEPS,
    Recoveries,
    job_of,
    last_step,
    pid_of,
    recipe_of,
    wait_for,
    weights_of,
)


def train_beside(job: dict[str, Any], interfere: Callable[[Callable[[], bool]], None]) -> dict[str, Any]:
    """Train, while `interfere` does its worst in a thread."""
    ended, failures = threading.Event(), []

    def work() -> None:
        try:
            interfere(lambda: not ended.is_set())
        except BaseException as error:  # handed to the test
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        return train.run(TrainJob.model_validate(job))
    finally:
        ended.set()
        thread.join()
        if failures:
            raise failures[0]


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("ray_local")
def test_a_rank_killed_at_a_random_step_five_times_leaves_the_bytes_of_an_undisturbed_run(
    dataset: str, tmp_path: Path, calm: bytes, tell: Callable[[str], None]
) -> None:
    recipe, draw = recipe_of(steps=STEPS, brake=tmp_path / "brake"), random.Random(5)
    run = tmp_path / "runs" / "tiny"
    recoveries = Recoveries(run)

    def kill_five_times(alive: Callable[[], bool]) -> None:
        for kill in range(5):
            step, rank = 7 * kill + draw.randint(3, 9), draw.randint(0, 1)
            wait_for(lambda step=step: last_step(run) >= step, what=f"step {step}", alive=alive)  # type: ignore[misc]
            recoveries.after(f"rank {rank} killed", lambda rank=rank: kill_rank(run, rank), alive=alive)  # type: ignore[misc]
        (tmp_path / "brake").unlink()

    result = train_beside(job_of(dataset, tmp_path / "runs", recipe), kill_five_times)
    tell(recoveries.table())
    assert len(result["groups"]) == 6
    assert max(recoveries.redone()) <= EVERY + SLACK
    assert weights_of(run) == calm


def kill_rank(run: Path, rank: int) -> None:
    os.kill(pid_of(run, rank), signal.SIGKILL)
