"""A trained model on disk: weights in safetensors beside a readable model.json that holds their SHA-256.

`model.json` is written last and in one rename, so a folder is a model or it is not; nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from seg_models.backbones.timm_backbone import without_weights
from seg_models.outputs import SegModel
from seg_models.spec import ModelSpec, resolve_model_spec

FORMAT = "segray-model"
FORMAT_VERSION = 1
MODEL_FILE = "model.json"
WEIGHTS_FILE = "model.safetensors"
_KEYS = ("format_version", "spec", "num_classes", "label_space", "weights", "sha256")
_PICKLES = {".pth", ".pt", ".bin", ".ckpt", ".pkl", ".pickle", ".tar", ".pdparams", ".npy"}


@dataclass(frozen=True)
class LoadedModel:
    """A model from disk, in eval mode."""

    model: SegModel
    spec: ModelSpec
    info: dict[str, Any]
    """The whole model.json: label_space, recipe, provenance, params, sha256, …"""

    @property
    def label_space(self) -> dict[str, Any]:
        """The class list the model was trained on, as its table."""
        space: dict[str, Any] = self.info["label_space"]
        return space


@dataclass(frozen=True)
class TransferReport:
    """What became of each tensor when weights were carried to another model."""

    kept: tuple[str, ...]
    dropped: tuple[str, ...]
    """Tensors of the source that were left behind because the class lists differ."""
    new: tuple[str, ...]
    """Tensors of the model that keep their fresh values."""

    def text(self) -> str:
        """One line for a person."""
        kept = f"kept {len(self.kept)} tensors"
        if not self.dropped and not self.new:
            return f"{kept}, all of them"
        dropped, new = ", ".join(self.dropped) or "none", ", ".join(self.new) or "none"
        return f"{kept}, dropped {len(self.dropped)} (class list differs): {dropped}; new {len(self.new)}: {new}"


def save_model(
    directory: Path,
    *,
    model: SegModel,
    spec: ModelSpec,
    label_space: Mapping[str, Any],
    recipe: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write a model.

    Args:
        directory: made if missing; an older model in it is replaced.
        model: on any device.
        spec: what `model` was built from.
        label_space: the class list, JSON-serialisable.
        recipe: how it was trained.
        provenance: data, steps, versions: whatever says where it came from.

    Returns:
        The content of model.json.
    """
    return save_weights(
        directory,
        weights=model.state_dict(),
        num_classes=model.num_classes,
        num_params=sum(value.numel() for value in model.parameters()),
        spec=spec,
        label_space=label_space,
        recipe=recipe,
        provenance=provenance,
    )


def save_weights(
    directory: Path,
    *,
    weights: Mapping[str, Tensor],
    num_classes: int,
    num_params: int,
    spec: ModelSpec,
    label_space: Mapping[str, Any],
    recipe: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write a model of which only the tensors are at hand; else like `save_model`.

    Args:
        directory: made if missing; an older model in it is replaced.
        weights: its state dict, on any device.
        num_classes: K.
        num_params: numbers in its parameters, without buffers.
        spec: what it was built from.
        label_space: the class list, JSON-serialisable.
        recipe: how it was trained.
        provenance: data, steps, versions: whatever says where it came from.

    Returns:
        The content of model.json.
    """
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / WEIGHTS_FILE
    tensors = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    _replace(file, lambda path: save_file(tensors, path, metadata={"format": "pt"}))
    info = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "spec": spec.model_dump(mode="json"),
        "num_classes": num_classes,
        "label_space": dict(label_space),
        "recipe": None if recipe is None else dict(recipe),
        "provenance": dict(provenance or {}),
        "params": num_params,
        "weights": WEIGHTS_FILE,
        "sha256": _sha256(file),
    }
    text = json.dumps(info, indent=2, ensure_ascii=False) + "\n"
    _replace(directory / MODEL_FILE, lambda path: path.write_text(text, encoding="utf-8"))
    return info


def load_model(directory: Path | str, *, device: torch.device | str = "cpu") -> LoadedModel:
    """Read a model that `save_model` wrote, in eval mode.

    Raises:
        ValueError: the folder holds no such model, it was written by a newer version, or its weights are not the
            ones that were written.
    """
    folder = Path(directory)
    info = _read_info(folder)
    weights = folder / str(info["weights"])
    if not weights.is_file():
        raise ValueError(f"{folder}: {weights.name} is missing; copy it beside {MODEL_FILE}")
    if (found := _sha256(weights)) != info["sha256"]:
        raise ValueError(f"{weights}: SHA-256 is {found}, {MODEL_FILE} says {info['sha256']}; copy the model again")
    spec = resolve_model_spec(info["spec"])
    model = without_weights(spec).build(int(info["num_classes"]))
    _fill(model, load_file(weights), origin=str(weights))
    return LoadedModel(model=model.to(device).eval(), spec=spec, info=info)


def transfer(model: SegModel, state: Mapping[str, Tensor], *, same_classes: bool) -> TransferReport:
    """Carry weights to a model of the same architecture, in place.

    Args:
        model: keeps its own values where the class lists differ.
        state: the other model's state dict.
        same_classes: False leaves behind what `model.class_dependent` names.

    Raises:
        ValueError: anything else that does not fit; the model is then unchanged.
    """
    own = model.state_dict()
    apart = () if same_classes else model.class_dependent
    dropped = tuple(name for name in state if name.startswith(apart))
    kept = {name: value for name, value in state.items() if name not in dropped}
    new = tuple(name for name in own if name.startswith(apart))
    _refuse_misfits({name: value for name, value in own.items() if name not in new}, kept, origin="init_from")
    model.load_state_dict(kept, strict=False)
    return TransferReport(kept=tuple(kept), dropped=dropped, new=new)


def _read_info(folder: Path) -> dict[str, Any]:
    """The checked content of model.json."""
    if folder.suffix.lower() in _PICKLES:
        raise ValueError(f"{folder}: pickled files are not loaded; give a folder with {MODEL_FILE} and {WEIGHTS_FILE}")
    path = folder / MODEL_FILE
    if not path.is_file():
        raise ValueError(f"{folder} holds no model: {path} is missing{_what_is_there(folder)}")
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(info, dict) or info.get("format") != FORMAT:
        raise ValueError(f"{path} is not a {FORMAT} file; it was written by another program")
    if missing := [key for key in _KEYS if key not in info]:
        raise ValueError(f"{path} lacks {', '.join(missing)}")
    if info["format_version"] != FORMAT_VERSION:
        raise ValueError(f"{path} has format_version {info['format_version']!r}, this program reads {FORMAT_VERSION}")
    return info


def _what_is_there(folder: Path) -> str:
    if not folder.exists():
        return " (there is no such folder)"
    names = sorted(entry.name for entry in folder.iterdir())[:5] if folder.is_dir() else [folder.name]
    return f" (found {', '.join(names) or 'an empty folder'})"


def _fill(model: SegModel, tensors: Mapping[str, Tensor], *, origin: str) -> None:
    _refuse_misfits(model.state_dict(), tensors, origin=origin)
    model.load_state_dict(dict(tensors))


def _refuse_misfits(own: Mapping[str, Tensor], given: Mapping[str, Tensor], *, origin: str) -> None:
    problems = [f"missing {name}" for name in own if name not in given]
    problems += [f"left over {name}" for name in given if name not in own]
    problems += [
        f"{name} has shape {tuple(given[name].shape)}, the model wants {tuple(own[name].shape)}"
        for name in own
        if name in given and given[name].shape != own[name].shape
    ]
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise ValueError(f"weights of {origin} do not fit the model: {'; '.join(problems[:5])}{more}")


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    """Write beside `path`, flush to disk, then rename: the file is whole or not there."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write(part)
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
