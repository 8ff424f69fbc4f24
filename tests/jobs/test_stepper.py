"""What a step computes with: averaged weights, number formats, memory formats, compiled networks, hard pixels."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.specs import TrainJob
from jobs.training.checkpoints import checkpoint_uri, load_checkpoint
from jobs.training.model import fresh_model, place_model
from jobs.training.plan import TrainPlan, Worker
from jobs.training.points import read_points
from jobs.training.step import Stepper
from pipelines import storage
from pipelines.batch_plan import Batch
from pipelines.samples import Part, SampleIndex, build_index
from seg_models.outputs import SemanticTarget
from seg_models.parts.losses import without_easy_pixels
from seg_models.recipes.recipe import EmaSpec, LossSpec, OhemSpec, OptimizerSpec, Recipe
from seg_models.spec import preset
from tests.jobs.tiny_training import CPU, TINY_PSPNET, TinySpec, plan_of, tiny_recipe, train_alone
from tests.tiny_data import SPACE, write_dataset


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> SampleIndex:
    root = tmp_path_factory.mktemp("data")
    write_dataset(root, shard_sizes=(6, 6))
    return build_index([Part(dataset=str(root))])


@pytest.fixture
def plan(index: SampleIndex, tmp_path: Path) -> TrainPlan:
    return plan_of(index, tmp_path, tiny_recipe())


def stepper_of(plan: TrainPlan, **changes: Any) -> Stepper:
    worker = Worker(rank=0, world=1, device=CPU)
    plan = dataclasses.replace(plan, **changes)
    return Stepper(plan, worker, place_model(fresh_model(plan, worker)[0], plan, worker))


def batch_of(step: int, *, side: int = 24) -> Batch:
    generator = torch.Generator().manual_seed(step)
    images = torch.randint(0, 256, (4, 3, side, side), dtype=torch.uint8, generator=generator)
    return Batch(step, ("a", "b", "c", "d"), images, torch.randint(0, 3, (4, side, side), generator=generator))


def steps_of(stepper: Stepper, steps: Sequence[int], *, side: int = 24) -> list[float]:
    return [stepper.step([batch_of(step, side=side)]).item() for step in steps]


def recipe_with(**changes: Any) -> Recipe:
    return tiny_recipe(**({"model": TinySpec(norm=True)} | changes))


# -- averaged weights ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ema", [EmaSpec(decay=0.9), EmaSpec(decay=0.3, warmup=False), EmaSpec(decay=0.9, buffers="copy")]
)
def test_averaged_weights_are_those_of_the_formula(plan: TrainPlan, ema: EmaSpec) -> None:
    stepper = stepper_of(plan, recipe=recipe_with(ema=ema))
    expected = {name: value.clone() for name, value in stepper.model_state().items()}
    for done in range(5):
        steps_of(stepper, [done])
        decay = min(ema.decay, (1 + done) / (10 + done)) if ema.warmup else ema.decay
        for name, value in stepper.model_state().items():
            taken = not value.is_floating_point() or (ema.buffers == "copy" and "running" in name)
            expected[name] = value.clone() if taken else decay * expected[name] + (1 - decay) * value
    for name, value in stepper.result().state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6, msg=name)
    assert not torch.equal(stepper.result_state()["head.weight"], stepper.model_state()["head.weight"])


def test_a_resumed_run_averages_on_and_publishes_the_average(
    index: SampleIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(index, tmp_path, recipe_with(ema=EmaSpec(decay=0.8), model=TinySpec(norm=True, dropout=0.3)))
    straight, _ = train_alone(plan)
    storage.delete(checkpoint_uri(plan.run, 6))
    continued, figures = train_alone(plan)
    assert figures["resumed_from"] == 3
    saved = load_checkpoint(checkpoint_uri(plan.run, 6))
    for name, value in straight.state_dict().items():
        assert torch.equal(value, continued.state_dict()[name])
        assert torch.equal(value, saved.stepper["average"]["tensors"][name])
    assert not torch.equal(straight.state_dict()["head.weight"], saved.model["head.weight"])


def test_looking_at_the_result_changes_nothing_of_the_training(plan: TrainPlan) -> None:
    recipe = recipe_with(ema=EmaSpec(), model=TinySpec(norm=True, dropout=0.5))
    looked, undisturbed = stepper_of(plan, recipe=recipe), stepper_of(plan, recipe=recipe)
    torch.manual_seed(1)
    first = steps_of(undisturbed, range(4))
    torch.manual_seed(1)
    second = []
    for step in range(4):
        second += steps_of(looked, [step])
        looked.result().eval()
    assert first == second


# -- number formats --------------------------------------------------------------------------------------------------


def test_fp16_trains_to_about_the_weights_of_fp32_and_shows_its_scale(index: SampleIndex, tmp_path: Path) -> None:
    half, _ = train_alone(plan_of(index, tmp_path / "half", recipe_with(), precision="fp16"))
    full, _ = train_alone(plan_of(index, tmp_path / "full", recipe_with(), precision="fp32"))
    for name, value in full.state_dict().items():
        torch.testing.assert_close(half.state_dict()[name], value, rtol=0.05, atol=0.01)
    assert read_points(str(tmp_path / "half"))[-1]["train/loss_scale"] == 65536
    assert "train/loss_scale" not in read_points(str(tmp_path / "full"))[-1]


def test_gradients_that_overflow_leave_the_step_out_and_halve_the_scale_which_resumes(plan: TrainPlan) -> None:
    stepper = stepper_of(plan, recipe=recipe_with(), precision="fp16")
    steps_of(stepper, [0])
    state = stepper.state_dict()
    state["scaler"]["scale"] = 2.0**40  # more than fp16 holds
    resumed = stepper_of(plan, recipe=recipe_with(), precision="fp16")
    resumed.load_state_dict(state)
    before = {name: value.clone() for name, value in resumed.model.named_parameters()}
    steps_of(resumed, [1])
    assert all(torch.equal(value, before[name]) for name, value in resumed.model.named_parameters())
    assert resumed.metrics()["train/loss_scale"] == 2.0**39
    assert "loss scale" in resumed.text()
    again = stepper_of(plan, recipe=recipe_with(), precision="fp16")
    again.load_state_dict(resumed.state_dict())
    assert again.metrics() == resumed.metrics()


def test_a_run_may_go_on_in_another_precision(plan: TrainPlan) -> None:
    half = stepper_of(plan, precision="fp16")
    steps_of(half, [0])
    full = stepper_of(plan, precision="fp32")
    full.load_state_dict(half.state_dict())
    half.load_state_dict(full.state_dict())
    assert full.text() == ""


# -- memory formats and compiled networks ----------------------------------------------------------------------------


def test_the_memory_format_changes_no_more_than_rounding(plan: TrainPlan) -> None:
    recipe = tiny_recipe(model=TINY_PSPNET)
    last, first = (stepper_of(plan, recipe=recipe, channels_last=on) for on in (True, False))
    assert steps_of(last, range(2), side=32) == pytest.approx(steps_of(first, range(2), side=32), rel=1e-3)
    strides = [stepper.model_state()["head.conv.conv.weight"].stride() for stepper in (last, first)]
    assert strides[0] != strides[1]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's compiler itself
def test_a_compiled_network_trains_the_same(plan: TrainPlan) -> None:
    compiled, eager = (stepper_of(plan, recipe=recipe_with(), compile=on) for on in (True, False))
    assert steps_of(compiled, range(3)) == pytest.approx(steps_of(eager, range(3)), rel=1e-4)
    assert compiled.model_state().keys() == eager.model_state().keys()
    for name, value in eager.model_state().items():
        torch.testing.assert_close(compiled.model_state()[name], value, rtol=1e-3, atol=1e-5)


# -- gradients -------------------------------------------------------------------------------------------------------


def test_the_norm_that_is_shown_is_that_before_clipping(plan: TrainPlan) -> None:
    clipped = stepper_of(plan, recipe=tiny_recipe(optimizer=OptimizerSpec(lr=1e-9, clip_grad_norm=1e-3)))
    steps_of(clipped, [0])
    model = stepper_of(plan).model
    target = SemanticTarget(batch_of(0).labels, SPACE.void)
    torch.autograd.backward(model.loss(model(batch_of(0).images), target)["ce"])
    whole = torch.cat([value.grad.flatten() for value in model.parameters() if value.grad is not None])
    assert clipped.metrics()["train/gradient_norm"] == pytest.approx(whole.norm().item(), rel=1e-5)
    left = torch.cat([value.grad.flatten() for value in clipped.model.parameters() if value.grad is not None])
    assert left.norm().item() == pytest.approx(1e-3, rel=1e-2)


# -- hard pixels -----------------------------------------------------------------------------------------------------


def test_training_learns_from_hard_pixels_per_micro_batch(plan: TrainPlan) -> None:
    spec = preset("pspnet_efficientnet_lite0").model_copy(update={"aux_channels": None})
    ohem = OhemSpec(threshold=1e-3, min_kept=50)
    recipe = tiny_recipe(model=spec, loss=LossSpec(ohem=ohem))
    stepper, model = stepper_of(plan, recipe=recipe), stepper_of(plan, recipe=recipe).model
    batch = batch_of(0, side=64)
    halves = [Batch(0, batch.ids[part], batch.images[part], batch.labels[part]) for part in (slice(0, 2), slice(2, 4))]
    found = stepper.step(halves).item()
    torch.manual_seed(plan.recipe.seed)
    expected = []
    for half in halves:
        output = model(half.images)
        hard = without_easy_pixels(output.logits, half.labels, void=SPACE.void, threshold=1e-3, min_kept=100)
        assert int((hard != SPACE.void).sum()) >= 100
        expected.append(model.loss(output, SemanticTarget(hard, SPACE.void))["ce"].item())
    assert found == pytest.approx(sum(expected) / 2, rel=1e-2)


def test_hard_pixels_of_a_network_that_chooses_none_are_refused(plan: TrainPlan) -> None:
    stepper = stepper_of(plan, recipe=tiny_recipe(loss=LossSpec(ohem=OhemSpec(min_kept=9))))
    with pytest.raises(ValueError, match=r"recipe\.loss\.ohem takes no effect: the loss of Tiny"):
        steps_of(stepper, [0])


# -- time ------------------------------------------------------------------------------------------------------------


def test_every_phase_is_timed_and_told_in_curve_and_result(index: SampleIndex, tmp_path: Path) -> None:
    _, figures = train_alone(plan_of(index, tmp_path, tiny_recipe()))
    phases = ("data_wait", "transfer", "forward", "backward", "update", "report", "checkpoint")
    assert tuple(figures["phases_s"]) == phases
    assert all(figures["phases_s"][name] > 0 for name in ("data_wait", "forward", "backward", "update", "checkpoint"))
    assert sum(figures["phases_s"].values()) <= figures["seconds"]
    assert {f"time/{name}_s" for name in (*phases, "step")} < set(read_points(str(tmp_path))[-1])


def test_a_trace_of_the_steps_asked_for_is_written(index: SampleIndex, tmp_path: Path) -> None:
    train_alone(plan_of(index, tmp_path, tiny_recipe(), profile_steps=(3, 4)))
    (trace,) = (tmp_path / "profile").iterdir()
    names = {event.get("name") for event in json.loads(trace.read_text())["traceEvents"]}
    assert {"step 3", "step 4", "forward", "backward", "update"} < names
    assert not {"step 2", "step 5"} & names


# -- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"parallel": "fsdp"}, r"parallel = 'fsdp' takes no effect with workers = 1"),
        ({"reduce": "ordered"}, r"reduce = 'ordered' takes no effect with workers = 1"),
        ({"workers": 2, "parallel": "fsdp", "reduce": "ordered"}, r"takes no effect with parallel = 'fsdp'"),
        ({"workers": 2, "parallel": "fsdp", "compile": True}, r"compile = true does not go with parallel = 'fsdp'"),
        ({"profile_steps": (3, 2)}, r"1 <= first <= last <= 40000"),
        ({"profile_steps": (1, 50_000)}, r"1 <= first <= last <= 40000 \(recipe\.steps\), found \(1, 50000\)"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainJob.model_validate({"name": "x", "recipe": "pspnet_resnet50_voc", "data": [{"dataset": "d"}], **settings})
