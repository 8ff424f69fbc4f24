"""Checkpoints written behind the training: what is waited for, what is tried again, what ends a run."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.training.checkpoints import checkpoint_steps, load_checkpoint, save_checkpoint
from jobs.training.plan import ValidationPlan
from jobs.training.saving import ATTEMPTS, MAX_FAILURES, Saver, host_copy
from jobs.training.step import Stepper
from pipelines import storage
from pipelines.samples import Part, SampleIndex, build_index
from tests.jobs.tiny_training import TinySpec, plan_of, tiny_recipe, train_alone
from tests.tiny_data import write_dataset


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> SampleIndex:
    root = tmp_path_factory.mktemp("data")
    write_dataset(root, shard_sizes=(6, 7))
    return build_index([Part(dataset=str(root))])


def saver_of(told: list[str], *, timeout_s: float = 30.0) -> Saver:
    return Saver(say=told.append, timeout_s=timeout_s, backoff_s=0.001)


def failing(times: int, error: Exception, done: list[int]) -> Callable[[Any], None]:
    """A save that works after so many failures."""

    def write(is_wanted: Callable[[], bool]) -> None:
        done.append(1)
        if len(done) <= times:
            raise error

    return write


def test_the_training_goes_on_while_a_save_is_under_way_and_the_next_save_waits_for_it() -> None:
    told: list[str] = []
    saver, gate, order = saver_of(told), threading.Event(), []

    def slow(is_wanted: Callable[[], bool]) -> None:
        gate.wait(20)
        order.append("first")

    begin = time.monotonic()
    saver.submit("first", slow)
    assert time.monotonic() - begin < 5
    assert order == []
    threading.Timer(0.2, gate.set).start()
    saver.submit("second", lambda is_wanted: order.append("second"))
    assert order[0] == "first", "one save at a time, so that memory holds one copy of the state"
    assert saver.flush()
    assert order == ["first", "second"]
    assert told == []


def test_a_save_that_fails_is_tried_again_and_that_is_told() -> None:
    told: list[str] = []
    done: list[int] = []
    saver = saver_of(told)
    saver.submit("checkpoint of step 5", failing(ATTEMPTS - 1, OSError("no space left"), done))
    assert saver.flush()
    assert len(done) == ATTEMPTS
    assert told == ["checkpoint of step 5: no space left; trying again"] * (ATTEMPTS - 1)


def test_a_save_that_never_works_is_told_and_the_third_in_a_row_is_an_error() -> None:
    told: list[str] = []
    saver = saver_of(told)
    for step in range(1, MAX_FAILURES):
        saver.submit(f"checkpoint of step {step}", failing(99, OSError("no space left"), []))
        assert not saver.flush()
        assert told[-1] == f"checkpoint of step {step}: not saved (no space left); training goes on without it"
    saver.submit("checkpoint of step 9", failing(99, OSError("no space left"), []))
    with pytest.raises(ValueError, match=r"^3 checkpoints in a row could not be saved .*no space left") as caught:
        saver.flush()
    assert "\n" not in str(caught.value)


def test_a_save_that_works_in_between_makes_the_count_begin_again() -> None:
    saver = saver_of([])
    for _ in range(2 * MAX_FAILURES):
        saver.submit("bad", failing(99, OSError("no space left"), []))
        saver.submit("good", lambda is_wanted: None)
    assert saver.flush()


def test_a_save_that_hangs_is_given_up_and_may_not_finish_later() -> None:
    told: list[str] = []
    saver, gate, wanted = saver_of(told, timeout_s=0.05), threading.Event(), []

    def hang(is_wanted: Callable[[], bool]) -> None:
        gate.wait(20)
        wanted.append(is_wanted())

    saver.submit("checkpoint of step 5", hang)
    assert not saver.flush()
    assert told == ["checkpoint of step 5: not saved (not done after 0.05 s); training goes on without it"]
    gate.set()
    while not wanted:
        time.sleep(0.001)
    assert wanted == [False]


def test_a_copy_of_the_state_is_not_changed_by_the_next_step() -> None:
    weight = torch.arange(6.0).reshape(2, 3)
    state = {"state": {0: {"momentum": weight, "step": 3}}, "groups": [{"betas": (0.9, 0.99), "params": [0]}]}
    copy = host_copy(state)
    weight.zero_()
    assert torch.equal(copy["state"][0]["momentum"], torch.arange(6.0).reshape(2, 3))
    assert copy["state"][0]["step"] == 3
    assert copy["groups"] == [{"betas": (0.9, 0.99), "params": [0]}]


def test_a_checkpoint_holds_the_state_of_its_step_although_training_went_on_while_it_was_written(
    index: SampleIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe(model=TinySpec(norm=True))
    train_alone(plan_of(index, tmp_path / "calm", recipe))
    later, real_write, real_step = threading.Event(), storage.write_bytes, Stepper.step

    def write(uri: str, data: bytes) -> None:
        if "step-00000003/model" in uri:
            assert later.wait(20), "the training waited for its checkpoint"
        real_write(uri, data)

    def step(self: Stepper, batches: Any) -> Any:
        loss = real_step(self, batches)
        if batches[0].step == 4:
            later.set()
        return loss

    monkeypatch.setattr(storage, "write_bytes", write)
    monkeypatch.setattr(Stepper, "step", step)
    train_alone(plan_of(index, tmp_path / "slow", recipe))
    ours, theirs = (load_checkpoint(f"{tmp_path}/{run}/checkpoints/step-00000003") for run in ("slow", "calm"))
    assert all(torch.equal(value, ours.model[name]) for name, value in theirs.model.items())
    assert str(ours.stepper) == str(theirs.stepper)


def test_the_state_is_not_copied_before_the_save_under_way_has_ended(
    index: SampleIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    under_way, copied_meanwhile, real_write, real_state = list[str](), list[str](), save_checkpoint, Stepper.state_dict

    def save(run: str, state: Any, **settings: Any) -> str:
        under_way.append(f"step {state.step}")
        time.sleep(0.3)
        uri = real_write(run, state, **settings)
        under_way.clear()
        return uri

    def state_dict(self: Stepper) -> dict[str, Any]:
        copied_meanwhile.extend(under_way)
        return real_state(self)

    monkeypatch.setattr("jobs.training.keeper.save_checkpoint", save)
    monkeypatch.setattr(Stepper, "state_dict", state_dict)
    train_alone(plan_of(index, tmp_path, tiny_recipe(), checkpoint_every=1))
    assert checkpoint_steps(str(tmp_path))[-1] == 6
    assert copied_meanwhile == []


def test_weights_that_cannot_be_published_cost_their_validation_and_no_checkpoint(
    index: SampleIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real, saved = save_checkpoint, list[int]()

    def save(run: str, state: Any, **settings: Any) -> str:
        saved.append(state.step)
        return real(run, state, **settings)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("jobs.training.keeper.save_checkpoint", save)
    monkeypatch.setattr("jobs.training.keeper.publish", full)
    validation = ValidationPlan(every=1, metric="miou", patience=None)
    plan = plan_of(index, tmp_path, tiny_recipe(), checkpoint_every=1, validation=validation)
    _, figures = train_alone(plan)
    assert saved == [1, 2, 3, 4, 5, 6], "each once"
    assert figures["is_saved"]
    told = capsys.readouterr().out
    assert "validation of step 2 left out: its weights were not written ([Errno 28] No space left on device)" in told
    assert "not saved" not in told


def test_a_run_goes_on_when_one_checkpoint_cannot_be_written(
    index: SampleIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = storage.write_bytes

    def losing(uri: str, data: bytes) -> None:
        if "step-00000003/manifest" not in uri:
            real(uri, data)

    monkeypatch.setattr(storage, "write_bytes", losing)
    monkeypatch.setattr("jobs.training.saving.ATTEMPTS", 2)
    _, figures = train_alone(plan_of(index, tmp_path, tiny_recipe(), keep_checkpoints=1))
    assert figures["steps"] == 6
    assert checkpoint_steps(str(tmp_path)) == [6]
    assert "checkpoint of step 3: not saved (DamagedCheckpointError: not whole" in capsys.readouterr().out


def test_a_run_whose_checkpoints_never_arrive_ends_with_one_line(
    index: SampleIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = storage.write_bytes

    def full(uri: str, data: bytes) -> None:
        if "/checkpoints/" in uri:
            raise OSError(28, "No space left on device")
        real(uri, data)

    monkeypatch.setattr(storage, "write_bytes", full)
    monkeypatch.setattr("jobs.training.saving.ATTEMPTS", 1)
    with pytest.raises(ValueError, match=r"3 checkpoints in a row could not be saved .*No space left on device"):
        train_alone(plan_of(index, tmp_path, tiny_recipe(), checkpoint_every=1))
