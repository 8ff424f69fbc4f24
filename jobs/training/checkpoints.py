"""Checkpoints of a training run: files, sums, and what counts as whole.

    <run>/checkpoints/step-00000500/
        model.safetensors     parameters and buffers
        stepper.pt            optimizer, averaged weights, and the random state of every worker (tensors and plain
                              values only)
        trainer.json          step, identity of the run, number of workers, lanes, finished validations
        points.jsonl          the training curve so far: a dead machine takes its journal along
        manifest.json         size and SHA-256 of the four, written last

A folder without a manifest that verifies does not count. Ray only restarts the workers; what they go on from is ours.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import pickle
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from pipelines import storage

MODEL, STEPPER, TRAINER, POINTS = "model.safetensors", "stepper.pt", "trainer.json", "points.jsonl"
FILES, MANIFEST = (MODEL, STEPPER, TRAINER, POINTS), "manifest.json"
FOLDER = re.compile(r"^step-(\d{8,})$")


FORM = 1
"""Of what the files hold. Another one is refused, not misread."""
FACTS = frozenset({"step", "identity", "world", "lanes", "seconds", "transfer", "losses", "validations"})


class DamagedCheckpointError(RuntimeError):
    """A checkpoint folder that is incomplete, or whose bytes are not those that were written."""


class GivenUpError(RuntimeError):
    """Nobody waits for this checkpoint any more."""


@dataclass(frozen=True)
class TrainState:
    """Everything that decides how a run goes on."""

    step: int
    """Optimizer steps done."""
    model: Mapping[str, Tensor]
    stepper: Mapping[str, Any]
    """What a step goes on from beside the weights: optimizer, loss scaler, averaged weights."""
    rng: list[dict[str, Any]]
    """Random state of every worker, in rank order."""
    facts: dict[str, Any]
    """identity (what the run computes), world, lanes, transfer: what `trainer.json` holds beside the step."""
    points: str = ""
    """The training curve up to the step, as lines of JSON."""


def checkpoint_uri(run: str, step: int) -> str:
    """Where the checkpoint of a step lies."""
    return storage.join(run, "checkpoints", f"step-{step:08d}")


def save_checkpoint(run: str, state: TrainState, *, is_wanted: Callable[[], bool] = lambda: True) -> str:
    """Write a checkpoint, manifest last, read it back, and return its address.

    Args:
        is_wanted: asked before every file; a save that took too long stops there and leaves no manifest.

    Raises:
        DamagedCheckpointError: the store does not give back what was written.
        GivenUpError: the checkpoint is not wanted any more.
        OSError: it cannot be written.
    """
    uri = checkpoint_uri(run, state.step)
    storage.delete(uri)  # left by an attempt that died; its manifest must not vouch for new files
    files = _files_of(state)
    try:
        for name, data in [*files.items(), (MANIFEST, _manifest(state.step, files))]:
            if not is_wanted():
                raise GivenUpError(uri)
            storage.write_bytes(storage.join(uri, name), data)
    except OSError:
        with contextlib.suppress(OSError):
            storage.delete(uri)  # half a checkpoint is of no use, and takes room that is perhaps what is missing
        raise
    _read_verified(uri)
    return uri


def load_checkpoint(uri: str) -> TrainState:
    """Read a checkpoint; every byte is checked before it is used, and nothing is unpickled but tensors.

    Raises:
        DamagedCheckpointError: incomplete, or other bytes than were written.
        ValueError: whole, but of another version of segray.
    """
    files = _read_verified(uri)
    trainer = _facts_of(uri, files)
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
        points=files[POINTS].decode(),
    )


def verify_checkpoint(uri: str) -> dict[str, Any]:
    """Check every byte of a checkpoint; the content of its `trainer.json`.

    Raises:
        DamagedCheckpointError: incomplete, or other bytes than were written.
        ValueError: whole, but of another version of segray.
    """
    return _facts_of(uri, _read_verified(uri))


def checkpoint_steps(run: str) -> list[int]:
    """Steps of which there is a checkpoint folder, whole or not, in order."""
    folder = storage.join(run, "checkpoints")
    if not storage.is_dir(folder):
        return []
    matches = (FOLDER.match(name) for name in storage.list_dirs(folder))
    return sorted(int(match.group(1)) for match in matches if match)


def prune_checkpoints(run: str, *, saved: int, keep: int, damaged: Collection[int] = ()) -> None:
    """Remove all but the `keep` newest checkpoints up to step `saved`. Call it only after that one has verified.

    A folder without a manifest was never finished: it goes, and takes nobody's place. Later ones are another writer's,
    who is further, and stay.

    Args:
        damaged: steps whose folders did not verify when the run went back behind them; they go as well.
    """
    reached = [step for step in checkpoint_steps(run) if step <= saved]
    kept = [step for step in reached if _is_finished(run, step)][-keep:]
    for step in {*reached, *damaged} - {*kept, saved}:
        _remove(checkpoint_uri(run, step))


def sweep_orphans(run: str) -> list[int]:
    """Remove the folders of checkpoints that were never finished; their steps. Call it before anything is saved."""
    orphans = [step for step in checkpoint_steps(run) if not _is_finished(run, step)]
    for step in orphans:
        _remove(checkpoint_uri(run, step))
    return orphans


def _is_finished(run: str, step: int) -> bool:
    return storage.exists(storage.join(checkpoint_uri(run, step), MANIFEST))


def _remove(uri: str) -> None:
    storage.delete(storage.join(uri, MANIFEST))  # first, so that half a folder never counts
    storage.delete(uri)


def _files_of(state: TrainState) -> dict[str, bytes]:
    trainer = {"form": FORM, "step": state.step, **state.facts}
    return {
        MODEL: save({name: tensor.detach().cpu().contiguous() for name, tensor in state.model.items()}),
        STEPPER: _pack({"stepper": dict(state.stepper), "rng": state.rng}),
        TRAINER: json.dumps(trainer, indent=2, sort_keys=True).encode(),
        POINTS: state.points.encode(),
    }


def _facts_of(uri: str, files: Mapping[str, bytes]) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(files[TRAINER])
    form, lacking = facts.pop("form", FORM), sorted(FACTS - set(facts))
    if form != FORM or lacking:
        found = f"its form is {form}, here {FORM}" if form != FORM else f"it lacks {', '.join(lacking)}"
        raise ValueError(
            f"{uri}: was written by another version of segray ({found}); finish the run with that version, or give the "
            "job another name"
        )
    return facts


def _read_verified(uri: str) -> dict[str, bytes]:
    """The four files, whose manifest must say exactly what is there."""
    try:
        files = {name: storage.read_bytes(storage.join(uri, name)) for name in FILES}
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
