"""Notices: all workers stop after the same step, save, and the next group goes on as if nothing had been."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from jobs.training.agreement import Agreement
from jobs.training.checkpoints import checkpoint_steps, load_checkpoint
from jobs.training.groups import read_groups
from jobs.training.loop import train
from jobs.training.notice import Notices, Stop, Watch
from jobs.training.plan import TrainPlan, Worker
from jobs.training.step import Stepper
from pipelines.samples import Part, SampleIndex, build_index
from tests.jobs.ranks import run_ranks
from tests.jobs.tiny_training import CPU, TinySpec, plan_of, tiny_recipe, train_alone
from tests.tiny_data import write_dataset

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> SampleIndex:
    root = tmp_path_factory.mktemp("data")
    write_dataset(root, shard_sizes=(6, 7))
    return build_index([Part(dataset=str(root))])


def give_at(step: int, notices: Notices, patch: pytest.MonkeyPatch) -> None:
    """Give a notice while a step is under way."""
    real = Stepper.step

    def noticing(self: Stepper, batches: Any) -> Tensor:
        if batches[0].step == step:
            notices.give(Stop.TAKEN_AWAY, "the machine goes")
        return real(self, batches)

    patch.setattr(Stepper, "step", noticing)


def test_a_notice_stops_the_run_after_its_step_with_a_checkpoint_from_which_it_goes_on_exactly(
    index: SampleIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe(model=TinySpec(norm=True, dropout=0.3))
    train_alone(plan_of(index, tmp_path / "straight", recipe))
    plan, notices = plan_of(index, tmp_path / "cut", recipe), Notices()
    with monkeypatch.context() as patch:
        give_at(3, notices, patch)
        _, figures = train(plan, Worker(rank=0, world=1, device=CPU), notices=notices)
    assert (figures["steps"], figures["stop"], figures["reason"]) == (4, "TAKEN_AWAY", "the machine goes")
    assert checkpoint_steps(plan.run) == [3, 4]
    _, figures = train_alone(plan)
    assert (figures["steps"], figures["resumed_from"], figures["stop"]) == (6, 4, "NONE")
    ours, theirs = (load_checkpoint(f"{tmp_path}/{run}/checkpoints/step-00000006") for run in ("cut", "straight"))
    assert all(torch.equal(value, ours.model[name]) for name, value in theirs.model.items())
    assert [group["from_step"] for group in read_groups(plan.run)] == [0, 4]


def test_a_trace_that_a_notice_cuts_is_written_and_the_rest_when_the_run_goes_on(
    index: SampleIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, notices = plan_of(index, tmp_path, tiny_recipe(), profile_steps=(3, 6)), Notices()
    with monkeypatch.context() as patch:
        give_at(3, notices, patch)
        train(plan, Worker(rank=0, world=1, device=CPU), notices=notices)
    train_alone(plan)
    traces = {path.name: path.read_text() for path in (tmp_path / "profile").iterdir()}
    assert set(traces) == {"steps-00000003-00000004.json", "steps-00000005-00000006.json"}
    found = [{event.get("name") for event in json.loads(trace)["traceEvents"]} for _, trace in sorted(traces.items())]
    assert "step 4" in found[0] - found[1]
    assert "step 5" in found[1] - found[0]


def test_a_notice_during_the_last_step_is_too_late_to_matter(
    index: SampleIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notices = Notices()
    give_at(5, notices, monkeypatch)
    plan = plan_of(index, tmp_path, tiny_recipe())
    _, figures = train(plan, Worker(rank=0, world=1, device=CPU), notices=notices)
    assert (figures["steps"], figures["stop"], figures["reason"]) == (6, "NONE", "")


def stop_and_go_on(rank: int, world: int, plan: TrainPlan, straight: TrainPlan) -> list[Any]:
    """Train to the end; and with a notice that only rank 1 hears of, then on to the end."""
    worker, notices = Worker(rank=rank, world=world, device=CPU), Notices()
    whole, _ = train(straight, worker)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jobs.training.agreement.EVERY_S", 0.0)
        if rank == 1:
            give_at(2, notices, patch)
        _, stopped = train(plan, worker, notices=notices)
    model, figures = train(plan, worker)
    equal = all(torch.equal(value, model.state_dict()[name]) for name, value in whole.state_dict().items())
    return [stopped["steps"], stopped["stop"], stopped["reason"], figures["resumed_from"], equal]


def test_a_notice_to_one_rank_stops_both_after_the_same_step(index: SampleIndex, tmp_path: Path) -> None:
    recipe = tiny_recipe(model=TinySpec(norm=True, dropout=0.3))
    plans = plan_of(index, tmp_path / "cut", recipe), plan_of(index, tmp_path / "straight", recipe)
    first, second = run_ranks(stop_and_go_on, 2, *plans)
    assert first == second == [4, "TAKEN_AWAY", "the machine goes", 4, True], "said after step 3, known after step 4"


def exchange_often(rank: int, world: int) -> list[list[str]]:
    """Notices of rank 1 among steps whose lengths the ranks measure differently; what this rank is told."""
    now = [0.0]
    agreement = Agreement(world, clock=lambda: now[0])
    told = []
    for step in range(40):
        now[0] += (0.1, 0.02)[rank]
        stop = agreement.reached(Stop.TAKEN_AWAY if rank == 1 and step >= 20 else Stop.NONE)
        told.append(stop.name)
        if stop is not Stop.NONE:
            break
    agreement.close()
    return [told]


def test_short_steps_are_not_interrupted_for_every_exchange_and_all_ranks_count_alike() -> None:
    first, second = run_ranks(exchange_often, 2)
    assert first == second
    assert first[0][-1] == "TAKEN_AWAY"
    assert len(first[0]) - 20 <= 2 * 3, "two exchanges, two steps of the slower rank apart"


def test_the_watch_passes_on_what_its_checks_say_and_an_earlier_weightier_notice_stays() -> None:
    notices = Notices()
    watch = Watch(notices, [lambda: (Stop.RESIZE, "more room"), lambda: (Stop.NONE, "")], every_s=0.01)
    while notices.stop is Stop.NONE:
        time.sleep(0.001)
    watch.close()
    assert (notices.stop, notices.reason) == (Stop.RESIZE, "more room")
    notices.give(Stop.TAKEN_AWAY, "SIGTERM")
    notices.give(Stop.RESIZE, "more room")
    assert (notices.stop, notices.reason) == (Stop.TAKEN_AWAY, "SIGTERM")


def test_a_check_that_cannot_be_asked_now_is_asked_again() -> None:
    notices, asked = Notices(), list[int]()

    def check() -> tuple[Stop, str]:
        asked.append(1)
        if len(asked) < 3:
            raise RuntimeError("the head node does not answer")
        return Stop.TAKEN_AWAY, "the machine goes"

    watch = Watch(notices, [check], every_s=0.01)
    limit = time.monotonic() + 20
    while notices.stop is Stop.NONE and time.monotonic() < limit:
        time.sleep(0.001)
    watch.close()
    assert notices.stop is Stop.TAKEN_AWAY


SCRIPT = """
import os, signal, sys, time
from jobs.training.notice import NOTICES, Stop, listen_for_sigterm
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
listen_for_sigterm()
os.kill(os.getpid(), signal.SIGTERM)
while NOTICES.stop is Stop.NONE:
    time.sleep(0.01)
print(NOTICES.stop.name, NOTICES.reason, flush=True)
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(60)
"""


def test_sigterm_is_a_notice_and_a_second_one_ends_the_process_as_it_would_have() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, cwd=ROOT, timeout=50, check=False
    )
    assert done.stdout == "TAKEN_AWAY SIGTERM\n", done.stderr
    assert done.returncode == 7
