"""Groups that grow and shrink: which sizes there are, and that the run stays the same run."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ray.exceptions import RayActorError, RaySystemError
from ray.train import ScalingConfig
from ray.train.v2._internal.execution.controller.state import (
    InitializingState,
    RestartingState,
    RunningState,
    SchedulingState,
)
from ray.train.v2._internal.execution.scaling_policy import ResizeDecision
from ray.train.v2.api.exceptions import ControllerError

from jobs.specs import TrainJob
from jobs.training.elastic import Orderly, UsableSizes, Waiting, largest_size, places, room_text, wanted_text
from jobs.training.loop import train
from jobs.training.notice import Notices, Stop
from jobs.training.plan import TrainPlan, Worker, passes_of, usable_sizes
from jobs.training.points import read_points
from jobs.training.resources import Node, allocate_elastic
from jobs.training.rng import rng_state, seed_rng, start_rng
from jobs.training.step import Stepper
from pipelines.samples import Part, SampleIndex, build_index
from tests.jobs.ranks import run_ranks
from tests.jobs.tiny_training import CPU, TINY_PSPNET, TinySpec, plan_of, tiny_recipe
from tests.tiny_data import write_dataset

GPU = torch.device("cuda")


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> SampleIndex:
    root = tmp_path_factory.mktemp("data")
    write_dataset(root, shard_sizes=(6, 7, 5, 6))
    return build_index([Part(dataset=str(root))])


# -- sizes -----------------------------------------------------------------------------------------------------------


def test_only_sizes_that_divide_lanes_and_batch_train() -> None:
    recipe = tiny_recipe(global_batch=16, lanes=48)
    assert usable_sizes(1, 8, recipe=recipe, accumulate=1) == (1, 2, 4, 8)
    assert usable_sizes(2, 8, recipe=recipe, accumulate=4) == (2, 4)
    with pytest.raises(ValueError, match=r"workers.min = 5: no number of workers from 5 to 7 divides 48 lanes .*is 4"):
        usable_sizes(5, 7, recipe=recipe, accumulate=1)


@pytest.mark.parametrize(
    ("possible", "cpus", "total", "size"),
    [
        (4, 1.0, 9.0, 4),
        (3, 1.0, 9.0, 2),  # three do not divide
        (4, 1.0, 4.0, 2),  # four would take the last CPU
        (1, 1.0, 1.0, 1),  # there is none to leave
        (4, 1.0, 0.0, 0),  # the data workers need them all
        (4, 1.0, -1.0, 0),
        (4, 2.0, 3.0, 1),
        (0, 1.0, 4.0, 0),
    ],
)
def test_a_group_takes_what_divides_and_leaves_a_cpu(possible: int, cpus: float, total: float, size: int) -> None:
    assert largest_size((1, 2, 4), possible, cpus=cpus, total_cpus=total) == size


@pytest.mark.parametrize(
    ("free", "each", "expected"),
    [
        ([{"CPU": 3.0}, {"CPU": 1.0}, {}], {"CPU": 1.0}, 4),
        ([{"CPU": 3.0}, {"CPU": 1.0}], {"CPU": 2.0}, 1),
        ([{"CPU": 0.3}], {"CPU": 0.1}, 3),
        ([{"CPU": 8.0, "GPU": 1.0}, {"CPU": 8.0}], {"CPU": 3.0, "GPU": 1.0}, 1),
        ([{"CPU": 2.0}], {"CPU": 1.0, "GPU": 0.0}, 2),
        ([], {"CPU": 1.0}, 0),
    ],
)
def test_a_worker_has_its_place_on_one_machine(
    free: list[dict[str, float]], each: dict[str, float], expected: int
) -> None:
    assert places(free, each) == expected


@pytest.mark.parametrize(
    ("nodes", "device", "expected"),
    [
        ([Node(1)] * 5, "cpu", (4, "cpu", 1.0)),
        ([Node(1)] * 3, "cpu", (2, "cpu", 1.0)),
        ([Node(16)], "auto", (4, "cpu", 3.0)),
        ([Node(2)], "cpu", (1, "cpu", 1.0)),
        ([Node(8, gpus=2)], "auto", (2, "cuda", 3.0)),
        ([Node(32, gpus=8)], "cuda", (4, "cuda", 7.0)),
    ],
)
def test_an_elastic_group_is_sized_for_the_machines_that_are_there(
    nodes: list[Node], device: Any, expected: tuple[int, str, float]
) -> None:
    found = allocate_elastic(nodes, sizes=(1, 2, 4), device=device, threads=None)
    assert (found.workers, found.device, found.cpus) == expected
    assert found.sizes == (1, 2, 4)


def test_a_small_group_on_gpus_takes_more_passes_and_one_on_cpus_as_many_as_before(index: SampleIndex) -> None:
    recipe = tiny_recipe(global_batch=16, lanes=48)
    plan = plan_of(index, "run", recipe, accumulate=2, max_workers=4)
    assert [passes_of(plan, Worker(0, world, GPU)) for world in (4, 2, 1)] == [2, 4, 8], "two images a pass, always"
    assert [passes_of(plan, Worker(0, world, CPU)) for world in (4, 2, 1)] == [2, 2, 2]
    odd = plan_of(index, "run", tiny_recipe(global_batch=12, lanes=48), max_workers=4)
    assert [passes_of(odd, Worker(0, world, GPU)) for world in (4, 3, 2, 1)] == [1, 2, 2, 4]


@pytest.mark.parametrize(
    ("workers", "message"),
    [
        ({"min": 4, "max": 2}, "min = 4 is more than max = 2"),
        ({"min": 2, "max": 2}, "min and max are both 2: write workers = 2"),
        ({"min": 0, "max": 2}, "greater than 0"),
        (0, "greater than 0"),
    ],
)
def test_a_range_of_workers_that_is_none_is_refused(workers: Any, message: str) -> None:
    settings = {"name": "x", "recipe": "pspnet_mobilenetv2_camvid", "data": [{"dataset": "d"}], "workers": workers}
    with pytest.raises(ValueError, match=message):
        TrainJob.model_validate(settings)


class Cluster:
    """A controller, and what Ray says of its nodes, for a policy of groups of one, two or three workers of one CPU.

    The policy's coordinator is not there: asking it, as Ray's own does, fails.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, data_workers: int = 0) -> None:
        self.total, self.free, self.leaving = {"a": 4.0}, {"a": 4.0}, dict[str, int]()
        scaling = ScalingConfig(num_workers=(1, 3), resources_per_worker={"CPU": 1.0})
        self.policy = UsableSizes(scaling, sizes=(1, 2, 3), data_workers=data_workers)
        state = SimpleNamespace(
            available_resources_per_node=lambda: as_resources(self.free),
            total_resources_per_node=lambda: as_resources(self.total),
            get_draining_nodes=lambda: self.leaving,
        )
        monkeypatch.setattr(UsableSizes, "_maybe_send_resource_request", lambda policy: None)
        monkeypatch.setattr("jobs.training.elastic.ray_state", state)

    def start(self) -> int | None:
        """The size of a group that is to start; None where it waits."""
        size = size_of(self.policy.make_decision_for_non_running_worker_group())
        if size is not None:
            self.policy.after_controller_state_update(InitializingState(), scheduling(size))
        return size

    def fail(self, size: int) -> None:
        """A worker of the group that runs dies; Ray takes the group apart only when the next one is started."""
        error = ControllerError(RuntimeError("a worker died"))
        self.policy.after_controller_state_update(scheduling(size), RunningState())
        self.policy.after_controller_state_update(RunningState(), RestartingState(training_failed_error=error))

    def look(self, workers: int) -> int | None:
        """The new size of a group of so many that runs; None where it stays as it is."""
        self.policy._latest_monitor_time = float("-inf")
        state = SimpleNamespace(num_workers=workers, start_time=float("-inf"))
        return size_of(self.policy.make_decision_for_running_worker_group(state, None))


def scheduling(size: int) -> SchedulingState:
    return SchedulingState(ResizeDecision(num_workers=size, resources_per_worker={"CPU": 1.0}))


def as_resources(nodes: dict[str, float]) -> dict[str, dict[str, float]]:
    return {name: {"CPU": cpus} for name, cpus in nodes.items()}


def size_of(decision: Any) -> int | None:
    return decision.num_workers if isinstance(decision, ResizeDecision) else None


def test_a_group_that_does_not_come_together_is_tried_in_a_size_for_which_there_is_free_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cluster = Cluster(monkeypatch)
    cluster.free["a"] = 2.0  # something else has the other two
    assert cluster.start() == 3, "what a killed driver's group had may not be free yet"
    assert cluster.start() == 1, "one CPU stays free"
    cluster.free["a"] = 0.0
    assert cluster.start() is None
    cluster.free["a"] = 4.0
    assert cluster.start() == 3


def test_the_places_of_a_group_that_died_are_its_successors(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(monkeypatch)
    cluster.free["a"] = 1.0
    assert cluster.look(3) is None
    cluster.fail(3)
    assert cluster.start() == 3
    cluster.fail(3)
    assert cluster.start() == 3, "it died before anyone had looked at it"
    cluster.fail(3)
    cluster.total = {"b": 2.0}
    cluster.free = {"b": 0.0}  # Ray has given the new machine to what is left of the group
    assert cluster.start() == 1


def test_a_group_that_could_not_be_started_in_another_size_has_no_places_any_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cluster = Cluster(monkeypatch)
    cluster.free["a"] = 3.0
    assert cluster.look(1) == 3
    cluster.policy.after_controller_state_update(RunningState(), scheduling(3))
    cluster.free["a"] = 2.0  # other work was faster, and the one worker's place is free
    assert cluster.start() == 1


def test_a_machine_that_is_taken_away_has_no_places(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(monkeypatch)
    cluster.total["b"] = cluster.free["b"] = 2.0
    cluster.leaving["a"] = 0
    assert cluster.start() == 1
    cluster.free["b"] = 1.0
    assert cluster.look(1) is None
    assert cluster.look(3) is None, "a healthy group is not made smaller"


def test_a_group_grows_only_onto_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(monkeypatch)
    cluster.free["a"] = 1.0
    assert cluster.look(1) is None, "the last free CPU is the data stages'"
    cluster.total["b"], cluster.free["b"] = 4.0, 0.0  # a machine that other work fills
    assert cluster.look(1) is None
    cluster.free["b"] = 1.0
    assert cluster.look(1) == 2
    assert cluster.look(2) == 3
    assert cluster.look(3) is None


def test_a_group_waits_until_its_data_workers_find_room_too(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(monkeypatch, data_workers=4)
    assert cluster.start() is None
    cluster.total["b"] = cluster.free["b"] = 2.0
    assert cluster.start() == 1
    cluster.free["a"] = cluster.free["b"] = 0.0  # they and the worker have the rest
    assert cluster.look(1) is None
    cluster.free["b"] = 2.0
    assert cluster.look(1) == 2


def test_a_group_waits_while_ray_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(monkeypatch)

    def away() -> dict[str, dict[str, float]]:
        raise RaySystemError("the head is away")

    monkeypatch.setattr("jobs.training.elastic.ray_state.total_resources_per_node", away)
    assert cluster.start() is None


def test_what_a_group_has_that_failed_at_the_last_of_its_start_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    given_back: list[str] = []
    orderly = Orderly(1.0)
    worker = SimpleNamespace(execute_async=lambda *_: "answer")
    group = SimpleNamespace(get_workers=lambda: [worker], _clear_state=lambda: given_back.append("group"))

    def die(answers: list[str]) -> None:
        raise RayActorError

    monkeypatch.setattr("jobs.training.elastic.ray.get", lambda answers: answers)
    with orderly.on_worker_group_start():
        orderly.after_worker_group_start(group)
    with pytest.raises(RayActorError), orderly.on_worker_group_start():
        raise RayActorError
    assert given_back == [], "the first trains, and of the second Ray gives all back"
    monkeypatch.setattr("jobs.training.elastic.ray.get", die)
    with pytest.raises(RayActorError), orderly.on_worker_group_start():
        orderly.after_worker_group_start(group)
    assert given_back == ["group"]


# -- waiting for room --------------------------------------------------------------------------------------------------


def test_a_group_that_waits_says_so_once_with_what_is_missing_and_then_how_long_it_took() -> None:
    now, said = [0.0], list[str]()
    waiting = Waiting("2 workers", room=lambda: "1 CPU (1 free)", say=said.append, clock=lambda: now[0])

    def wait(seconds: int) -> None:
        for _ in range(seconds):
            now[0] += 1
            waiting.still()

    waiting.still()
    wait(14)
    assert said == [], "a start takes some seconds in any case"
    wait(500)
    assert said == ["waiting for 15 s for room: at least 2 workers; the cluster has 1 CPU (1 free)"]
    wait(200)
    assert said[1:] == ["waiting for 615 s for room: at least 2 workers; the cluster has 1 CPU (1 free)"]
    waiting.over()
    waiting.over()
    assert said[2:] == ["there is room, after 714 s"]
    now[0] += 1000
    waiting.still()
    waiting.over()
    assert len(said) == 3, "another wait begins anew"


def test_what_a_group_waits_for_is_told_in_cpus_and_gpus() -> None:
    assert wanted_text(1, {"CPU": 1.0}, data_workers=0) == "1 worker of 1 CPU"
    assert wanted_text(2, {"CPU": 3.0, "GPU": 1.0}, data_workers=0) == "2 workers of 3 CPU and 1 GPU each"
    told = "2 workers of 0.5 CPU each, beside 4 data workers of 1 CPU each"
    assert wanted_text(2, {"CPU": 0.5}, data_workers=4) == told
    assert room_text({"CPU": 8.0, "GPU": 2.0, "memory": 1e9}, {"CPU": 3.0}) == "8 CPU (3 free) and 2 GPU (0 free)"
    assert room_text({}, {}) == "none now"


# -- random numbers --------------------------------------------------------------------------------------------------


def test_random_numbers_go_on_at_the_same_size_and_are_those_of_seed_step_size_and_rank_at_another() -> None:
    saved = []
    for rank in range(2):
        seed_rng(7, rank)
        saved.append(rng_state(CPU))

    def draw(rank: int, world: int, step: int = 30) -> list[float]:
        start_rng(saved, seed=3, step=step, rank=rank, world=world, device=CPU)
        return list(torch.rand(3).tolist())

    seed_rng(7, 1)
    expected = torch.rand(3).tolist()
    assert draw(1, 2) == expected
    resized = [draw(rank, 4) for rank in range(4)]
    assert len({tuple(numbers) for numbers in resized}) == 4
    torch.rand(100)
    assert [draw(rank, 4) for rank in range(4)] == resized, "whatever was drawn before"
    assert draw(0, 4, step=31) != resized[0]


# -- 4 -> 2 -> 4 -----------------------------------------------------------------------------------------------------

Steps = dict[int, list[str]]


def train_part(rank: int, world: int, plan: TrainPlan, until: int) -> Steps:
    """Train as a group of some size until a notice; the ids of every step, as this rank saw them."""
    ids: Steps = {}
    known_after = 2 if world > 1 else 1  # what one rank says after a step, all know after the next
    notices, real = Notices(), Stepper.step

    def recording(self: Stepper, batches: Any) -> Any:
        step = batches[0].step
        ids[step] = [sample for batch in batches for sample in batch.ids]
        if step + known_after == until:
            notices.give(Stop.RESIZE, "another size")
        return real(self, batches)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jobs.training.agreement.EVERY_S", 0.0)
        patch.setattr(Stepper, "step", recording)
        _, figures = train(plan, Worker(rank=rank, world=world, device=CPU), notices=notices)
    assert figures["steps"] == until
    return ids


def ids_of(parts: list[Steps]) -> dict[int, list[str]]:
    """The ids of every global step."""
    return {step: sorted(sample for part in parts for sample in part[step]) for step in parts[0]}


def test_a_run_of_four_then_two_then_four_workers_sees_what_four_see_and_learns_the_same(
    index: SampleIndex, tmp_path: Path
) -> None:
    recipe = tiny_recipe(model=TINY_PSPNET | {"dropout": 0.0}, steps=20, global_batch=8, lanes=8)
    settings = {"checkpoint_every": 100, "log_every": 1, "max_workers": 4}
    straight = run_ranks(train_part, 4, plan_of(index, tmp_path / "straight", recipe, **settings), 20)
    plan = plan_of(index, tmp_path / "elastic", recipe, **settings)
    parts = [run_ranks(train_part, world, plan, until) for world, until in ((4, 7), (2, 13), (4, 20))]
    seen = {step: ids for part in parts for step, ids in ids_of(part).items()}
    assert seen == ids_of(straight)
    assert sorted(seen) == list(range(20)), "no step twice"
    epoch = [sample for step in range(3) for sample in seen[step]]
    assert len(set(epoch)) == index.num_samples == 24
    losses = [[point["train/loss"] for point in read_points(str(tmp_path / run))] for run in ("straight", "elastic")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_the_smallest_and_the_largest_network_state_travel_between_group_sizes(
    index: SampleIndex, tmp_path: Path
) -> None:
    recipe = tiny_recipe(model=TinySpec(norm=True, dropout=0.3), global_batch=4, lanes=4)
    plan = plan_of(index, tmp_path, recipe, checkpoint_every=100)
    run_ranks(train_part, 2, plan, 3)
    again = [run_ranks(train_part, 1, plan, 5), run_ranks(train_part, 2, plan, 6)]
    assert [sorted(part[0]) for part in again] == [[3, 4], [5]]
