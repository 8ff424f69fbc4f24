"""Checkpoints: resume equals no interruption, and damage never passes for a checkpoint."""

from __future__ import annotations

import hashlib
import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from jobs.training.plan import TrainPlan
from jobs.training.points import read_points
from jobs.training.resume import (
    DamagedCheckpointError,
    TrainState,
    checkpoint_steps,
    checkpoint_uri,
    load_checkpoint,
    newest_checkpoint,
    prune_checkpoints,
    restore_rng,
    rng_state,
    save_checkpoint,
)
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


def test_the_curve_of_a_resumed_run_has_every_step_once(
    index: SampleIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = random_recipe()
    train_alone(plan_of(index, tmp_path / "straight", recipe, log_every=1))
    plan = plan_of(index, tmp_path / "cut", recipe, log_every=1)
    train_until(plan, 5, monkeypatch)
    train_alone(plan)
    curves = [
        [(point["step"], point["train/loss"], point["train/lr"]) for point in read_points(str(tmp_path / name))]
        for name in ("straight", "cut")
    ]
    assert curves[0] == curves[1]
    assert [step for step, _, _ in curves[1]] == [1, 2, 3, 4, 5, 6]


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


# -- storage ---------------------------------------------------------------------------------------------------------


def save_step(run: Path, step: int) -> str:
    state = TrainState(
        step=step,
        model={"weight": torch.full((40,), float(step)), "norm.running_mean": torch.arange(8.0)},
        stepper={"optimizer": {"state": {0: {"momentum_buffer": torch.ones(40)}}, "param_groups": [{"lr": 0.1}]}},
        rng=[rng_state(CPU)],
        facts={"identity": {"recipe": {"seed": 0}}, "world": 1, "transfer": None},
    )
    return save_checkpoint(str(run), state)


def test_a_checkpoint_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    state = load_checkpoint(save_step(tmp_path, 123))
    assert state.step == 123
    assert torch.equal(state.model["weight"], torch.full((40,), 123.0))
    assert state.stepper["optimizer"]["param_groups"] == [{"lr": 0.1}]
    assert torch.equal(state.stepper["optimizer"]["state"][0]["momentum_buffer"], torch.ones(40))
    assert state.facts == {"identity": {"recipe": {"seed": 0}}, "world": 1, "transfer": None}


@pytest.mark.parametrize("name", ["model.safetensors", "stepper.pt", "trainer.json", "manifest.json"])
def test_one_flipped_bit_anywhere_sends_the_run_back_to_the_checkpoint_before(tmp_path: Path, name: str) -> None:
    good, bad = save_step(tmp_path, 5), save_step(tmp_path, 10)
    path = Path(bad, name)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(50):
        position, bit = int(rng.integers(len(whole))), int(rng.integers(8))
        rotten = bytearray(whole)
        rotten[position] ^= 1 << bit
        path.write_bytes(bytes(rotten))
        reasons: list[str] = []
        assert newest_checkpoint(str(tmp_path), log=reasons.append) == good
        assert len(reasons) == 1
        assert "step-00000010" in reasons[0]
    path.write_bytes(whole)
    assert newest_checkpoint(str(tmp_path), log=print) == bad


@pytest.mark.parametrize("gone", ["manifest.json", "model.safetensors", "trainer.json"])
def test_a_checkpoint_that_was_not_finished_does_not_count(tmp_path: Path, gone: str) -> None:
    good, bad = save_step(tmp_path, 5), save_step(tmp_path, 10)
    Path(bad, gone).unlink()
    assert newest_checkpoint(str(tmp_path), log=print) == good
    with pytest.raises(DamagedCheckpointError):
        load_checkpoint(bad)


def test_a_checkpoint_that_lies_under_another_step_does_not_count(tmp_path: Path) -> None:
    good = save_step(tmp_path, 5)
    Path(good).rename(Path(good).with_name("step-00000007"))
    reasons: list[str] = []
    assert newest_checkpoint(str(tmp_path), log=reasons.append) is None
    assert "manifest.json" in reasons[0]


def test_without_any_checkpoint_there_is_nothing_to_go_on_from(tmp_path: Path) -> None:
    assert newest_checkpoint(str(tmp_path), log=print) is None


def test_a_pickle_bomb_is_never_executed(tmp_path: Path) -> None:
    uri = save_step(tmp_path, 5)
    canary = tmp_path / "canary"
    path = Path(uri, "stepper.pt")
    size, digest = path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest()
    torch.save({"stepper": _Bomb(str(canary)), "rng": []}, path)
    manifest = Path(uri, "manifest.json")
    forged = manifest.read_text().replace(digest, hashlib.sha256(path.read_bytes()).hexdigest())
    manifest.write_text(forged.replace(f": {size}", f": {path.stat().st_size}"))
    with pytest.raises(DamagedCheckpointError, match="more than tensors"):
        load_checkpoint(uri)
    assert not canary.exists()


class _Bomb:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path(self.path),))


def test_only_the_newest_checkpoints_are_kept(index: SampleIndex, tmp_path: Path) -> None:
    train_alone(plan_of(index, tmp_path, random_recipe(), checkpoint_every=1, keep_checkpoints=2))
    assert checkpoint_steps(str(tmp_path)) == [5, 6]


def test_a_folder_of_a_later_step_takes_no_good_checkpoints_place(tmp_path: Path) -> None:
    for step in (900, 1000, 1500):
        save_step(tmp_path, step)
    Path(checkpoint_uri(str(tmp_path), 1500), "manifest.json").unlink()  # killed while it was written
    newest = save_step(tmp_path, 1100)
    prune_checkpoints(str(tmp_path), saved=1100, keep=1)
    assert checkpoint_steps(str(tmp_path)) == [1100]
    assert newest_checkpoint(str(tmp_path), log=print) == newest


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
    assert newest_checkpoint(plan.run, log=print) == checkpoint_uri(plan.run, 4)


def test_nothing_is_pruned_when_the_new_checkpoint_does_not_verify(
    index: SampleIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = storage.write_bytes

    def losing(uri: str, data: bytes) -> None:
        if "step-00000006/manifest" not in uri:
            write(uri, data)

    monkeypatch.setattr(storage, "write_bytes", losing)
    with pytest.raises(DamagedCheckpointError):
        train_alone(plan_of(index, tmp_path, random_recipe(), keep_checkpoints=1))
    assert newest_checkpoint(str(tmp_path), log=print) == checkpoint_uri(str(tmp_path), 3)
