"""FSDP: several workers that hold a part of the network each train the network that whole copies would."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from jobs.training.checkpoints import checkpoint_uri, load_checkpoint
from jobs.training.plan import TrainPlan
from jobs.training.points import read_points
from jobs.training.sharding import units
from pipelines import storage
from pipelines.samples import Part, SampleIndex, build_index
from seg_models.models import change_spec
from seg_models.recipes.recipe import AugmentSpec, EmaSpec, OptimizerSpec, Recipe
from seg_models.spec import preset
from tests.jobs.ranks import run_ranks
from tests.jobs.tiny_training import TINY_PSPNET, TinySpec, plan_of, tiny_recipe, train_alone, train_as_rank
from tests.tiny_data import write_dataset

ADAMW = OptimizerSpec(kind="adamw", lr=1e-3, clip_grad_norm=0.1, head_lr_factor=2.0)
SGD = OptimizerSpec(lr=0.05, clip_grad_norm=0.1)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> SampleIndex:
    root = tmp_path_factory.mktemp("data")
    write_dataset(root, shard_sizes=(6, 6))
    return build_index([Part(dataset=str(root))])


def recipe_of(model: Any, **changes: Any) -> Recipe:
    crop = AugmentSpec(crop=(64, 64), scale=(1.0, 1.0))
    return tiny_recipe(**({"model": model, "steps": 2, "augment": crop, "optimizer": SGD} | changes))


def train_all(rank: int, world: int, plans: list[TrainPlan]) -> list[dict[str, Tensor]]:
    return [train_as_rank(rank, world, plan) for plan in plans]


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close({name: found[name]}, {name: value}, atol=2e-5, rtol=2e-3)


@pytest.mark.timeout(300)
def test_sharded_training_ends_with_the_weights_of_replicated_training(index: SampleIndex, tmp_path: Path) -> None:
    recipes = {
        "pspnet": recipe_of(TINY_PSPNET, ema=EmaSpec(decay=0.5)),
        "own statistics": recipe_of(TinySpec(norm=True), sync_batch_norm=False, steps=4),
        "attention": recipe_of(preset("ccnet_resnet10t_narrow")),
        "transformer": recipe_of(
            change_spec(preset("segformer_mit_b0"), {"backbone": {"model_kwargs": {"depths": [1, 1, 1, 1]}}}),
            optimizer=ADAMW,
            augment=AugmentSpec(crop=(32, 32), scale=(1.0, 1.0)),
        ),
    }
    how: dict[str, dict[str, Any]] = {"pspnet": {"accumulate": 2}, "own statistics": {"precision": "fp16"}}
    plans = [
        plan_of(index, tmp_path / f"{name} {parallel}", recipe, parallel=parallel, **how.get(name, {}))
        for name, recipe in recipes.items()
        for parallel in ("ddp", "fsdp")
    ]
    first, second = run_ranks(train_all, 2, plans)
    for plan, ours, theirs in zip(plans, first, second, strict=True):
        shared = [name for name in ours if plan.recipe.sync_batch_norm or "running" not in name]
        assert all(torch.equal(ours[name], theirs[name]) for name in shared), "the result is whole on every worker"
    for replicated, sharded in zip(first[::2], first[1::2], strict=True):
        assert_close(sharded, replicated)
    for name in recipes:
        norms = [read_points(str(tmp_path / f"{name} {way}"))[-1]["train/gradient_norm"] for way in ("ddp", "fsdp")]
        assert norms[1] == pytest.approx(norms[0], rel=1e-3), "the norm is that of the whole gradient"
    saved = load_checkpoint(checkpoint_uri(str(tmp_path / "transformer fsdp"), 2))
    whole = load_checkpoint(checkpoint_uri(str(tmp_path / "transformer ddp"), 2))
    assert json.dumps(_shapes(saved.stepper)) == json.dumps(_shapes(whole.stepper)), "checkpoints hold whole tensors"
    assert_close(dict(saved.model), dict(whole.model))


def _shapes(value: Any) -> Any:
    if isinstance(value, Tensor):
        return list(value.shape)
    if isinstance(value, dict):
        return {str(key): _shapes(one) for key, one in value.items()}
    return [_shapes(one) for one in value] if isinstance(value, list | tuple) else str(type(value))


def cut_and_continue(rank: int, world: int, plan: TrainPlan) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Train, throw the last checkpoint away, train again from the one before."""
    straight = train_as_rank(rank, world, plan)
    if rank == 0:
        storage.delete(checkpoint_uri(plan.run, plan.recipe.steps))
    torch.distributed.barrier()
    return straight, train_as_rank(rank, world, plan)


@pytest.mark.parametrize("world", [2, 3])
def test_a_sharded_run_that_was_cut_ends_with_the_bits_of_an_undisturbed_one(
    index: SampleIndex, tmp_path: Path, world: int
) -> None:
    recipe = tiny_recipe(
        model=TinySpec(norm=True, dropout=0.3, width=33),
        optimizer=ADAMW,
        ema=EmaSpec(decay=0.9),
        global_batch=6,
        lanes=6,
    )
    plan = plan_of(index, tmp_path, recipe, parallel="fsdp")
    for straight, continued in run_ranks(cut_and_continue, world, plan):
        assert all(torch.equal(straight[name], continued[name]) for name in straight)
    if world == 3:
        return
    storage.delete(checkpoint_uri(plan.run, 6))  # one worker goes on with what two began, and holds all of it
    plain = recipe.model_copy(update={"model": TinySpec(norm=True, dropout=0.3, width=33)})
    alone, figures = train_alone(plan_of(index, tmp_path, plain, parallel="fsdp"))
    assert figures["resumed_from"] == 3
    assert alone.state_dict().keys() == straight.keys()


def test_blocks_in_a_row_are_units_and_small_ones_are_not() -> None:
    model = preset("segformer_mit_b0").build(3)
    blocks = {name for name, module in model.named_modules() for unit in units(model) if module is unit}
    assert {name.rpartition(".")[0] for name in blocks} >= {"backbone.network.block4"}
    assert all(sum(p.numel() for p in model.get_submodule(name).parameters()) >= 100_000 for name in blocks)
