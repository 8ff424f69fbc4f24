"""Validations beside the training: what waits, what is passed over, what is the best, when a run is at its end."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import RaySystemError

from jobs import train
from jobs.specs import TrainData, TrainJob, ValidationSplit
from jobs.tracked_run import Run
from jobs.training.checkpoints import load_checkpoint
from jobs.training.notice import Stop
from jobs.training.plan import TrainPlan, ValidationPlan
from jobs.training.publish import copy_published
from jobs.training.step import Stepper
from jobs.training.validation import (
    Row,
    ValidationNews,
    best_row,
    copy_folder,
    merge_rows,
    no_gain,
    points_of_row,
    read_rows,
    waiting_steps,
    write_rows,
)
from jobs.training.validator import Validator
from pipelines.evaluation import evaluate_checkpoint
from pipelines.samples import Part, SampleIndex, build_index
from pipelines.shards import ComputeSpec
from seg_models.checkpoints import load_model
from seg_models.predictor import PredictorSpec
from seg_models.recipes.recipe import EmaSpec
from tests.jobs.tiny_training import TinySpec, plan_of, tiny_recipe, train_alone
from tests.tiny_data import write_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("data")
    write_dataset(root, shard_sizes=(6, 6))
    return str(root)


@pytest.fixture(scope="module")
def index(dataset: str) -> SampleIndex:
    return build_index([Part(dataset=dataset)])


def row(step: int, miou: float) -> Row:
    return {"step": step, "time_ms": 1000 * step, "miou": miou, "pixel_accuracy": 0.5}


# -- what follows from finished validations --------------------------------------------------------------------------


def test_the_best_validation_is_the_earliest_of_the_largest_and_no_number_is_never_the_best() -> None:
    rows = [row(1, 0.3), row(2, float("nan")), row(3, 0.4), row(4, 0.4), row(5, 0.1)]
    best = best_row(rows, "miou")
    assert best is not None
    assert best["step"] == 3
    assert best_row([row(1, float("nan"))], "miou") is None
    assert best_row([], "miou") is None


@pytest.mark.parametrize(
    ("scores", "patience", "ends"),
    [
        ([0.1, 0.2, 0.3], 1, False),
        ([0.3, 0.2], 1, True),
        ([0.3, 0.2], 2, False),
        ([0.3, 0.2, 0.3], 2, True),  # as good is no gain
        ([0.3, 0.2, 0.4], 2, False),
        ([float("nan"), float("nan")], 2, True),
    ],
)
def test_a_run_ends_after_so_many_validations_without_gain(scores: list[float], patience: int, ends: bool) -> None:
    rows = [row(10 * number, score) for number, score in enumerate(scores, 1)]
    reason = no_gain(rows, metric="miou", patience=patience)
    assert (reason is not None) == ends
    assert no_gain(list(reversed(rows)), metric="miou", patience=patience) == reason, "whatever came in first"


def test_the_reason_for_an_early_end_names_the_best_step() -> None:
    rows = [row(10, 0.25), row(20, 0.2), row(30, 0.1)]
    assert no_gain(rows, metric="miou", patience=2) == (
        "miou was best at step 10 (0.2500), and 2 validations since brought nothing better"
    )


def test_what_is_printed_at_an_early_end_says_why() -> None:
    reason = no_gain([row(10, 0.25), row(20, 0.2)], metric="miou", patience=1)
    table = {"steps": 24, "seconds": 1.0, "images_per_s": 9.0, "workers": 1, "loss": 0.5, "checkpoint": "run/model"}
    lines = train.summary(table | {"transfer": None, "reason": reason}).splitlines()
    assert lines[1] == "  ended early: miou was best at step 10 (0.2500), and 1 validation since brought nothing better"
    assert len(train.summary(table | {"transfer": None, "reason": ""}).splitlines()) == 1


def test_validations_of_a_checkpoint_and_of_the_file_are_one_table(tmp_path: Path) -> None:
    write_rows(str(tmp_path), [row(20, 0.2)], metric="miou")
    news = ValidationNews(str(tmp_path), metric="miou", patience=2, saved=[row(10, 0.5), row(20, 0.9)])
    assert news.rows == [row(10, 0.5), row(20, 0.2)]
    assert news.check() == (Stop.NONE, "")
    write_rows(str(tmp_path), merge_rows(read_rows(str(tmp_path)), [row(30, 0.1)]), metric="miou")
    assert news.check()[0] is Stop.NO_GAIN
    assert json.loads((tmp_path / "validation.json").read_text())["best"] == 20


# -- what the training does ------------------------------------------------------------------------------------------


def validating(index: SampleIndex, run: Path, **changes: Any) -> TrainPlan:
    validation = ValidationPlan(every=2, patience=changes.pop("patience", None))
    recipe = changes.pop("recipe", tiny_recipe(model=TinySpec(norm=True)))
    return plan_of(index, run, recipe, validation=validation, **changes)


def test_weights_of_every_second_step_but_the_last_wait_for_their_validation(
    index: SampleIndex, tmp_path: Path
) -> None:
    plan = validating(index, tmp_path, checkpoint_every=4)
    train_alone(plan)
    assert waiting_steps(plan.run) == [2, 4]
    loaded = load_model(tmp_path / copy_folder(4))
    saved = load_checkpoint(f"{plan.run}/checkpoints/step-00000004").model
    assert all(value.equal(saved[name]) for name, value in loaded.model.state_dict().items())
    assert loaded.info["provenance"]["step"] == 4


def test_weights_that_were_validated_do_not_wait_again_after_a_resume(index: SampleIndex, tmp_path: Path) -> None:
    plan = validating(index, tmp_path)
    write_rows(plan.run, [row(2, 0.5)], metric="miou")
    train_alone(plan)
    assert waiting_steps(plan.run) == [4]


def test_the_averaged_weights_are_those_that_are_validated(index: SampleIndex, tmp_path: Path) -> None:
    plan = validating(
        index, tmp_path, recipe=tiny_recipe(model=TinySpec(norm=True), ema=EmaSpec(decay=0.5)), checkpoint_every=4
    )
    train_alone(plan)
    loaded = load_model(tmp_path / copy_folder(4)).model.state_dict()
    saved = load_checkpoint(f"{plan.run}/checkpoints/step-00000004").model
    assert not loaded["head.weight"].equal(saved["head.weight"])


def test_a_run_without_gain_ends_early_and_a_resumed_one_takes_no_further_step(
    index: SampleIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, real = validating(index, tmp_path, patience=2, recipe=tiny_recipe(steps=1000)), Stepper.step

    def step(self: Stepper, batches: Any) -> Any:
        if batches[0].step == 7:  # the driver's validations of steps 2, 4 and 6 are done
            write_rows(plan.run, [row(2, 0.3), row(4, 0.2), row(6, 0.1)], metric="miou")
        time.sleep(0.02)
        return real(self, batches)

    with monkeypatch.context() as patch:
        patch.setattr(Stepper, "step", step)
        _, figures = train_alone(plan)
    assert 8 <= figures["steps"] < 1000
    assert figures["stop"] == "NO_GAIN"
    assert figures["reason"].startswith("miou was best at step 2 (0.3000)")
    monkeypatch.setattr(Stepper, "step", None)
    _, again = train_alone(plan)
    assert (again["steps"], again["stop"]) == (figures["steps"], "NO_GAIN")
    facts = load_checkpoint(f"{plan.run}/checkpoints/step-{figures['steps']:08d}").facts
    assert [known["step"] for known in facts["validations"]] == [2, 4, 6]


# -- what the driver does --------------------------------------------------------------------------------------------


class Curve(Run):
    """Keeps what would be sent."""

    def __init__(self) -> None:
        super().__init__("", "", None)
        self.sent: list[Any] = []

    def log_curve(self, curve: Any) -> None:
        self.sent += curve


def validator_of(run: str, dataset: str, told: list[str], curve: Curve, **changes: Any) -> Validator:
    settings: dict[str, Any] = {"keep_best": True, "compute": ComputeSpec(cpus=0.5), "saved": []} | changes
    data = ValidationSplit(dataset=dataset)
    return Validator(run, data=data, metric="miou", tracked=curve, say=told.append, **settings)


def stand_in(scores: dict[int, float], under_way: Callable[[int], object] = lambda step: None) -> Any:
    """An evaluation that knows its result."""

    def evaluate(self: Validator, checkpoint: str) -> dict[str, float]:
        step = int(checkpoint.rsplit("-", 1)[1])
        under_way(step)
        return {"miou": scores[step], "pixel_accuracy": 0.5, "evaluated": 12, "skipped": 0}

    return evaluate


@pytest.fixture
def published(index: SampleIndex, tmp_path: Path) -> str:
    """A run whose weights of steps 2 and 4 wait."""
    plan = validating(index, tmp_path / "run")
    train_alone(plan)
    return plan.run


def test_the_newest_weights_are_validated_and_older_ones_passed_over(
    published: str, dataset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Validator, "_evaluate", stand_in({4: 0.25}))
    monkeypatch.setattr(Validator, "_has_room", lambda self: True)
    told: list[str] = []
    curve = Curve()
    with validator_of(published, dataset, told, curve) as validator:
        validator.finish(timeout_s=30)
    assert told[0] == "validation of step 2 passed over: there are newer weights"
    assert told[1].startswith("validation of step 4: mIoU 0.2500, pixel accuracy 0.5000 (the best so far), ")
    assert waiting_steps(published) == []
    assert curve.sent == [points_of_row(known) for known in read_rows(published)]
    assert curve.sent[0]["val/miou"] == 0.25
    assert load_model(Path(published, "best")).info["provenance"]["step"] == 4


def test_weights_that_are_no_better_do_not_replace_the_best(
    published: str, dataset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Validator, "_evaluate", stand_in({4: 0.25}))
    monkeypatch.setattr(Validator, "_has_room", lambda self: True)
    told: list[str] = []
    copy_published(published, source="validation/step-00000002", target="best")
    with validator_of(published, dataset, told, Curve(), saved=[row(1, 0.5)]) as validator:
        validator.finish(timeout_s=30)
    assert "(best at step 1)" in told[1]
    assert load_model(Path(published, "best")).info["provenance"]["step"] == 2, "what was there"
    assert [known["step"] for known in read_rows(published)] == [1, 4]
    assert validator.best_kept() == row(1, 0.5)


def test_where_the_best_weights_were_deleted_that_is_said_and_the_best_of_later_ones_are_kept(
    published: str, dataset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Validator, "_evaluate", stand_in({4: 0.25}))
    monkeypatch.setattr(Validator, "_has_room", lambda self: True)
    told: list[str] = []
    with validator_of(published, dataset, told, Curve(), saved=[row(1, 0.5)]) as validator:
        validator.finish(timeout_s=30)
    assert told[0].endswith("no weights are left of the validations so far; best/ holds those of the best from here on")
    best = validator.best_kept()
    assert best is not None
    assert (best["step"], best["miou"]) == (4, 0.25), "the figures are those of the weights that are named with them"
    assert load_model(Path(published, "best")).info["provenance"]["step"] == 4


def test_a_validation_that_fails_is_told_and_stops_nothing(
    published: str, dataset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(self: Validator, checkpoint: str) -> Any:
        raise ValueError("no such split\nand more")

    monkeypatch.setattr(Validator, "_evaluate", failing)
    monkeypatch.setattr(Validator, "_has_room", lambda self: True)
    told: list[str] = []
    with validator_of(published, dataset, told, Curve()) as validator:
        validator.finish(timeout_s=30)
    assert told[1] == "validation of step 4 failed: no such split; the training goes on"
    assert read_rows(published) == []


def test_trouble_with_ray_or_the_store_is_told_once_and_the_validation_comes_later(
    published: str, dataset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.training.validator.LOOK_EVERY_S", 0.01)
    monkeypatch.setattr(Validator, "_evaluate", stand_in({4: 0.25}))
    looks: list[int] = []

    def troubled(self: Validator) -> bool:
        looks.append(1)
        if len(looks) < 4:
            raise RaySystemError("the head node\ndoes not answer")
        return True

    monkeypatch.setattr(Validator, "_has_room", troubled)
    told: list[str] = []
    with validator_of(published, dataset, told, Curve()) as validator:
        validator.finish(timeout_s=30)
    assert [line for line in told if "looking again" in line] == [
        "validation: System error: the head node; looking again"
    ]
    assert [known["step"] for known in read_rows(published)] == [4]


def test_without_room_a_validation_waits_which_is_said_once_and_is_left_out_when_its_time_is_over(
    published: str, dataset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.training.validator.ray.available_resources", lambda: {"CPU": 0.25})
    monkeypatch.setattr("jobs.training.validator.LOOK_EVERY_S", 0.01)
    told: list[str] = []
    with validator_of(published, dataset, told, Curve()) as validator:
        time.sleep(0.2)
        validator.finish(timeout_s=0.1)
    assert told[0] == "validation waits for 0.5 CPU to be free; the training goes on"
    assert told[1:] == [
        f"validation of step {step} left out: the time for it is over (validate_timeout_s)" for step in (2, 4)
    ]


def test_the_training_does_not_wait_for_a_validation_under_way(
    index: SampleIndex, dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, plan = threading.Event(), validating(index, tmp_path)
    monkeypatch.setattr(Validator, "_evaluate", stand_in({2: 0.1, 4: 0.2}, lambda step: gate.wait(30)))
    monkeypatch.setattr(Validator, "_has_room", lambda self: True)
    with validator_of(plan.run, dataset, [], Curve()) as validator:
        _, figures = train_alone(plan)
        assert figures["steps"] == 6
        assert read_rows(plan.run) == []
        gate.set()
        validator.finish(timeout_s=30)
    assert read_rows(plan.run)[-1]["step"] == 4


@pytest.mark.timeout(600)
@pytest.mark.usefixtures("ray_local")
def test_a_job_validates_beside_its_training_keeps_the_best_and_says_what_an_evaluation_says(
    dataset: str, tmp_path: Path
) -> None:
    recipe = tiny_recipe(model=TinySpec(norm=True, pause_s=0.05), steps=60)
    looks = PredictorSpec(short_side=16)
    settings: dict[str, Any] = {
        "name": "tiny",
        "recipe": recipe,
        "data": (TrainData(dataset=dataset),),
        "validate_on": ValidationSplit(dataset=dataset, predictor=looks),
        "output": str(tmp_path),
        "device": "cpu",
        "validate_every": 10,
        "keep_best": True,
        "compute": ComputeSpec(actors=1, cpus=0.5),
        "tracking": {"enabled": False},
        "log_every": 50,
    }
    result = train.run(TrainJob(**settings))
    run = tmp_path / "tiny"
    rows = result["validations"]
    assert rows == read_rows(str(run))
    assert len(rows) >= 2, "at least one beside the training, and the last one"
    assert (rows[-1]["step"], rows[-1]["miou"]) == (60, result["miou"])
    best = best_row(rows, "miou")
    assert best is not None
    assert result["best"]["step"] == best["step"] == load_model(run / "best").info["provenance"]["step"]
    assert list((run / "validation").iterdir()) == []
    evaluated = partial(evaluate_checkpoint, str(run / "best"), dataset=dataset, labels="human", split="train")
    assert evaluated(predictor=looks).miou == pytest.approx(best["miou"], abs=1e-6)
    assert evaluated().miou != pytest.approx(best["miou"], abs=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"validate_every": 10, "validate_on": None}, "validate_every = 10 takes no effect without validate_on"),
        ({"keep_best": True}, "keep_best = True takes no effect without validate_every"),
        ({"patience": 3}, "patience = 3 takes no effect without validate_every"),
        ({"validate_metric": "pixel_accuracy"}, "validate_metric = 'pixel_accuracy' takes no effect"),
    ],
)
def test_settings_of_validations_without_validations_are_refused(
    dataset: str, changes: dict[str, Any], message: str
) -> None:
    data = {"dataset": dataset}
    settings = {"name": "x", "recipe": "pspnet_mobilenetv2_camvid", "data": [data], "validate_on": data}
    with pytest.raises(ValueError, match=message):
        TrainJob.model_validate(settings | changes)
