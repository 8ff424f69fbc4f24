"""What Ray Train runs in every worker."""

from __future__ import annotations

import json
import pickle
import tempfile
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch

from jobs.training.loop import train
from jobs.training.plan import TrainPlan, Worker
from pipelines import storage
from seg_models import __version__
from seg_models.checkpoints import MODEL_FILE, WEIGHTS_FILE, save_model
from seg_models.outputs import SegModel


def run_worker(settings: dict[str, Any]) -> dict[str, Any]:
    """Train as one worker of the group and, as rank 0, publish the model; returns the figures of the run.

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
        model, figures = train(plan, worker)
        if worker.rank == 0:
            publish_model(plan, model, figures)
        return figures
    except torch.OutOfMemoryError as error:
        text = f"the GPU is out of memory ({str(error).splitlines()[0]}); raise `accumulate` or `workers`"
        note_failure(plan.run, attempt, text)
        raise ValueError(text) from error
    except ValueError as error:
        note_failure(plan.run, attempt, str(error))
        if worker.world == 1:  # nobody waits for it, and Ray would print the traceback of what one line says
            return {"failure": str(error)}
        raise


def _this_worker(device: str) -> Worker:
    context = ray.train.get_context()
    place = ray.train.torch.get_device() if device == "cuda" else torch.device("cpu")
    return Worker(rank=context.get_world_rank(), world=context.get_world_size(), device=place)


def publish_model(plan: TrainPlan, model: SegModel, figures: dict[str, Any]) -> None:
    """Write the trained network to `<run>/model/`, model.json last."""
    provenance = {
        "run": plan.run,
        "step": plan.recipe.steps,
        "workers": figures["workers"],
        "data": [{**summary.part.model_dump(), "sha256": summary.fingerprint} for summary in plan.index.parts],
        "init_from": plan.init_from,
        "versions": {"segray": __version__, "torch": torch.__version__},
    }
    with tempfile.TemporaryDirectory() as scratch:
        save_model(
            Path(scratch),
            model=model,
            spec=plan.recipe.model,
            label_space=plan.label_space.model_dump(mode="json"),
            recipe=plan.recipe.model_dump(mode="json"),
            provenance=provenance,
        )
        for name in (WEIGHTS_FILE, MODEL_FILE):
            storage.write_bytes(storage.join(plan.run, "model", name), Path(scratch, name).read_bytes())


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
