"""What Ray Train runs in every worker."""

from __future__ import annotations

import json
import pickle
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
from ray._private.state import state as ray_state

from jobs.training.loop import train
from jobs.training.notice import NOTICES, Stop
from jobs.training.plan import TrainPlan, Worker
from jobs.training.publish import MODEL_FOLDER, copy_weights, publish
from pipelines import storage


def run_worker(settings: dict[str, Any]) -> dict[str, Any]:
    """Train as one worker of the group and, as rank 0, publish the model; returns the figures of the run.

    After a notice the workers end in order, and the figures say so: the driver starts another group.

    Ray would start the group again after an error of the user, which helps nobody: such an error is noted under the
    attempt's name, and a restarted group only hands it back.
    """
    plan: TrainPlan = pickle.loads(settings["plan"])
    attempt: str = settings["attempt"]
    failure = read_failure(plan.run, attempt)
    if failure is not None:
        return {"failure": failure}
    worker = _this_worker(settings["device"])
    try:
        model, figures = train(plan, worker, notices=NOTICES, checks=(_node_is_taken_away,))
        if worker.rank == 0 and figures["stop"] in (Stop.NONE.name, Stop.NO_GAIN.name):
            publish(plan, copy_weights(model, step=figures["steps"]), folder=MODEL_FOLDER, workers=figures["workers"])
        return figures
    except torch.OutOfMemoryError as error:
        text = f"the GPU is out of memory ({str(error).splitlines()[0]}); raise `accumulate` or `workers`"
        note_failure(plan.run, attempt, text)
        raise ValueError(text) from error
    except ValueError as error:
        if worker.world > 1 and not torch.distributed.is_initialized():
            raise  # the group is being taken apart, and the process group went first
        note_failure(plan.run, attempt, str(error))
        if worker.world == 1:  # nobody waits for it, and Ray would print the traceback of what one line says
            return {"failure": str(error)}
        raise


def _this_worker(device: str) -> Worker:
    context = ray.train.get_context()
    place = ray.train.torch.get_device() if device == "cuda" else torch.device("cpu")
    return Worker(rank=context.get_world_rank(), world=context.get_world_size(), device=place)


def _node_is_taken_away() -> tuple[Stop, str]:
    """Whether Ray has been told that this machine is about to go (a drain, or a preemption that was announced)."""
    node = ray.get_runtime_context().get_node_id()
    taken = node in ray_state.get_draining_nodes()
    return (Stop.TAKEN_AWAY, f"machine {node[:8]} is taken away") if taken else (Stop.NONE, "")


def note_failure(run: str, attempt: str, text: str) -> None:
    """Keep the first error of the user of an attempt; later ones are its consequences."""
    if read_failure(run, attempt) is None:
        storage.write_text(_failure_uri(run, attempt), json.dumps({"failure": text}))


def read_failure(run: str, attempt: str) -> str | None:
    """The error of the user that ended an attempt, if there was one."""
    uri = _failure_uri(run, attempt)
    return str(json.loads(storage.read_bytes(uri))["failure"]) if storage.exists(uri) else None


def forget_failure(run: str, attempt: str) -> None:
    """Remove the note of an attempt."""
    storage.delete(_failure_uri(run, attempt))


def _failure_uri(run: str, attempt: str) -> str:
    return storage.join(run, f"failure-{attempt}.json")
