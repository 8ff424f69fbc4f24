"""Published checkpoints as the input of a stage: looked at on the driver, loaded once per worker."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Literal

import torch

from pipelines import storage
from pipelines.labels import LabelSpace
from pipelines.shards import ComputeSpec
from seg_models.checkpoints import MODEL_FILE, WEIGHTS_FILE, LoadedModel, load_model
from seg_models.memory import keep_freed_memory
from seg_models.predictor import Predictor, PredictorSpec

Device = Literal["cpu", "cuda"]


@dataclass(frozen=True)
class Checkpoint:
    """Address of a published checkpoint and what its model.json says; small, travels to workers."""

    uri: str
    sha256: str
    """Of the weights."""
    label_space: LabelSpace
    arch: str
    info: dict[str, Any]

    @property
    def record(self) -> dict[str, str]:
        """Address and hash, as they stand in results."""
        return {"uri": self.uri, "sha256": self.sha256, "arch": self.arch}


def open_checkpoint(uri: str, *, predictor: PredictorSpec | None = None) -> Checkpoint:
    """Load a checkpoint once to see that it is whole. A training run's folder stands for the `model` in it.

    Args:
        predictor: how the model is to predict, if it is.

    Raises:
        ValueError: there is no checkpoint, its weights are damaged, its class list cannot be read, or its model cannot
            predict so.
    """
    place = storage.normalise(uri)
    inside = storage.join(place, "model")
    if not storage.exists(storage.join(place, MODEL_FILE)) and storage.exists(storage.join(inside, MODEL_FILE)):
        place = inside
    try:
        loaded = _load(place)
        info, space = loaded.info, LabelSpace.model_validate(loaded.info["label_space"])
    except ValueError as error:
        raise ValueError(f"checkpoint: {error}") from error
    if predictor is not None:
        predictor.check_model(loaded.model)
    return Checkpoint(place, info["sha256"], space, info["spec"]["arch"], info)


def load_checkpoint(checkpoint: Checkpoint, *, device: Device = "cpu") -> LoadedModel:
    """Load the weights that the driver saw, on this machine.

    Raises:
        ValueError: they are damaged, or others by now.
    """
    loaded = _load(checkpoint.uri, device=device)
    if loaded.info["sha256"] != checkpoint.sha256:
        raise ValueError(f"{checkpoint.uri}: other weights than when the job started; start it again")
    return loaded


def _load(place: str, *, device: Device = "cpu") -> LoadedModel:
    """A model and nothing else of its folder: a wrong address may name a whole data set."""
    return load_model(storage.local_copy(place, names=(MODEL_FILE, WEIGHTS_FILE)), device=device)


def make_predictor(checkpoint: Checkpoint, *, spec: PredictorSpec, device: Device, threads: int) -> Predictor:
    """A predictor in a worker: threads first, then the model, because kernels are chosen by the thread count.

    Raises:
        ValueError: the GPU asked for is not there, or the checkpoint cannot be loaded.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"compute.gpus: machine {os.uname().nodename} has no GPU that torch can use")
    torch.set_num_threads(threads)
    if spec.memory_gb is None:  # kept memory has holes that no limit foresees
        keep_freed_memory()
    model, mirrored = load_checkpoint(checkpoint, device=device).model, checkpoint.label_space.mirrored
    return Predictor(model, spec=spec, device=device, mirrored=mirrored)


def device_of(compute: ComputeSpec) -> Device:
    """Where actors of these resources compute."""
    return "cuda" if compute.gpus > 0 else "cpu"


def threads_of(compute: ComputeSpec) -> int:
    """Torch threads of an actor: its CPUs."""
    return max(1, int(compute.cpus))


def check_same_classes(checkpoint: Checkpoint, space: LabelSpace, *, labels: str) -> None:
    """Make sure that class index i means the same in a checkpoint and a label set.

    Args:
        labels: what to call the label set in the message.

    Raises:
        ValueError: it does not; the message shows the first differing names.
    """
    ours = checkpoint.label_space
    if ours.same_classes(space):
        return
    pairs = enumerate(zip(ours.names, space.names, strict=False))
    differing = [f"{index} is {a!r} and {b!r}" for index, (a, b) in pairs if a != b]
    shown = "; ".join(differing[:3]) or f"the first {min(ours.num_classes, space.num_classes)} are equal"
    raise ValueError(
        f"the checkpoint has {ours.num_classes} classes, {labels} has {space.num_classes}, and they differ "
        f"(class {shown}); use a checkpoint trained on this class list"
    )
