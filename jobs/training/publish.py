"""Networks of a run as published checkpoints: the trained one, and copies of a step's weights to be validated."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jobs.training.plan import TrainPlan
from jobs.training.saving import host_copy
from pipelines import storage
from seg_models import __version__
from seg_models.checkpoints import MODEL_FILE, WEIGHTS_FILE, save_weights
from seg_models.outputs import SegModel

MODEL_FOLDER, BEST_FOLDER = "model", "best"


@dataclass(frozen=True)
class Weights:
    """A network at some step."""

    step: int
    tensors: dict[str, Tensor]
    num_params: int


def copy_weights(model: SegModel, *, step: int) -> Weights:
    """The network's tensors in host memory, where training does not change them (see `host_copy`)."""
    return Weights(step, host_copy(model.state_dict()), sum(value.numel() for value in model.parameters()))


def publish(plan: TrainPlan, weights: Weights, *, folder: str, workers: int) -> None:
    """Write a network to `<run>/<folder>/`, model.json last: without it the folder is no checkpoint."""
    with tempfile.TemporaryDirectory() as scratch:
        save_weights(
            Path(scratch),
            weights=weights.tensors,
            num_classes=plan.label_space.num_classes,
            num_params=weights.num_params,
            spec=plan.recipe.model,
            label_space=plan.label_space.model_dump(mode="json"),
            recipe=plan.recipe.model_dump(mode="json"),
            provenance=_provenance(plan, step=weights.step, workers=workers),
        )
        for name in (WEIGHTS_FILE, MODEL_FILE):
            storage.write_bytes(storage.join(plan.run, folder, name), Path(scratch, name).read_bytes())


def copy_published(run: str, *, source: str, target: str) -> None:
    """Copy a published network of a run; the one that lay at the target goes first, so that no mixture ever counts."""
    storage.delete(storage.join(run, target, MODEL_FILE))
    for name in (WEIGHTS_FILE, MODEL_FILE):
        storage.write_bytes(storage.join(run, target, name), storage.read_bytes(storage.join(run, source, name)))


def is_published(run: str, folder: str) -> bool:
    """Whether a whole network lies in `<run>/<folder>/`."""
    return storage.exists(storage.join(run, folder, MODEL_FILE))


def _provenance(plan: TrainPlan, *, step: int, workers: int) -> dict[str, Any]:
    return {
        "run": plan.run,
        "step": step,
        "workers": workers,
        "data": [{**summary.part.model_dump(), "sha256": summary.fingerprint} for summary in plan.index.parts],
        "init_from": plan.init_from,
        "versions": {"segray": __version__, "torch": torch.__version__},
    }
