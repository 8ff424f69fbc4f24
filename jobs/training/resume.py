"""Checkpoints of a training run, and how a run finds the one to go on from.

    <run>/checkpoints/step-00000500/
        model.safetensors     parameters and buffers
        stepper.pt            optimizer, averaged weights, and the random state of every worker (tensors and plain
                              values only)
        trainer.json          step, identity of the run, number of workers, lanes
        manifest.json         size and SHA-256 of the three, written last

A folder without a manifest that verifies does not count. Ray only restarts the workers; what they go on from is ours.
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor

from pipelines import storage
from pipelines.tables import differing_keys

MODEL, STEPPER, TRAINER, MANIFEST = "model.safetensors", "stepper.pt", "trainer.json", "manifest.json"
FOLDER = re.compile(r"^step-(\d{8,})$")


class DamagedCheckpointError(RuntimeError):
    """A checkpoint folder that is incomplete, or whose bytes are not those that were written."""


@dataclass(frozen=True)
class TrainState:
    """Everything that decides how a run goes on."""

    step: int
    """Optimizer steps done."""
    model: Mapping[str, Tensor]
    stepper: dict[str, Any]
    """What a step goes on from beside the weights: optimizer, loss scaler, averaged weights."""
    rng: list[dict[str, Any]]
    """Random state of every worker, in rank order."""
    facts: dict[str, Any]
    """identity (what the run computes), world, lanes, transfer: what `trainer.json` holds beside the step."""


def checkpoint_uri(run: str, step: int) -> str:
    """Where the checkpoint of a step lies."""
    return storage.join(run, "checkpoints", f"step-{step:08d}")


def save_checkpoint(run: str, state: TrainState) -> str:
    """Write a checkpoint, manifest last, read it back, and return its address.

    Raises:
        DamagedCheckpointError: the store does not give back what was written.
    """
    uri = checkpoint_uri(run, state.step)
    storage.delete(uri)  # left by an attempt that died; its manifest must not vouch for new files
    trainer = {"step": state.step, **state.facts}
    files = {
        MODEL: save({name: tensor.detach().cpu().contiguous() for name, tensor in state.model.items()}),
        STEPPER: _pack({"stepper": state.stepper, "rng": state.rng}),
        TRAINER: json.dumps(trainer, indent=2, sort_keys=True).encode(),
    }
    for name, data in files.items():
        storage.write_bytes(storage.join(uri, name), data)
    storage.write_bytes(storage.join(uri, MANIFEST), _manifest(state.step, files))
    _read_verified(uri)
    return uri


def load_checkpoint(uri: str) -> TrainState:
    """Read a checkpoint; every byte is checked before it is used, and nothing is unpickled but tensors.

    Raises:
        DamagedCheckpointError: incomplete, or other bytes than were written.
    """
    files = _read_verified(uri)
    trainer = json.loads(files[TRAINER])
    try:
        packed = torch.load(io.BytesIO(files[STEPPER]), weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as error:
        raise DamagedCheckpointError(f"{uri}: {STEPPER} holds more than tensors and plain values") from error
    return TrainState(
        step=int(trainer.pop("step")),
        model=load(files[MODEL]),
        stepper=packed["stepper"],
        rng=packed["rng"],
        facts=trainer,
    )


def check_same_run(run: str, *, identity: Mapping[str, Any]) -> None:
    """Refuse a run whose newest checkpoint was made with other settings; nothing happens where there is none.

    Raises:
        ValueError: names the keys that differ.
    """
    uri = newest_checkpoint(run, log=lambda _: None)
    if uri is not None:
        facts = json.loads(storage.read_bytes(storage.join(uri, TRAINER)))
        check_identity(run, ours=identity, theirs=facts["identity"])


def newest_checkpoint(run: str, *, log: Callable[[str], None]) -> str | None:
    """Address of the newest checkpoint that verifies; `log` is told why newer ones do not count."""
    for step in reversed(checkpoint_steps(run)):
        uri = checkpoint_uri(run, step)
        try:
            _read_verified(uri)
        except DamagedCheckpointError as error:
            log(f"checkpoint left out: {error}")
            continue
        return uri
    return None


def checkpoint_steps(run: str) -> list[int]:
    """Steps of which there is a checkpoint folder, whole or not, in order."""
    folder = storage.join(run, "checkpoints")
    if not storage.is_dir(folder):
        return []
    matches = (FOLDER.match(name) for name in storage.list_dirs(folder))
    return sorted(int(match.group(1)) for match in matches if match)


def prune_checkpoints(run: str, *, saved: int, keep: int) -> None:
    """Remove all but the `keep` newest checkpoints. Call it only after that of step `saved` has verified.

    A folder of a later step did not verify when the run went back behind it: it goes, and takes nobody's place.
    """
    steps = checkpoint_steps(run)
    reached = [step for step in steps if step <= saved]
    for step in [*reached[:-keep], *steps[len(reached) :]]:
        uri = checkpoint_uri(run, step)
        storage.delete(storage.join(uri, MANIFEST))  # first, so that half a folder never counts
        storage.delete(uri)


def check_identity(run: str, *, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    """Refuse to go on with a run that was started with other settings or other data.

    Raises:
        ValueError: names the keys that differ.
    """
    differing = differing_keys(dict(ours), dict(theirs))
    if differing:
        more = f" and {len(differing) - 5} more" if len(differing) > 5 else ""
        raise ValueError(
            f"{run}: this run was started with other settings ({'; '.join(differing[:5])}{more}); "
            "give the job another name, or the same settings to continue it"
        )


def rng_state(device: torch.device) -> dict[str, Any]:
    """The state of every global random generator of this process."""
    kind, words, position, has_gauss, gauss = np.random.get_state(legacy=True)  # noqa: NPY002 (models may use it)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "numpy": (str(kind), torch.from_numpy(np.asarray(words).astype(np.int64)), position, has_gauss, gauss),
        "python": random.getstate(),
    }


def restore_rng(state: dict[str, Any], device: torch.device) -> None:
    """Put every global random generator of this process back to a saved state."""
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)
    kind, words, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((kind, words.numpy().astype(np.uint32), position, has_gauss, gauss))  # noqa: NPY002
    random.setstate(state["python"])


def _read_verified(uri: str) -> dict[str, bytes]:
    """The three files, whose manifest must say exactly what is there."""
    try:
        files = {name: storage.read_bytes(storage.join(uri, name)) for name in (MODEL, STEPPER, TRAINER)}
        manifest = storage.read_bytes(storage.join(uri, MANIFEST))
    except ValueError as error:
        raise DamagedCheckpointError(f"not whole ({error})") from error
    match = FOLDER.match(uri.rsplit("/", 1)[-1])
    assert match is not None
    if manifest != _manifest(int(match.group(1)), files):
        raise DamagedCheckpointError(f"{uri}: other bytes than were written in {_suspects(manifest, files)}")
    return files


def _manifest(step: int, files: Mapping[str, bytes]) -> bytes:
    listed = {name: {"sha256": _sha256(data), "size_bytes": len(data)} for name, data in files.items()}
    return json.dumps({"step": step, "files": listed}, indent=2, sort_keys=True).encode()


def _suspects(manifest: bytes, files: Mapping[str, bytes]) -> str:
    """The files whose hash the manifest does not hold, for the message."""
    return ", ".join(name for name, data in files.items() if _sha256(data).encode() not in manifest) or MANIFEST


def _pack(value: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
