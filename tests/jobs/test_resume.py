"""Resume equals no interruption: an interrupted run ends with the bytes of an undisturbed one."""

from __future__ import annotations

import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from jobs.training.checkpoints import checkpoint_steps, checkpoint_uri, load_checkpoint
from jobs.training.plan import TrainPlan
from jobs.training.points import read_points
from jobs.training.resume import newest_facts
from jobs.training.rng import restore_rng, rng_state
from jobs.training.step import Stepper
from pipelines import storage
from pipelines.samples import Part, SampleIndex, build_index
from seg_models.recipes.recipe import AugmentSpec, OptimizerSpec, Recipe
from tests.jobs.ranks import run_ranks
from tests.jobs.tiny_training import CPU, TINY_PSPNET, TinySpec, plan_of, tiny_recipe, train_alone, train_as_rank
from tests.s3_server import s3_bucket
from tests.tiny_data import write_dataset

__all__ = ["s3_bucket"]


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> SampleIndex:
    root = tmp_path_factory.mktemp("data")
    write_dataset(root, shard_sizes=(6, 7))
    return build_index([Part(dataset=str(root))])


def random_recipe(**changes: Any) -> Recipe:
    """A recipe in which everything that could go wrong at a resume takes part."""
    settings: dict[str, Any] = {
        "model": TinySpec(norm=True, dropout=0.3),
        "augment": AugmentSpec(crop=(24, 24), brightness=0.3),
        "optimizer": OptimizerSpec(lr=0.05, momentum=0.9),
    }
    return tiny_recipe(**(settings | changes))


def weights_of(run: Path, step: int = 6) -> bytes:
    return Path(checkpoint_uri(str(run), step), "model.safetensors").read_bytes()


class PowerCut(Exception):
    """Not an error of the user."""


def train_until(plan: TrainPlan, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train, and die in the step after `step`."""
    real = Stepper.step

    def dying(self: Stepper, batches: Any) -> Tensor:
        if batches[0].step == step:
            raise PowerCut
        return real(self, batches)

    with monkeypatch.context() as patch:
        patch.setattr(Stepper, "step", dying)
        with pytest.raises(PowerCut):
            train_alone(plan)


# -- resume equals no interruption -----------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [3, 4, 5])
def test_an_interrupted_run_ends_with_the_bytes_of_an_undisturbed_one(
    index: SampleIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: int
) -> None:
    recipe = random_recipe()
    train_alone(plan_of(index, tmp_path / "straight", recipe))
    plan = plan_of(index, tmp_path / "cut", recipe)
    train_until(plan, cut, monkeypatch)
    assert checkpoint_steps(plan.run) == [3]
    torch.manual_seed(999)
    _, figures = train_alone(plan)
    assert figures["resumed_from"] == 3
    assert weights_of(tmp_path / "cut") == weights_of(tmp_path / "straight")
    assert weights_of(tmp_path / "cut", 3) == weights_of(tmp_path / "straight", 3)


def test_resume_is_exact_for_pspnet_with_adamw_and_accumulation(
    index: SampleIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe(model=TINY_PSPNET, optimizer=OptimizerSpec(kind="adamw", lr=1e-3), steps=3)
    settings = {"accumulate": 2, "checkpoint_every": 2}
    train_alone(plan_of(index, tmp_path / "straight", recipe, **settings))
    plan = plan_of(index, tmp_path / "cut", recipe, **settings)
    train_until(plan, 2, monkeypatch)
    train_alone(plan)
    assert weights_of(tmp_path / "cut", 3) == weights_of(tmp_path / "straight", 3)


def test_a_run_cut_before_its_first_checkpoint_begins_again(
    index: SampleIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = random_recipe()
    train_alone(plan_of(index, tmp_path / "straight", recipe))
    plan = plan_of(index, tmp_path / "cut", recipe)
    train_until(plan, 2, monkeypatch)
    train_alone(plan)
    assert weights_of(tmp_path / "cut") == weights_of(tmp_path / "straight")


@pytest.mark.cluster
def test_a_run_in_an_object_store_resumes_like_one_on_disk(
    s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_dataset(f"{s3_bucket}/data", shard_sizes=(6, 7))
    index = build_index([Part(dataset=f"{s3_bucket}/data")])
    recipe = random_recipe()
    train_alone(plan_of(index, tmp_path / "straight", recipe))
    plan = plan_of(index, f"{s3_bucket}/runs/cut", recipe)
    train_until(plan, 5, monkeypatch)
    assert [point["step"] for point in read_points(plan.run)] == [2, 4], "what was recorded is not lost with the worker"
    storage.write_bytes(f"{checkpoint_uri(plan.run, 6)}/model.safetensors", b"torn")  # a crash during the next one
    train_alone(plan)
    assert storage.read_bytes(f"{checkpoint_uri(plan.run, 6)}/model.safetensors") == weights_of(tmp_path / "straight")
    assert [point["step"] for point in read_points(plan.run)] == [2, 4, 6]
    assert checkpoint_steps(plan.run) == [3, 6]


Weights = dict[str, Tensor]


def cut_and_continue(rank: int, world: int, plan: TrainPlan, plain: TrainPlan) -> tuple[Weights, Weights, Weights]:
    """Train, throw the last checkpoint away, train again from the one before; and train another plan."""
    straight = train_as_rank(rank, world, plan)
    if rank == 0:
        storage.delete(checkpoint_uri(plan.run, 6))
    torch.distributed.barrier()
    return straight, train_as_rank(rank, world, plan), train_as_rank(rank, world, plain)


def test_resume_is_exact_for_three_workers_who_train_what_one_would(index: SampleIndex, tmp_path: Path) -> None:
    recipe = random_recipe(global_batch=6, lanes=6, model=TinySpec(norm=True, dropout=0.3, width=33))
    plain = recipe.model_copy(update={"model": TinySpec(norm=True)})  # dropout draws differently on three workers
    plans = plan_of(index, tmp_path / "cut", recipe), plan_of(index, tmp_path / "plain", plain)
    alone, _ = train_alone(plan_of(index, tmp_path / "alone", plain))
    for straight, continued, together in run_ranks(cut_and_continue, 3, *plans):
        assert all(torch.equal(straight[name], continued[name]) for name in straight)
        for name, value in alone.state_dict().items():
            torch.testing.assert_close(together[name], value, atol=1e-3, rtol=1e-2)
    curves = [[point["train/loss"] for point in read_points(str(tmp_path / run))] for run in ("plain", "alone")]
    assert curves[0] == pytest.approx(curves[1], rel=1e-2), "the loss that is shown is that of the whole batch"


def test_a_finished_run_takes_no_further_step(
    index: SampleIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(index, tmp_path, random_recipe())
    model, _ = train_alone(plan)
    monkeypatch.setattr(Stepper, "step", None)
    again, figures = train_alone(plan)
    assert figures["resumed_from"] == 6
    assert figures["seconds"] >= load_checkpoint(checkpoint_uri(plan.run, 6)).facts["seconds"] > 0
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(("log_every", "cut"), [(1, 5), (2, 3)])
def test_the_curve_of_a_resumed_run_has_every_step_once_with_the_loss_of_an_undisturbed_one(
    index: SampleIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log_every: int, cut: int
) -> None:
    recipe = random_recipe()
    train_alone(plan_of(index, tmp_path / "straight", recipe, log_every=log_every))
    plan = plan_of(index, tmp_path / "cut", recipe, log_every=log_every)
    train_until(plan, cut, monkeypatch)
    train_alone(plan)
    curves = [
        [(point["step"], point["train/loss"], point["train/lr"]) for point in read_points(str(tmp_path / name))]
        for name in ("straight", "cut")
    ]
    assert curves[0] == curves[1]
    assert [step for step, _, _ in curves[1]] == list(range(log_every, 7, log_every))


def test_random_generators_come_back_to_the_saved_state() -> None:
    torch.manual_seed(1)
    state = pickle.loads(pickle.dumps(rng_state(CPU)))
    draws = [(torch.rand(3), np.random.rand(3), random.random()) for _ in range(2)]  # noqa: NPY002
    restore_rng(state, CPU)
    again = [(torch.rand(3), np.random.rand(3), random.random()) for _ in range(2)]  # noqa: NPY002
    for first, second in zip(draws, again, strict=True):
        assert torch.equal(first[0], second[0])
        assert np.array_equal(first[1], second[1])
        assert first[2] == second[2]


# -- refusals --------------------------------------------------------------------------------------------------------


def test_a_run_of_other_settings_is_refused_with_the_keys_that_differ(index: SampleIndex, tmp_path: Path) -> None:
    train_alone(plan_of(index, tmp_path, random_recipe()))
    other = random_recipe(optimizer=OptimizerSpec(lr=0.02))
    with pytest.raises(ValueError, match=r"recipe\.optimizer\.lr: now 0\.02, there 0\.05"):
        train_alone(plan_of(index, tmp_path, other))


def test_a_run_on_other_data_is_refused(index: SampleIndex, tmp_path: Path) -> None:
    train_alone(plan_of(index, tmp_path / "run", random_recipe()))
    write_dataset(tmp_path / "other", shard_sizes=(5,))
    other = build_index([Part(dataset=str(tmp_path / "other"))])
    with pytest.raises(ValueError, match=r"other settings \(data\.0"):
        train_alone(plan_of(other, tmp_path / "run", random_recipe()))


# -- which are kept --------------------------------------------------------------------------------------------------


def test_only_the_newest_checkpoints_are_kept(index: SampleIndex, tmp_path: Path) -> None:
    train_alone(plan_of(index, tmp_path, random_recipe(), checkpoint_every=1, keep_checkpoints=2))
    assert checkpoint_steps(str(tmp_path)) == [5, 6]


def test_a_resumed_run_that_saves_more_often_keeps_what_it_just_saved(
    index: SampleIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(index, tmp_path, random_recipe(), checkpoint_every=1, keep_checkpoints=1)
    train_until(plan, 3, monkeypatch)
    torn = Path(checkpoint_uri(plan.run, 5))
    torn.mkdir()
    (torn / "model.safetensors").write_bytes(b"torn")
    train_until(plan, 4, monkeypatch)
    assert checkpoint_steps(plan.run) == [4]
    facts = newest_facts(plan.run, log=print)
    assert facts is not None
    assert facts["step"] == 4
