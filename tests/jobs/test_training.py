"""The training loop: learning rates, losses, accumulation, several workers, transfer, errors."""

from __future__ import annotations

import json
import math
import resource
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from jobs.specs import TrainJob
from jobs.training.checkpoints import checkpoint_uri
from jobs.training.groups import read_groups
from jobs.training.loop import train
from jobs.training.loss import total_loss
from jobs.training.model import fresh_model
from jobs.training.plan import TrainPlan, Worker, class_weights, usable_workers
from jobs.training.points import PointLog, read_points
from jobs.training.progress import StepTimer
from jobs.training.step import Stepper
from jobs.training.validation import read_rows
from jobs.training.work import TrainWork, find_first_weights
from pipelines import storage
from pipelines.batch_plan import Batch, BatchPlan
from pipelines.labels import LabelSpace
from pipelines.local_batches import LocalBatches
from pipelines.order import SampleOrder
from pipelines.samples import Part, SampleIndex, build_index
from seg_models.checkpoints import save_model
from seg_models.recipes.recipe import AugmentSpec, LossSpec, OhemSpec, OptimizerSpec
from tests.jobs.ranks import run_ranks
from tests.jobs.tiny_training import CPU, TINY_PSPNET, TinySpec, plan_of, tiny_recipe, train_alone, train_as_rank
from tests.tiny_data import SPACE, write_dataset


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> SampleIndex:
    root = tmp_path_factory.mktemp("data")
    write_dataset(root, shard_sizes=(6, 6))
    return build_index([Part(dataset=str(root))])


# -- settings ------------------------------------------------------------------------------------------------------


def test_auxiliary_losses_are_weighted() -> None:
    losses = {"ce": torch.tensor(1.0), "aux_ce": torch.tensor(10.0), "aux2": torch.tensor(100.0)}
    assert total_loss(losses, aux_weight=0.4).item() == pytest.approx(45.0)


def test_the_background_class_alone_is_weighted() -> None:
    recipe = tiny_recipe(loss=LossSpec(background_weight=0.1))
    weights = class_weights(recipe, LabelSpace(names=("a", "b", "rest"), background=2))
    assert weights is not None
    assert weights.tolist() == pytest.approx([1.0, 1.0, 0.1])
    assert class_weights(tiny_recipe(), SPACE) is None
    with pytest.raises(ValueError, match=r"background_weight = 0\.1 takes no effect"):
        class_weights(recipe, LabelSpace(names=("a", "b")))


@pytest.mark.parametrize(
    ("workers", "batch", "accumulate", "usable"),
    [(4, 8, 1, 4), (4, 8, 4, 2), (5, 16, 1, 4), (3, 8, 1, 2), (1, 7, 1, 1)],
)
def test_workers_are_rounded_down_to_what_divides(workers: int, batch: int, accumulate: int, usable: int) -> None:
    recipe = tiny_recipe(global_batch=batch, lanes=48)
    assert usable_workers(workers, recipe=recipe, accumulate=accumulate) == usable


def test_accumulation_that_does_not_divide_the_batch_is_refused() -> None:
    with pytest.raises(ValueError, match=r"accumulate = 3 does not divide .*global_batch = 8; divisors are 1, 2, 4, 8"):
        usable_workers(1, recipe=tiny_recipe(global_batch=8), accumulate=3)


def test_the_timer_tells_rate_phases_and_time_left() -> None:
    now = [100.0]
    timer = StepTimer(steps=10, global_batch=4, first_step=2, clock=lambda: now[0])
    now[0] += 8
    lap = timer.lap(4, phases={"data_wait": 2.0, "forward": 4.0})
    assert (lap.images_per_s, lap.step_s, lap.left_s) == (1.0, 4.0, 24.0)
    assert lap.text().startswith("1.0 img/s  data wait 25%  transfer 0%  forward 50%")
    assert lap.text().endswith("left 0:00:24")
    assert (lap.metrics()["time/data_wait_s"], lap.metrics()["time/step_s"]) == (1.0, 4.0)
    assert timer.phases["forward"] == 4.0
    assert timer.seconds == 8


# -- loop ----------------------------------------------------------------------------------------------------------


def test_training_learns_the_tiny_scenes(index: SampleIndex, tmp_path: Path) -> None:
    recipe = tiny_recipe(steps=40, optimizer=OptimizerSpec(lr=0.3))
    model, figures = train_alone(plan_of(index, tmp_path, recipe, log_every=5))
    losses = [point["train/loss"] for point in read_points(str(tmp_path))]
    assert losses[-1] < 0.5 * losses[0]
    assert figures["steps"] == 40
    assert figures["resumed_from"] == 0
    assert model.num_classes == 3


@pytest.mark.parametrize(
    ("loss", "key"),
    [
        (LossSpec(aux_weight=0.7), "aux_weight = 0.7"),
        (LossSpec(ohem=OhemSpec(auxiliary=True, min_kept=9)), "ohem.auxiliary = true"),
    ],
)
def test_what_is_set_about_auxiliary_losses_that_a_network_does_not_have_is_refused(
    index: SampleIndex, tmp_path: Path, loss: LossSpec, key: str
) -> None:
    recipe = tiny_recipe(loss=loss, model=TINY_PSPNET | {"aux_channels": None})
    with pytest.raises(ValueError, match=rf"recipe.loss.{key} takes no effect: PSPNet .* no auxiliary losses"):
        train_alone(plan_of(index, tmp_path, recipe))


@pytest.mark.parametrize("change", ["plain", "background", "aux"])
def test_the_loss_of_a_step_is_weighted_leaves_void_out_and_adds_the_auxiliary_part(
    index: SampleIndex, tmp_path: Path, change: str
) -> None:
    recipe = tiny_recipe(
        model=TinySpec(aux=change == "aux"),
        loss=LossSpec(
            background_weight=0.1 if change == "background" else None, aux_weight=0.3 if change == "aux" else 0.4
        ),
        augment=AugmentSpec(crop=(48, 48), scale=(1.0, 1.0)),
        steps=1,
    )
    train_alone(plan_of(index, tmp_path, recipe, log_every=1))
    torch.manual_seed(recipe.seed)
    model = TinySpec().build(3).train()
    make_order = partial(SampleOrder, index, lanes=4, seed=recipe.seed)
    with LocalBatches(BatchPlan(make_order, augment=recipe.augment, global_batch=4, steps=1)) as stream:
        batch = next(stream)
    assert bool((batch.labels == SPACE.void).any())
    weight = torch.tensor([0.1, 1.0, 1.0]) if change == "background" else None
    scores = model(batch.images).logits
    expected = nn.functional.cross_entropy(scores, batch.labels.long(), weight=weight, ignore_index=SPACE.void).item()
    expected *= 1.3 if change == "aux" else 1.0
    assert read_points(str(tmp_path))[0]["train/loss"] == pytest.approx(expected, rel=1e-5)


def test_pspnet_trains_with_its_auxiliary_head(index: SampleIndex, tmp_path: Path) -> None:
    recipe = tiny_recipe(model=TINY_PSPNET, steps=2, augment=AugmentSpec(crop=(32, 32)))
    model, _ = train_alone(plan_of(index, tmp_path, recipe, precision="bf16"))
    assert all(bool(torch.isfinite(value).all()) for value in model.state_dict().values())
    points = read_points(str(tmp_path))
    assert [point["step"] for point in points] == [2]
    assert {"train/loss", "train/lr", "train/images_per_s", "time/data_wait_s"} < set(points[0])


def test_backbone_weights_in_an_object_store_are_found_before_work_and_loaded_by_the_worker(
    index: SampleIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(5)
    settings = {"channels": (8, 16, 16, 24), "stem_width": 8, "output_stride": 8}
    published = timm.create_model("resnet10t", num_classes=4, **settings)
    save_file(published.state_dict(), tmp_path / "w.safetensors")
    monkeypatch.setattr(storage, "local_copy", lambda uri: tmp_path / Path(uri).name)
    job = TrainJob.model_validate(
        {
            "name": "x",
            "recipe": {"base": "pspnet_resnet50_voc", "model": TINY_PSPNET},
            "data": [{"dataset": "d"}],
            "output": str(tmp_path / "runs"),
        }
    )
    for name in ("w.safetensors", "missing.safetensors"):
        backbone = TINY_PSPNET["backbone"] | {"weights": f"s3://bucket/{name}"}
        recipe = tiny_recipe(model=TINY_PSPNET | {"backbone": backbone})
        work = TrainWork(job.model_copy(update={"recipe": recipe}), str(tmp_path / "runs" / "x"), index, {}, (1,))
        if name == "w.safetensors":
            find_first_weights(work, fetch=False)
            model, _ = fresh_model(plan_of(index, tmp_path, recipe), Worker(rank=0, world=1, device=CPU))
            found = {key.removeprefix("backbone.network."): value for key, value in model.state_dict().items()}
            assert torch.equal(found["layer4.0.conv1.weight"], published.state_dict()["layer4.0.conv1.weight"])
        else:
            with pytest.raises(ValueError, match=r"missing.safetensors' are missing"):
                find_first_weights(work, fetch=False)


def test_accumulated_micro_batches_equal_the_whole_batch(index: SampleIndex, tmp_path: Path) -> None:
    # Crops lie inside the images, so every micro-batch has as many pixels as the others.
    whole, _ = train_alone(plan_of(index, tmp_path / "a", tiny_recipe()))
    parts, _ = train_alone(plan_of(index, tmp_path / "b", tiny_recipe(), accumulate=2))
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], value, atol=1e-5, rtol=1e-4)


def train_all(rank: int, world: int, plans: list[TrainPlan]) -> list[dict[str, Tensor]]:
    return [train_as_rank(rank, world, plan) for plan in plans]


def test_two_workers_train_the_network_that_one_would(index: SampleIndex, tmp_path: Path) -> None:
    recipe = tiny_recipe(model=TinySpec(norm=True), global_batch=12, lanes=12)
    separate = recipe.model_copy(update={"sync_batch_norm": False})
    plans = [
        plan_of(index, tmp_path / "whole", recipe),
        plan_of(index, tmp_path / "parts", recipe, accumulate=3),
        plan_of(index, tmp_path / "separate", separate),
    ]
    first, second = run_ranks(train_all, 2, plans)
    for ours, theirs in zip(first[:2], second[:2], strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in ours), "all workers end with the same bits"
    alone = dict(train_alone(plan_of(index, tmp_path / "alone", recipe))[0].state_dict())
    assert_close(first[0], alone)
    assert_close(first[1], dict(train_alone(plan_of(index, tmp_path / "alone3", recipe, accumulate=3))[0].state_dict()))
    assert not torch.allclose(first[2]["norm.running_var"], alone["norm.running_var"], rtol=1e-3)
    # One worker goes on with what two began: the same global batches, so the same network.
    storage.delete(checkpoint_uri(str(tmp_path / "whole"), 6))
    continued, figures = train_alone(plans[0])
    assert figures["resumed_from"] == 3
    assert_close(dict(continued.state_dict()), alone)


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-4, rtol=1e-3)


def publish(root: Path, space: LabelSpace) -> dict[str, Tensor]:
    torch.manual_seed(77)
    spec = TinySpec(norm=True)
    model = spec.build(space.num_classes)
    save_model(root, model=model, spec=spec, label_space=space.model_dump(mode="json"), recipe=None, provenance={})
    return dict(model.state_dict())


def test_a_run_begins_from_every_tensor_of_a_checkpoint_with_the_same_classes(
    index: SampleIndex, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = publish(tmp_path / "teacher", SPACE)
    recipe = tiny_recipe(model=TinySpec(norm=True), optimizer=OptimizerSpec(lr=1e-12), steps=1)
    model, figures = train_alone(plan_of(index, tmp_path / "run", recipe, init_from=str(tmp_path / "teacher")))
    torch.testing.assert_close(model.state_dict()["head.weight"], given["head.weight"])
    assert "kept 9 tensors, all of them" in figures["transfer"]
    assert "kept 9 tensors" in capsys.readouterr().out


def test_other_classes_leave_the_classifier_behind(index: SampleIndex, tmp_path: Path) -> None:
    given = publish(tmp_path / "teacher", LabelSpace(names=("cat", "dog", "sky")))
    recipe = tiny_recipe(model=TinySpec(norm=True), optimizer=OptimizerSpec(lr=1e-12), steps=1)
    model, figures = train_alone(plan_of(index, tmp_path / "run", recipe, init_from=str(tmp_path / "teacher")))
    torch.testing.assert_close(model.state_dict()["backbone.weight"], given["backbone.weight"])
    assert not torch.allclose(model.state_dict()["head.weight"], given["head.weight"])
    assert "dropped 2" in figures["transfer"]


def test_a_checkpoint_of_another_network_is_refused_with_both_names(index: SampleIndex, tmp_path: Path) -> None:
    publish(tmp_path / "teacher", SPACE)
    told = (
        rf"^init_from: {tmp_path}/teacher \(Tiny; recipe\.model is PSPNet\): .* do not fit the model: missing backbone"
    )
    with pytest.raises(ValueError, match=told):
        train_alone(
            plan_of(index, tmp_path / "run", tiny_recipe(model=TINY_PSPNET), init_from=str(tmp_path / "teacher"))
        )


def test_a_loss_that_is_no_number_stops_the_run_with_step_and_samples(index: SampleIndex, tmp_path: Path) -> None:
    recipe = tiny_recipe(optimizer=OptimizerSpec(lr=1e30), steps=50)
    with pytest.raises(ValueError, match=r"the loss is (nan|inf) at step \d+ \(samples scene-00\d\d, .*optimizer.lr"):
        train_alone(plan_of(index, tmp_path, recipe, checkpoint_every=1))
    assert all(math.isfinite(point["train/loss"]) for point in read_points(str(tmp_path)))


def test_gradients_are_clipped_to_the_norm_asked_for(index: SampleIndex, tmp_path: Path) -> None:
    recipe = tiny_recipe(optimizer=OptimizerSpec(lr=1.0, momentum=0, weight_decay=0, clip_grad_norm=1e-3), steps=1)
    torch.manual_seed(recipe.seed)
    start = TinySpec().build(3).state_dict()
    model, _ = train_alone(plan_of(index, tmp_path, recipe))
    moved = torch.cat([(value - start[name]).flatten() for name, value in model.state_dict().items()])
    assert moved.norm().item() == pytest.approx(1e-3, rel=1e-2)


# -- curve ---------------------------------------------------------------------------------------------------------


class Inbox:
    def __init__(self) -> None:
        self.steps: list[int] = []
        self.closed = False

    def catch_up(self, curve: Any) -> None:
        self.earlier = [record["step"] for record in curve]

    def log(self, metrics: Any, step: int, time_ms: int) -> None:
        self.steps.append(step)

    def close(self) -> None:
        self.closed = True


def test_points_are_on_disk_at_once_and_reach_the_sender_once(tmp_path: Path) -> None:
    inbox = Inbox()
    points = PointLog(str(tmp_path), from_step=0, sender=inbox)
    for step in (2, 4, 6):
        points.log({"train/loss": 1.0 / step}, step=step)
        assert read_points(str(tmp_path))[-1]["step"] == step
    again = Inbox()
    resumed = PointLog(str(tmp_path), from_step=4, sender=again)
    for step in (6, 8):
        resumed.log({"train/loss": 0.0}, step=step)
    resumed.close()
    points.close()
    assert (inbox.steps, again.steps, again.closed) == ([2, 4, 6], [8], True)
    assert again.earlier == [2, 4, 6], "some may never have been sent"
    assert [(point["step"], point["train/loss"]) for point in read_points(str(tmp_path))] == [
        (2, 0.5),
        (4, 0.25),
        (6, 1.0 / 6),  # trained twice: the first point stays as it is, so that sending it again is harmless
        (8, 0.0),
    ]


def test_a_curve_whose_machine_is_gone_comes_back_with_the_checkpoint(tmp_path: Path) -> None:
    points = PointLog(str(tmp_path / "lost"), from_step=0)
    for step in (2, 4, 6):
        points.log({"train/loss": 1.0 / step}, step=step)
    saved = points.text()
    points.close()
    resumed = PointLog(str(tmp_path / "found"), from_step=6, saved=saved)
    resumed.log({"train/loss": 0.0}, step=8)
    resumed.close()
    found = read_points(str(tmp_path / "found"))
    assert found[:3] == read_points(str(tmp_path / "lost")), "with the times they were recorded at"
    assert [point["step"] for point in found] == [2, 4, 6, 8]


def test_a_line_cut_off_by_a_crash_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 2, "train/loss": 1.0}) + '\n{"step": 4, "tra')
    assert [point["step"] for point in read_points(str(tmp_path))] == [2]
    PointLog(str(tmp_path), from_step=2).close()
    assert read_points(str(tmp_path)) == [{"step": 2, "train/loss": 1.0}]


def test_a_full_disk_stops_no_training_and_its_points_are_written_when_there_is_room_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sent: list[int] = []
    sender = SimpleNamespace(log=lambda metrics, step, time_ms: sent.append(step), close=lambda: None)
    log = PointLog(str(tmp_path), from_step=0, sender=sender)
    log.log({"train/loss": 1.0}, step=2)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / "metrics.jsonl").stat().st_size + 7, limits[1]))
    try:
        log.log({"train/loss": 2.0}, step=4)
        log.log({"train/loss": 3.0}, step=6)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sent == [2], "what is not in the file is not told"
    assert len(caplog.records) == 1, "and said once"
    log.log({"train/loss": 4.0}, step=8)
    log.close()
    assert [(point["step"], point["train/loss"]) for point in read_points(str(tmp_path))] == [
        (2, 1),
        (4, 2),
        (6, 3),
        (8, 4),
    ]


def test_what_is_no_record_of_the_curve_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(b'\x00\xff\n[1]\n{"step": "x"}\n{"step": 2, "train/loss": 1.5}\n')
    assert read_points(str(tmp_path)) == [{"step": 2, "train/loss": 1.5}]


@pytest.mark.parametrize(("file", "read"), [("groups.json", read_groups), ("validation.json", read_rows)])
def test_a_damaged_file_of_a_run_is_named(tmp_path: Path, file: str, read: Callable[[str], object]) -> None:
    (tmp_path / file).write_text('[{"a')
    with pytest.raises(ValueError, match=rf"^{tmp_path}/{file}: damaged, no JSON \("):
        read(str(tmp_path))


def void_batches(patch: pytest.MonkeyPatch) -> None:
    """Let no pixel have a class."""
    real = Stepper.step

    def of_void(self: Stepper, batches: Sequence[Batch]) -> Tensor:
        void = [replace(batch, labels=torch.full_like(batch.labels, SPACE.void)) for batch in batches]
        return real(self, void)

    patch.setattr(Stepper, "step", of_void)


def test_a_loss_that_is_no_number_because_all_is_void_is_not_blamed_on_the_learning_rate(
    index: SampleIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    void_batches(monkeypatch)
    with pytest.raises(
        ValueError, match=r"the loss is nan at step 0 \(samples .*\); no pixel of theirs has a class, and"
    ):
        train_alone(plan_of(index, tmp_path, tiny_recipe()))


def test_training_that_learns_nothing_because_all_is_void_says_so(
    index: SampleIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    void_batches(monkeypatch)
    train_alone(plan_of(index, tmp_path, tiny_recipe(model=TINY_PSPNET, steps=1)))
    assert "the loss is 0: no pixel of the steps up to 1 has a class that is learned from" in capsys.readouterr().out


def test_workers_are_told_apart_by_rank_and_only_rank_zero_speaks(
    index: SampleIndex, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(plan_of(index, tmp_path, tiny_recipe(steps=2)), Worker(rank=0, world=1, device=CPU))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert len(lines) == 1
    assert lines[0].startswith("step 2/2  loss ")
    assert "img/s" in lines[0]
