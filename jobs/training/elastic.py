"""Groups of workers that grow and shrink with the cluster. Runs in Ray Train's controller, which loads no networks.

Ray starts the group again when the room for it changes. From here comes how much room there is, which sizes there may
be, and that a healthy group saves before it is taken apart, so that no step is done twice.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import ray
from ray._private.state import state as ray_state
from ray.exceptions import GetTimeoutError, RayError
from ray.train import ScalingConfig
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError, WorkerGroupStartupTimeoutError
from ray.train.v2._internal.execution.callback import WorkerGroupCallback
from ray.train.v2._internal.execution.controller.state import RestartingState, SchedulingState
from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy, NoopDecision, ResizeDecision

from jobs.imports import load_for_good
from jobs.training.notice import Stop, listen_for_sigterm, stop_this_process

log = logging.getLogger(__name__)

_CONTROLLER = "ray.train.v2._internal.execution.controller.controller"
ANSWER_WITHIN_S = 10.0
LOOK_EVERY_S = 0.2
TELL_AFTER_S = 15.0
TELL_AGAIN_AFTER_S = 600.0


class Waiting:
    """Tells what a group waits for, once that is worth a word, again every ten minutes, and how long it took.

    Args:
        wanted: what the smallest group takes, for a person.
        room: what the cluster has, for a person.
    """

    def __init__(
        self,
        wanted: str,
        *,
        room: Callable[[], str],
        say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._wanted, self._room, self._say, self._clock = wanted, room, say, clock
        self._since: float | None = None
        self._told_at: float | None = None

    def still(self) -> None:
        """No group trains."""
        now = self._clock()
        self._since = now if self._since is None else self._since
        due = self._since + TELL_AFTER_S if self._told_at is None else self._told_at + TELL_AGAIN_AFTER_S
        if now >= due:
            self._told_at = now
            waited = f"for {now - self._since:.0f} s"
            self._say(f"waiting {waited} for room: at least {self._wanted}; the cluster has {self._room()}")

    def over(self) -> None:
        """A group trains."""
        if self._since is not None and self._told_at is not None:
            self._say(f"there is room, after {self._clock() - self._since:.0f} s")
        self._since = self._told_at = None


class UsableSizes(ElasticScalingPolicy):  # type: ignore[misc]
    """Ray's policy, for sizes that divide lanes and global batch, where there are free places for them.

    What Ray's coordinator has reserved for a run is not asked: it reserves for a killed driver, too, for three minutes.
    """

    def __init__(self, scaling_config: ScalingConfig, *, sizes: Sequence[int], data_workers: int) -> None:
        super().__init__(scaling_config)
        self._sizes, self._data_workers = tuple(sizes), data_workers
        self._each = scaling_config._resources_per_worker_not_none
        self._own: int | None = None
        """Workers of the group that runs, whose places are its own.

        None before the first group and after one has died: what it had is free only when the next one is started, so
        that all the machines have is tried, once.
        """
        wanted = wanted_text(sizes[0], self._each, data_workers=data_workers)
        self._waiting = Waiting(wanted, room=_room, say=lambda text: print(text, flush=True))

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        """Know whether a group has places."""
        if isinstance(current_state, SchedulingState):
            self._own = 0
        elif isinstance(current_state, RestartingState):
            self._own = None

    def make_decision_for_non_running_worker_group(self) -> Any:
        """Ray's, and a word where that takes long."""
        logging.getLogger(_CONTROLLER).addFilter(_is_news)
        self._waiting.still()
        decision = super().make_decision_for_non_running_worker_group()
        if isinstance(decision, NoopDecision):
            time.sleep(LOOK_EVERY_S)  # Ray asks again at once
        return decision

    def make_decision_for_running_worker_group(self, worker_group_state: Any, worker_group_status: Any) -> Any:
        """Grow where there is room; a healthy group is never made smaller."""
        self._waiting.over()
        self._own = worker_group_state.num_workers
        decision = super().make_decision_for_running_worker_group(worker_group_state, worker_group_status)
        shrinks = isinstance(decision, ResizeDecision) and decision.num_workers < worker_group_state.num_workers
        return NoopDecision() if shrinks else decision

    def _get_reserved_resources(self) -> dict[str, dict[str, float]] | None:
        """What there is on each machine that stays, beside the places of a group that runs; None where Ray is away."""
        try:
            nodes = (
                ray_state.total_resources_per_node() if self._own is None else ray_state.available_resources_per_node()
            )
            leaving = ray_state.get_draining_nodes()
        except RayError as error:
            log.warning("what is free is not known now: %s", error)
            return None
        return {node: found for node, found in nodes.items() if node not in leaving}

    def _count_possible_workers(self, reserved_resources: Mapping[str, Mapping[str, float]]) -> int:
        own, cpus = self._own or 0, self._each.get("CPU", 0.0)
        room = list(reserved_resources.values())
        total = sum(node.get("CPU", 0.0) for node in room) + own * cpus
        total -= 0 if own else self._data_workers  # those of a group that runs have their CPUs
        return largest_size(self._sizes, own + places(room, self._each), cpus=cpus, total_cpus=total)


def largest_size(sizes: Sequence[int], possible: int, *, cpus: float, total_cpus: float) -> int:
    """The largest of the sizes that `possible` workers and `total_cpus` allow; 0 where none does.

    Of those CPUs, which the data workers' do not count among, one is left to the data stages, unless that would leave
    too few for the smallest size.
    """
    fitting = [size for size in sizes if size <= possible and size * cpus <= total_cpus + 1e-6]
    sparing = [size for size in fitting if total_cpus - size * cpus >= 1 - 1e-6]
    return max(sparing or fitting[:1], default=0)


def places(free: Sequence[Mapping[str, float]], each: Mapping[str, float]) -> int:
    """How many workers find what each of them takes on machines of which so much is free."""
    needed = {name: amount for name, amount in each.items() if amount > 0}
    return sum(min(int(node.get(name, 0.0) / amount + 1e-6) for name, amount in needed.items()) for node in free)


def _is_news(record: logging.LogRecord) -> bool:
    """A group that did not come together is tried again: what it waits for is told in one line, not by a traceback."""
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, (WorkerGroupStartupTimeoutError, WorkerGroupStartupFailedError))


def wanted_text(workers: int, resources: Mapping[str, float], *, data_workers: int) -> str:
    """What so many workers take, for a person."""
    each = " and ".join(f"{amount:g} {name}" for name, amount in resources.items() if amount)
    beside = f", beside {data_workers} data workers of 1 CPU each" if data_workers else ""
    return f"{workers} workers of {each} each{beside}" if workers > 1 else f"1 worker of {each}{beside}"


def room_text(total: Mapping[str, float], free: Mapping[str, float]) -> str:
    """What a cluster has and what of it is free, for a person."""
    names = [name for name in ("CPU", "GPU") if total.get(name)]
    return " and ".join(f"{total[name]:g} {name} ({free.get(name, 0):g} free)" for name in names) or "none now"


def _room() -> str:
    return room_text(ray.cluster_resources(), ray.available_resources())


class Orderly(WorkerGroupCallback):  # type: ignore[misc]
    """Makes SIGTERM a notice in every worker, and lets a healthy group save before it is taken apart.

    Args:
        stop_within_s: a group that has not stopped by then is taken apart; the next one goes on from its newest
            checkpoint.
    """

    def __init__(self, stop_within_s: float) -> None:
        self._stop_within_s = stop_within_s
        self._is_training = False
        self._starting: Any = None

    @contextlib.contextmanager
    def on_worker_group_start(self) -> Iterator[None]:
        """Where a worker dies at the last of the start, have what the group has given back.

        Ray gives it back only of groups that are not yet known to have started; else the next one finds it taken.
        """
        try:
            yield
        except Exception:
            if self._starting is not None:
                self._starting._clear_state()
            raise
        finally:
            self._starting = None

    def after_worker_group_start(self, worker_group: Any) -> None:
        """Listen for SIGTERM, in the main thread of every worker."""
        self._starting = worker_group
        ray.get([worker.execute_async(listen_for_sigterm) for worker in worker_group.get_workers()])

    def after_worker_group_poll_status(self, worker_group_status: Any) -> None:
        """Remember whether the group trains."""
        self._is_training = not worker_group_status.errors and not worker_group_status.finished

    def before_worker_group_shutdown(self, worker_group: Any) -> None:
        """Give a group that trains the notice, and wait until it has stopped."""
        if not self._is_training:
            return
        self._is_training = False
        workers = worker_group.get_workers()
        notice = (int(Stop.RESIZE), "the group gets another size")
        try:
            told = [worker.execute_async(stop_this_process, *notice) for worker in workers]
            with contextlib.suppress(GetTimeoutError):  # a slow one will hear of it
                ray.get(told, timeout=ANSWER_WITHIN_S)
            deadline = time.monotonic() + self._stop_within_s
            while _any_trains(workers) and time.monotonic() < deadline:
                time.sleep(LOOK_EVERY_S)
        except RayError as error:  # one has died meanwhile: the newest checkpoint it is
            log.warning("the group could not be stopped in order: %s", error)


class LoadsFirst(WorkerGroupCallback):  # type: ignore[misc]
    """Has every worker import all that the training needs before Ray unpacks the first thing that needs some of it.

    Args:
        module: what runs in the workers.
    """

    def __init__(self, module: str) -> None:
        self._module = module

    def before_init_train_context(self, workers: Sequence[Any]) -> dict[str, list[Any]]:
        """Import it; the workers know their GPUs by then."""
        ray.get([worker.execute_async(load_for_good, self._module) for worker in workers])
        return {}


def _any_trains(workers: Sequence[Any]) -> bool:
    try:
        states = ray.get([worker.actor.poll_status.remote() for worker in workers], timeout=ANSWER_WITHIN_S)
    except GetTimeoutError:
        return True
    return any(state.running and state.error is None for state in states)
