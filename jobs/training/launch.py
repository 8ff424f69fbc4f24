"""Start a training run on Ray Train V2 and wait for its end.

Ray starts the workers, forms the process group and starts them again when one dies. What they go on from is our own
checkpoint, so nothing of Ray's storage is needed afterwards and it lies in a scratch folder.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import tempfile
import uuid
from collections.abc import Iterator
from typing import Any

from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import get_or_create_autoscaling_coordinator
from ray.exceptions import RayError
from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError, WorkerGroupError

from jobs.training.elastic import LoadsFirst, Orderly, UsableSizes
from jobs.training.notice import Stop
from jobs.training.plan import TrainPlan
from jobs.training.resources import Allocation
from jobs.training.worker import forget_failure, read_failure, run_worker

START_ATTEMPTS = 3  # a worker group that cannot get its resources is tried this often, then the run ends
START_TIMEOUT = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
_ENVIRONMENT = {
    "RAY_TRAIN_V2_ENABLED": "1",
    START_TIMEOUT: "120",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",  # seconds until a dead worker, or the end, is noticed; Ray's are two
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths of the job must mean the same in the workers
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # else every line of the log appears twice
    # The workers ask themselves, twice a second: Ray's watcher is one more process and looks every five seconds.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}
_ELASTIC_START_S = "5"
"""An elastic group that does not come together soon is tried in another size: the machine it counted on may be dead."""
_LAST_STEP_S = 60.0
IDLE_STOPS = 3
"""Groups in a row that were told to stop before they had done a step."""


_NEEDLESS = (DatasetsCallback, PlacementGroupCleanerCallback)


class _Trainer(TorchTrainer):  # type: ignore[misc]
    """A trainer whose groups end in order, and have only sizes that divide lanes and global batch.

    Without two actors of Ray's: one serves datasets, of which it has none, from a process that takes seconds to start;
    the other removes placement groups after the controller's death: they end with the driver anyway, and where Ray has
    no dashboard it dies with a traceback.
    """

    sizes: tuple[int, ...] = ()
    data_workers: int = 0
    stop_within_s: float = 0.0

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        kept = [callback for callback in callbacks if not isinstance(callback, _NEEDLESS)]
        # First: Ray's own takes the process group away from workers that are to stop.
        return [Orderly(self.stop_within_s), *kept, LoadsFirst(run_worker.__module__)]

    def _register_sigint_handler(self, controller: Any) -> None:
        """Leave Ctrl-C to Python: Ray Train's answer ends the workers before they have saved."""

    def _initialize_and_run_controller(self, **settings: Any) -> Any:
        get_or_create_autoscaling_coordinator()  # starts beside the controller, which would wait for it
        if self.sizes:
            settings["scaling_policy"] = UsableSizes(
                self.scaling_config, sizes=self.sizes, data_workers=self.data_workers
            )
        return super()._initialize_and_run_controller(**settings)


def launch(
    plan: TrainPlan, allocation: Allocation, *, name: str, max_failures: int, look_every_s: float = 60.0
) -> dict[str, Any]:
    """Train to the end; the figures of rank 0. Ray must be running.

    A group that stopped after a notice is followed by another, which goes on from what it saved.

    Args:
        look_every_s: how often an elastic group is compared with the room there is.

    Raises:
        ValueError: something the user can mend, as the worker said it.
        RuntimeError: the workers died more often than allowed, or the cluster did not give the resources.
    """
    idle = 0
    while True:
        figures = _train_group(plan, allocation, name=name, max_failures=max_failures, look_every_s=look_every_s)
        if figures["stop"] != Stop.TAKEN_AWAY.name:
            return figures
        idle = idle + 1 if figures["steps"] == figures["resumed_from"] else 0
        if idle == IDLE_STOPS:
            raise RuntimeError(
                f"{plan.run}: {idle} groups in a row were told to stop before their first step ({figures['reason']}); "
                "the same command goes on when the machines stay"
            )
        saved = "saved" if figures["is_saved"] else "not saved"
        print(f"stopped after step {figures['steps']} ({figures['reason']}), {saved}; going on elsewhere", flush=True)


def _train_group(
    plan: TrainPlan, allocation: Allocation, *, name: str, max_failures: int, look_every_s: float
) -> dict[str, Any]:
    """Train until the end or a notice."""
    attempt = uuid.uuid4().hex[:12]
    with tempfile.TemporaryDirectory(prefix="segray-train-") as scratch, _environment(allocation):
        trainer = _Trainer(
            run_worker,
            # As bytes: Ray's controller unpacks this table too, and would import the networks for it.
            train_loop_config={"plan": pickle.dumps(plan), "attempt": attempt, "device": allocation.device},
            scaling_config=_scaling(allocation, look_every_s=look_every_s),
            run_config=_run_config(f"{name}-{attempt}", scratch, allocation, max_failures=max_failures),
        )
        trainer.sizes = allocation.sizes if _is_elastic(allocation) else ()
        trainer.data_workers = allocation.data_workers
        trainer.stop_within_s = 2 * plan.save_timeout_s + _LAST_STEP_S  # a save may be under way when the last is due
        try:
            figures = trainer.fit().return_value
        except (TrainingFailedError, RayError) as error:
            failure = read_failure(plan.run, attempt)
            if failure is None:
                raise RuntimeError(_reason(error, plan, allocation, max_failures=max_failures)) from error
            figures = {"failure": failure}
        finally:
            forget_failure(plan.run, attempt)
    if figures is None:  # stopped from outside, which Ray does not call an error
        raise KeyboardInterrupt
    if "failure" in figures:
        raise ValueError(figures["failure"])
    return dict(figures)


def _scaling(allocation: Allocation, *, look_every_s: float) -> ScalingConfig:
    resources = {"CPU": allocation.cpus}
    if allocation.device == "cuda":
        resources["GPU"] = 1.0
    return ScalingConfig(
        num_workers=((allocation.sizes[0], allocation.sizes[-1]) if _is_elastic(allocation) else allocation.workers),
        use_gpu=allocation.device == "cuda",
        resources_per_worker=resources,
        elastic_resize_monitor_interval_s=look_every_s,
    )


def _is_elastic(allocation: Allocation) -> bool:
    return len(allocation.sizes) > 1


def _run_config(name: str, scratch: str, allocation: Allocation, *, max_failures: int) -> RunConfig:
    # cuBLAS is deterministic only with a fixed workspace, which it reads when the process starts.
    environment = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"} if allocation.device == "cuda" else {}
    start_failures = -1 if _is_elastic(allocation) else START_ATTEMPTS - 1  # elastic groups wait for room
    return RunConfig(
        name=name,
        storage_path=scratch,
        failure_config=FailureConfig(max_failures=max_failures, controller_failure_limit=start_failures),
        logging_config=LoggingConfig(log_level="ERROR"),
        worker_runtime_env={"env_vars": environment} if environment else None,
    )


def _reason(error: Exception, plan: TrainPlan, allocation: Allocation, *, max_failures: int) -> str:
    """One line for a person: what happened, and that nothing is lost."""
    if isinstance(error, ControllerError):
        seconds = os.environ.get(START_TIMEOUT, _ENVIRONMENT[START_TIMEOUT])
        return (
            f"Ray could not start {allocation.text()} within {START_ATTEMPTS} x {seconds} s "
            f"({_first_line(error.controller_failure)}); free the cluster or ask for fewer workers; "
            f"the variable {START_TIMEOUT} makes the wait longer"
        )
    if isinstance(error, RayError):
        return f"{plan.run}: Ray's training controller died ({_first_line(error)}); the same command goes on"
    causes = error.worker_failures if isinstance(error, WorkerGroupError) else {}
    cause = next((f"worker {rank}: {_first_line(failure)}" for rank, failure in causes.items()), _first_line(error))
    return (
        f"{plan.run}: training stopped after {max_failures} restarts ({cause}); "
        "its checkpoints are kept, the same command goes on from the newest"
    )


def _first_line(error: BaseException) -> str:
    """The last line of a remote traceback says what was wrong, the first one of anything else."""
    lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[-1].strip() if "Traceback" in str(error) else lines[0].strip()


@contextlib.contextmanager
def _environment(allocation: Allocation) -> Iterator[None]:
    """What Ray Train reads from the environment of the driver; what the user has set stays."""
    settings = _ENVIRONMENT | ({START_TIMEOUT: _ELASTIC_START_S} if _is_elastic(allocation) else {})
    added = {key: value for key, value in settings.items() if key not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for key in added:
            os.environ.pop(key, None)
