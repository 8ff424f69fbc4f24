"""One driver trains a run at a time, and one that died blocks nobody."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.cluster import sigterm_as_interrupt
from jobs.training import holder
from jobs.training.holder import Driver, RunIsHeldError, hold_run, require_free
from pipelines import storage

TAKE = """
import sys, time
from jobs.training.holder import hold_run
with hold_run(sys.argv[1], say=print):
    print("held", flush=True)
    time.sleep(60)
"""


def take(run: Path) -> subprocess.Popen[str]:
    """A process that holds the run until it is killed."""
    process = subprocess.Popen([sys.executable, "-c", TAKE, str(run)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


@pytest.fixture
def other(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    process = take(tmp_path)
    yield process
    process.kill()
    process.wait()


def elsewhere(run: Path, *, ended: bool = False) -> Driver:
    """A driver of another machine has written its file."""
    driver = dataclasses.replace(Driver.here(), machine="other", host="node-7", pid=4711, ended=ended)
    assert storage.create_bytes(str(run / "drivers" / "00000001.json"), json.dumps(vars(driver)).encode())
    return driver


def test_a_run_that_is_being_trained_is_refused_with_who_where_and_since_when(
    tmp_path: Path, other: subprocess.Popen[str]
) -> None:
    told = rf"{tmp_path}: is being trained by process {other.pid} on \S+ since 20\d\d-\d\d-\d\d \d\d:\d\d:\d\d; let it"
    with pytest.raises(RunIsHeldError, match=told):
        require_free(str(tmp_path))
    with pytest.raises(RunIsHeldError, match=told), hold_run(str(tmp_path), say=print):
        pass


def test_a_killed_driver_blocks_nobody_even_before_anybody_has_buried_it(
    tmp_path: Path, other: subprocess.Popen[str]
) -> None:
    other.kill()
    os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)  # a zombie from here on
    begin = time.monotonic()
    with hold_run(str(tmp_path), say=print):
        assert time.monotonic() - begin < 5
        assert sorted(os.listdir(tmp_path / "drivers")) == ["00000001.json", "00000002.json"]


def test_a_process_that_hides_when_it_began_is_judged_by_its_beats(
    tmp_path: Path, other: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Driver.here().machine
    monkeypatch.setattr(holder, "_machine", lambda: machine)
    monkeypatch.setattr(holder, "Path", lambda place: Path("/nothing") / place.lstrip("/"))
    require_free(str(tmp_path))
    said: list[str] = []
    other.send_signal(signal.SIGSTOP)
    with hold_run(str(tmp_path), say=said.append, silent_s=0.2):
        assert f"was trained by process {other.pid} on " in said[0]


def test_a_number_given_again_to_another_process_does_not_block(tmp_path: Path) -> None:
    dead = dataclasses.replace(Driver.here(), started="long ago")
    storage.create_bytes(str(tmp_path / "drivers" / "00000001.json"), json.dumps(vars(dead)).encode())
    require_free(str(tmp_path))
    with hold_run(str(tmp_path), say=print):
        pass


def test_a_run_can_be_taken_again_after_the_block_also_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyError), hold_run(str(tmp_path), say=print):
        raise KeyError
    with hold_run(str(tmp_path), say=print):
        pass


def test_a_silent_driver_of_another_machine_is_taken_over_after_a_while_and_that_is_said(tmp_path: Path) -> None:
    elsewhere(tmp_path)
    require_free(str(tmp_path))
    said: list[str] = []
    with hold_run(str(tmp_path), say=said.append, silent_s=0.2):
        pass
    assert len(said) == 1
    assert "was trained by process 4711 on node-7 since" in said[0]
    assert said[0].endswith("looking for 0.2 s whether it still is")


def test_a_driver_of_another_machine_that_beats_is_not_taken_over(tmp_path: Path) -> None:
    driver = elsewhere(tmp_path)

    def beat() -> None:
        line = json.dumps(vars(dataclasses.replace(driver, beats=1))).encode()
        storage.write_bytes(str(tmp_path / "drivers" / "00000001.json"), line)

    timer = threading.Timer(0.1, beat)
    timer.start()
    with pytest.raises(RunIsHeldError, match="process 4711 on node-7"), hold_run(str(tmp_path), say=print, silent_s=5):
        pass
    timer.join()


def test_a_driver_of_another_machine_that_has_said_that_it_ended_is_not_waited_for(tmp_path: Path) -> None:
    elsewhere(tmp_path, ended=True)
    with hold_run(str(tmp_path), say=print, silent_s=60):
        pass


@pytest.mark.parametrize("content", [b"", b"[1]", b'{"pid": 3}'])
def test_a_file_that_nobody_can_read_blocks_only_for_a_while(tmp_path: Path, content: bytes) -> None:
    storage.create_bytes(str(tmp_path / "drivers" / "00000001.json"), content)
    said: list[str] = []
    with hold_run(str(tmp_path), say=said.append, silent_s=0.1):
        assert "a process that did not write its name" in said[0]


def test_of_many_that_see_a_dead_driver_at_once_one_gets_the_run(tmp_path: Path) -> None:
    elsewhere(tmp_path, ended=True)
    start, done, ends = threading.Barrier(6), threading.Barrier(6), []

    def attempt() -> None:
        start.wait()
        try:
            with hold_run(str(tmp_path), say=print):
                ends.append("held")
                done.wait()
        except RunIsHeldError:
            ends.append("refused")
            done.wait()

    threads = [threading.Thread(target=attempt) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(ends) == ["held"] + ["refused"] * 5


def test_a_driver_that_was_silent_for_too_long_ends_when_it_sees_its_successor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holder, "BEAT_EVERY_S", 0.05)
    said: list[str] = []

    def train() -> None:
        with sigterm_as_interrupt(), hold_run(str(tmp_path), say=said.append):
            newer = json.dumps(vars(dataclasses.replace(Driver.here(), host="node-8"))).encode()
            storage.create_bytes(str(tmp_path / "drivers" / "00000002.json"), newer)
            time.sleep(20)

    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        train()
    assert time.monotonic() - begin < 10
    assert "on node-8 since" in said[0]
    assert said[0].endswith("has taken the run over; ending here")
    assert json.loads((tmp_path / "drivers" / "00000002.json").read_text())["ended"] is False, "nobody else's file"
