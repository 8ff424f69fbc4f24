"""Machines, drivers and ranks that go in the middle of a training, on a Ray of several nodes."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs.training.groups import read_groups
from seg_models.recipes.recipe import Recipe
from tests.faults.nodes import Nodes, ray_nodes
from tests.faults.training import (
    EVERY,
    SLACK,
    STEPS,
    Driver,
    Recoveries,
    job_of,
    last_step,
    pid_of,
    recipe_of,
    start_driver,
    undisturbed,
    wait_for,
    weights_of,
)

pytestmark = [
    pytest.mark.faults,
    pytest.mark.slow,
    pytest.mark.cluster,
    pytest.mark.timeout(900),
    pytest.mark.xdist_group("ray"),
]


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with ray_nodes() as running:
        yield running


def brake_of(folder: Path) -> Path:
    return folder / "brake"


class Training:
    """A run under way, whose driver may be killed and started again."""

    def __init__(self, recipe: Recipe, folder: Path, dataset: str, nodes: Nodes, **changes: Any) -> None:
        self._job = job_of(dataset, folder / "runs", recipe, **changes)
        self._folder, self._nodes = folder, nodes
        self.run = folder / "runs" / "tiny"
        self.recoveries = Recoveries(self.run)
        self.driver: Driver = self._start()

    def at(self, step: int) -> None:
        """Wait until a step is recorded."""
        wait_for(lambda: last_step(self.run) >= step, what=f"step {step}", alive=self.driver.is_alive)

    def node_of(self, rank: int) -> str:
        """The node of a rank, empty for the head."""
        return self._nodes.node_of(pid_of(self.run, rank))

    def kill_driver(self) -> None:
        """Kill -9 of the driver, and the same command again."""
        os.kill(self.driver.process.pid, signal.SIGKILL)
        self.driver.process.wait()
        self.driver = self._start()

    def finish(self) -> str:
        """Take the brake away and wait for a good end; what was printed."""
        brake_of(self._folder).unlink()
        return self.driver.finish()

    def _start(self) -> Driver:
        return start_driver(self._job, self._folder / "job.json", environment=self._nodes.environment)


def test_notices_are_saved_in_and_no_step_is_done_twice(
    dataset: str, tmp_path: Path, nodes: Nodes, calm: bytes, tell: Callable[[str], None]
) -> None:
    recipe = recipe_of(steps=STEPS, brake=brake_of(tmp_path))
    nodes.fill(3)
    training = Training(recipe, tmp_path, dataset, nodes)
    recoveries, run, alive = training.recoveries, training.run, lambda: training.driver.is_alive()
    training.at(8)
    recoveries.after("SIGTERM to rank 1", lambda: os.kill(pid_of(run, 1), signal.SIGTERM), alive=alive)
    training.at(22)
    rank = 0 if training.node_of(0) else 1
    node = training.node_of(rank)
    recoveries.after(f"drain of rank {rank}'s node", lambda: nodes.drain(node, seconds=30), alive=alive)
    printed = training.finish()
    tell(recoveries.table())
    assert recoveries.redone() == [0, 0]
    assert "(SIGTERM), saved; going on elsewhere" in printed
    assert "is taken away), saved; going on elsewhere" in printed
    assert weights_of(run) == calm


def test_a_killed_node_and_a_killed_driver_leave_the_bytes_of_an_undisturbed_run(
    dataset: str, tmp_path: Path, nodes: Nodes, calm: bytes, tell: Callable[[str], None]
) -> None:
    recipe = recipe_of(steps=STEPS, brake=brake_of(tmp_path))
    nodes.fill(3)
    training = Training(recipe, tmp_path, dataset, nodes)
    recoveries, alive = training.recoveries, lambda: training.driver.is_alive()
    training.at(8)
    rank = 0 if training.node_of(0) else 1
    node = training.node_of(rank)
    recoveries.after(f"node of rank {rank} killed", lambda: nodes.kill(node), alive=alive)
    training.at(23)
    recoveries.after("driver killed", training.kill_driver, alive=alive)
    training.finish()
    tell(recoveries.table())
    assert max(recoveries.redone()) <= EVERY + SLACK
    assert weights_of(training.run) == calm


def test_three_ranks_whose_gradients_are_added_in_order_lose_one_and_end_with_equal_bytes(
    dataset: str, tmp_path: Path, nodes: Nodes, tell: Callable[[str], None]
) -> None:
    recipe = recipe_of(steps=25, brake=brake_of(tmp_path))
    nodes.fill(3)
    training = Training(recipe, tmp_path, dataset, nodes, workers=3, reduce="ordered")
    recoveries, run, alive = training.recoveries, training.run, lambda: training.driver.is_alive()
    training.at(8)
    recoveries.after("rank 1 of 3 killed", lambda: os.kill(pid_of(run, 1), signal.SIGKILL), alive=alive)
    training.finish()
    tell(recoveries.table())
    assert max(recoveries.redone()) <= EVERY + SLACK
    assert weights_of(run) == undisturbed(dataset, tmp_path / "calm", recipe, world=3)


def test_an_elastic_group_goes_on_smaller_when_a_node_is_lost_and_grows_without_doing_a_step_twice(
    dataset: str, tmp_path: Path, nodes: Nodes, tell: Callable[[str], None]
) -> None:
    training = elastic_training(dataset, tmp_path, nodes)
    recoveries, alive = training.recoveries, lambda: training.driver.is_alive()
    rank = 0 if training.node_of(0) else 1
    node = training.node_of(rank)
    recoveries.after(f"node of rank {rank} lost", lambda: nodes.kill(node), alive=alive)
    training.at(last_step(training.run) + 5)
    recoveries.after("node added", lambda: nodes.fill(2, cpus=2), alive=alive)
    training.at(last_step(training.run) + 5)
    training.finish()
    tell(recoveries.table())
    assert sizes(training.run)[-3:] == [2, 1, 2]
    assert max(recoveries.redone()) <= EVERY + SLACK
    assert recoveries.redone()[1] == 0, "a healthy group saves before it is taken apart"


def test_an_elastic_group_whose_driver_is_killed_goes_on_in_full_size(
    dataset: str, tmp_path: Path, nodes: Nodes, tell: Callable[[str], None]
) -> None:
    training = elastic_training(dataset, tmp_path, nodes)
    recoveries, alive = training.recoveries, lambda: training.driver.is_alive()
    recoveries.after("driver killed", training.kill_driver, alive=alive)
    training.finish()
    tell(recoveries.table())
    assert sizes(training.run)[-2:] == [2, 2]
    assert recoveries.rows[-1][3] < 90, "Ray reserves for a killed driver for three minutes"
    assert max(recoveries.redone()) <= EVERY + SLACK


def elastic_training(dataset: str, folder: Path, nodes: Nodes) -> Training:
    """A run of one or two workers, when two have done eight steps."""
    recipe = recipe_of(steps=300, brake=brake_of(folder))
    nodes.fill(0)
    nodes.fill(2, cpus=2)  # workers take two each, so that the head has no room for one
    training = Training(recipe, folder, dataset, nodes, workers={"min": 1, "max": 2, "look_every_s": 2})
    # Where Ray has not seen both nodes yet, one begins alone.
    wait_for(lambda: sizes(training.run)[-1:] == [2], what="a group of two", alive=training.driver.is_alive)
    training.at(last_step(training.run) + 8)
    return training


def sizes(run: Path) -> list[int]:
    return [len(group["workers"]) for group in read_groups(str(run))]
