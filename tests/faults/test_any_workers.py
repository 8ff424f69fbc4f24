"""The same samples in every step, and the same training, with one, two and four workers, also within one run."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from jobs.training.checkpoints import checkpoint_uri
from jobs.training.loop import train
from jobs.training.plan import TrainPlan, Worker
from jobs.training.points import FILE as METRICS
from jobs.training.points import read_points
from jobs.training.step import Stepper
from pipelines import storage
from pipelines.batch_plan import Batch
from pipelines.samples import Part, SampleIndex, build_index
from seg_models.recipes.recipe import OptimizerSpec, Recipe
from tests.jobs.ranks import run_ranks
from tests.jobs.tiny_training import CPU, TinySpec, plan_of, tiny_recipe, with_centroids
from tests.tiny_data import write_dataset

STEPS, BATCH = 21, 4
BY_CLASS = {"class_uniform": {"share": 0.5, "tile": 12, "until": 0.7}}
SAMPLINGS: list[Any] = [{}, pytest.param(BY_CLASS, marks=pytest.mark.slow)]
Told = dict[int, list[str]]
"""Ids by step."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_dataset(folder / "a", shard_sizes=(5, 4, 3))
    write_dataset(folder / "b", shard_sizes=(2, 8))
    return folder


@pytest.mark.faults
@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["every row", "by class and weight"])
def test_one_two_and_four_workers_and_a_run_that_changes_them_train_alike(
    folder: Path, tmp_path: Path, sampling: dict[str, Any]
) -> None:
    index = parts(folder, weights=(2.0, 1.0)) if sampling else parts(folder, weights=(None,))
    recipe = tiny_recipe(
        model=TinySpec(norm=True),
        optimizer=OptimizerSpec(lr=0.05, momentum=0.5),
        sampling=sampling,
        steps=STEPS,
        global_batch=BATCH,
        lanes=4,
    )
    alone = run(1, index, tmp_path / "1", recipe)
    assert [len(ids) for ids in alone.values()] == [BATCH] * STEPS
    two, four = (run(world, index, tmp_path / str(world), recipe) for world in (2, 4))
    changing = four_two_four(index, tmp_path / "changing", recipe)
    assert two == four == changing == alone
    if not sampling:
        each_id_once_per_epoch(alone, num_ids=index.num_samples)
    losses = {name: read_losses(tmp_path / name) for name in ("1", "2", "4", "changing")}
    assert [step for step, _ in losses["1"]] == list(range(1, STEPS + 1))
    assert losses["1"][-1][1] < losses["1"][0][1], "it learns"
    for name in ("2", "4", "changing"):
        for (step, found), (_, expected) in zip(losses[name], losses["1"], strict=True):
            assert found == pytest.approx(expected, rel=1e-4), f"{name} workers, step {step}"


def parts(folder: Path, *, weights: Sequence[float | None]) -> SampleIndex:
    """An index of as many parts as there are weights, with the centroids of its labels."""
    index = build_index(
        [Part(dataset=str(folder / name), weight=weight) for name, weight in zip("ab", weights, strict=False)]
    )
    return with_centroids(index, tile_px=12)


def run(world: int, index: SampleIndex, root: Path, recipe: Recipe) -> Told:
    """Train as `world` processes to the end; the ids of each step that was taken, rank by rank in turn."""
    plan = plan_of(index, root, recipe, checkpoint_every=7, keep_checkpoints=9, log_every=1)
    told = [train_and_tell(0, 1, plan)] if world == 1 else run_ranks(train_and_tell, world, plan)
    return {step: [an_id for ids in zip(*(of[step] for of in told), strict=True) for an_id in ids] for step in told[0]}


def train_and_tell(rank: int, world: int, plan: TrainPlan) -> Told:
    """Train as one worker; the ids of its share of each step."""
    told: Told = defaultdict(list)
    real = Stepper.step

    def step(self: Stepper, batches: Sequence[Batch]) -> Any:
        for batch in batches:
            told[batch.step] += batch.ids
        return real(self, batches)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Stepper, "step", step)
        train(plan, Worker(rank=rank, world=world, device=CPU))
    return dict(told)


def four_two_four(index: SampleIndex, root: Path, recipe: Recipe) -> Told:
    """One run: seven steps with four workers, seven with two, seven with four again."""
    first = run(4, index, root, recipe)
    forget(root, after=7)
    second = run(2, index, root, recipe)
    assert list(second) == list(range(7, STEPS))
    forget(root, after=14)
    third = run(4, index, root, recipe)
    assert list(third) == list(range(14, STEPS))
    return {**only(first, range(7)), **only(second, range(7, 14)), **third}


def forget(root: Path, *, after: int) -> None:
    """Take the run back to a step, as if its workers had gone there and their machine with its curve were lost."""
    (root / METRICS).unlink()
    for step in (14, STEPS):
        if step > after:
            storage.delete(checkpoint_uri(str(root), step))


def only(told: Mapping[int, list[str]], steps: range) -> Told:
    return {step: told[step] for step in steps}


def each_id_once_per_epoch(told: Told, *, num_ids: int) -> None:
    everything = [an_id for ids in told.values() for an_id in ids]
    for first in range(0, len(everything) - num_ids + 1, num_ids):
        assert set(Counter(everything[first : first + num_ids]).values()) == {1}
        assert len(set(everything[first : first + num_ids])) == num_ids


def read_losses(root: Path) -> list[tuple[int, float]]:
    return [(point["step"], point["train/loss"]) for point in read_points(str(root)) if "train/loss" in point]
