"""Files of checkpoints: damage never passes for a checkpoint, and what is not whole takes nobody's place."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jobs.training.checkpoints import (
    FILES,
    MANIFEST,
    DamagedCheckpointError,
    GivenUpError,
    TrainState,
    checkpoint_steps,
    checkpoint_uri,
    load_checkpoint,
    prune_checkpoints,
    save_checkpoint,
    sweep_orphans,
)
from jobs.training.resume import newest_state
from jobs.training.rng import rng_state
from pipelines import storage
from tests.jobs.tiny_training import CPU

FACTS: dict[str, Any] = {
    "identity": {"recipe": {"seed": 0}},
    "world": 1,
    "lanes": 4,
    "seconds": 1.0,
    "transfer": None,
    "losses": [[]],
    "validations": [],
}


def state_of(step: int, **facts: Any) -> TrainState:
    return TrainState(
        step=step,
        model={"weight": torch.full((40,), float(step)), "norm.running_mean": torch.arange(8.0)},
        stepper={"optimizer": {"state": {0: {"momentum_buffer": torch.ones(40)}}, "param_groups": [{"lr": 0.1}]}},
        rng=[rng_state(CPU)],
        facts=FACTS | facts,
        points='{"step": 2, "train/loss": 1.5}\n',
    )


def save_step(run: Path, step: int) -> Path:
    return Path(save_checkpoint(str(run), state_of(step)))


def newest(run: Path, told: list[str] | None = None) -> int | None:
    told = [] if told is None else told
    state = newest_state(str(run), log=told.append)
    return None if state is None else state.step


def test_a_checkpoint_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    state = load_checkpoint(str(save_step(tmp_path, 123)))
    assert state.step == 123
    assert torch.equal(state.model["weight"], torch.full((40,), 123.0))
    assert state.stepper["optimizer"]["param_groups"] == [{"lr": 0.1}]
    assert torch.equal(state.stepper["optimizer"]["state"][0]["momentum_buffer"], torch.ones(40))
    assert state.facts == FACTS
    assert state.points == '{"step": 2, "train/loss": 1.5}\n'


@pytest.mark.parametrize("name", [*FILES, MANIFEST])
def test_forty_of_forty_flipped_bits_in_each_of_five_files_send_the_run_back_to_the_checkpoint_before(
    tmp_path: Path, name: str
) -> None:
    save_step(tmp_path, 5)
    path = save_step(tmp_path, 10) / name
    whole = path.read_bytes()
    rng = np.random.default_rng(FILES.index(name) if name in FILES else 9)
    for _ in range(40):
        position, bit = int(rng.integers(len(whole))), int(rng.integers(8))
        rotten = bytearray(whole)
        rotten[position] ^= 1 << bit
        path.write_bytes(bytes(rotten))
        told: list[str] = []
        assert newest(tmp_path, told) == 5
        assert len(told) == 1
        assert "checkpoint left out: " in told[0]
        assert "step-00000010: other bytes than were written in " in told[0]
    path.write_bytes(whole)
    assert newest(tmp_path) == 10


def test_a_bit_flipped_inside_a_tensor_is_told_with_its_file(tmp_path: Path) -> None:
    save_step(tmp_path, 5)
    path = save_step(tmp_path, 10) / "model.safetensors"
    rotten = bytearray(path.read_bytes())
    rotten[-2] ^= 64  # the exponent of the last number of the last tensor
    path.write_bytes(bytes(rotten))
    told: list[str] = []
    assert newest(tmp_path, told) == 5
    assert told[0].endswith("step-00000010: other bytes than were written in model.safetensors")


@pytest.mark.parametrize("name", [*FILES, MANIFEST])
@pytest.mark.parametrize("left", ["nothing", "half", "no file"])
def test_a_checkpoint_that_is_cut_off_or_incomplete_does_not_count(tmp_path: Path, name: str, left: str) -> None:
    save_step(tmp_path, 5)
    path = save_step(tmp_path, 10) / name
    if left == "no file":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2 if left == "half" else 0])
    told: list[str] = []
    assert newest(tmp_path, told) == 5
    assert len(told) == 1
    with pytest.raises(DamagedCheckpointError):
        load_checkpoint(str(path.parent))


def test_a_checkpoint_that_lies_under_another_step_does_not_count(tmp_path: Path) -> None:
    good = save_step(tmp_path, 5)
    good.rename(good.with_name("step-00000007"))
    told: list[str] = []
    assert newest(tmp_path, told) is None
    assert "manifest.json" in told[0]


def test_a_checkpoint_of_another_version_is_refused_and_not_taken_for_damaged(tmp_path: Path) -> None:
    save_step(tmp_path, 3)
    save_checkpoint(str(tmp_path), state_of(6, form=7))
    with pytest.raises(ValueError, match=r"step-00000006: was written by another version .*form is 7, here 1"):
        newest(tmp_path)


def test_a_checkpoint_of_an_older_version_is_refused_with_what_it_lacks(tmp_path: Path) -> None:
    state = state_of(6)
    older = {key: value for key, value in state.facts.items() if key not in ("losses", "validations")}
    save_checkpoint(str(tmp_path), dataclasses.replace(state, facts=older))
    with pytest.raises(ValueError, match=r"another version of segray \(it lacks losses, validations\); finish the run"):
        newest(tmp_path)


def test_without_any_checkpoint_there_is_nothing_to_go_on_from(tmp_path: Path) -> None:
    assert newest(tmp_path) is None


def test_a_pickle_bomb_is_never_executed(tmp_path: Path) -> None:
    folder = save_step(tmp_path, 5)
    canary = tmp_path / "canary"
    path, manifest = folder / "stepper.pt", folder / "manifest.json"
    size, digest = path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest()
    torch.save({"stepper": _Bomb(str(canary)), "rng": []}, path)
    forged = manifest.read_text().replace(digest, hashlib.sha256(path.read_bytes()).hexdigest())
    manifest.write_text(forged.replace(f": {size}", f": {path.stat().st_size}"))
    with pytest.raises(DamagedCheckpointError, match="more than tensors"):
        load_checkpoint(str(folder))
    assert not canary.exists()


class _Bomb:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path(self.path),))


# -- which are kept --------------------------------------------------------------------------------------------------


def test_a_damaged_folder_of_a_later_step_takes_no_good_checkpoints_place(tmp_path: Path) -> None:
    for step in (900, 1000, 1100, 1500):
        save_step(tmp_path, step)
    prune_checkpoints(str(tmp_path), saved=1100, keep=1, damaged=[1100, 1500])  # 1100 has been written again
    assert checkpoint_steps(str(tmp_path)) == [1100]
    assert newest(tmp_path) == 1100


def test_a_save_that_wakes_late_removes_no_checkpoint_of_a_later_step(tmp_path: Path) -> None:
    for step in (5, 10, 15, 20):
        save_step(tmp_path, step)
    prune_checkpoints(str(tmp_path), saved=10, keep=1)
    assert checkpoint_steps(str(tmp_path)) == [10, 15, 20]


def test_a_folder_that_was_never_finished_takes_no_good_checkpoints_place(tmp_path: Path) -> None:
    for step in (5, 7):
        save_step(tmp_path, step)
    Path(checkpoint_uri(str(tmp_path), 7), "manifest.json").unlink()
    save_step(tmp_path, 10)
    prune_checkpoints(str(tmp_path), saved=10, keep=2)
    assert checkpoint_steps(str(tmp_path)) == [5, 10]


def test_orphans_of_killed_saves_are_swept_away_and_whole_checkpoints_stay(tmp_path: Path) -> None:
    for step in (5, 10, 15):
        save_step(tmp_path, step)
    Path(checkpoint_uri(str(tmp_path), 10), "manifest.json").unlink()
    assert sweep_orphans(str(tmp_path)) == [10]
    assert checkpoint_steps(str(tmp_path)) == [5, 15]
    assert sweep_orphans(str(tmp_path)) == []


def test_a_save_that_fails_leaves_nothing_that_takes_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_step(tmp_path, 3)
    real = storage.write_bytes

    def full(uri: str, data: bytes) -> None:
        if uri.endswith("stepper.pt"):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(uri, data)

    monkeypatch.setattr(storage, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        save_step(tmp_path, 6)
    assert checkpoint_steps(str(tmp_path)) == [3]


def test_a_save_that_nobody_waits_for_any_more_leaves_no_manifest(tmp_path: Path) -> None:
    asked: list[bool] = []

    def is_wanted() -> bool:
        asked.append(True)
        return len(asked) < 3

    with pytest.raises(GivenUpError):
        save_checkpoint(str(tmp_path), state_of(5), is_wanted=is_wanted)
    assert newest(tmp_path) is None
    assert sweep_orphans(str(tmp_path)) == [5]
