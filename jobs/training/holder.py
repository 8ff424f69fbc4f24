"""Who trains a run: of two `segray train` of one name the second is refused, and one that died blocks nobody.

    <run>/drivers/00000003.json   machine, host, pid, since_ms, beats, ended; the file with the highest number counts,
                                  the others are the past

A driver takes a run by creating the file of the next number, which a store lets only one of several do, and writes it
again every few seconds while it lives. That another one has ended is seen at once on the machine where it ran, and
elsewhere from the beats that stay away: no clocks are compared.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Self

from jobs.tracked_run import now_ms
from pipelines import storage

FOLDER = "drivers"
BEAT_EVERY_S = 10.0
SILENT_S = 35.0
"""A driver of another machine that has not written its file for so long has died."""

_NAME = re.compile(r"^(\d{8,})\.json$")


class RunIsHeldError(ValueError):
    """Another driver trains this run."""


@dataclass(frozen=True)
class Driver:
    """One process that trains a run, or did."""

    machine: str
    """What tells machines apart, and containers of one machine: processes are known by number only inside one."""
    host: str
    pid: int
    started: str
    """When the process began, as the machine counts it: numbers of processes are given again."""
    since_ms: int
    beats: int = 0
    ended: bool = False

    @classmethod
    def here(cls) -> Self:
        """This process."""
        pid = os.getpid()
        return cls(_machine(), socket.gethostname(), pid, _start_of(pid) or "", now_ms())

    def text(self) -> str:
        """For a person."""
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since_ms / 1000))
        return f"process {self.pid} on {self.host} since {since}"

    def is_gone(self) -> bool | None:
        """Whether the process has ended; None where that cannot be seen from here."""
        if self.ended:
            return True
        if self.machine != _machine():
            return None
        start = _start_of(self.pid)
        return None if start == "" else start != self.started


def require_free(run: str) -> None:
    """Refuse at once a run that a driver trains which can be seen from here; writes nothing and does not wait.

    Raises:
        RunIsHeldError: names who, where and since when.
    """
    last = _last_number(run)
    driver = None if last is None else _read(run, last)
    if driver is not None and driver.is_gone() is False:
        raise _held(run, driver)


@contextlib.contextmanager
def hold_run(run: str, *, say: Callable[[str], None], silent_s: float = SILENT_S) -> Iterator[None]:
    """Train a run alone for the length of the block.

    Args:
        silent_s: how long to look at the file of a driver on another machine before it counts as dead.

    Raises:
        RunIsHeldError: another driver trains it; names who, where and since when.
    """
    number = _take(run, say=say, silent_s=silent_s)
    beat = _Beat(run, number, say=say)
    try:
        yield
    finally:
        beat.close()


def _take(run: str, *, say: Callable[[str], None], silent_s: float) -> int:
    """Become the driver of a run; the number of the file."""
    last = _last_number(run)
    if last is not None:
        _require_gone(run, last, say=say, silent_s=silent_s)
    number = (last or 0) + 1
    if not storage.create_bytes(_place(run, number), _line(Driver.here())):
        raise _held(run, _read(run, number))
    return number


def _require_gone(run: str, number: int, *, say: Callable[[str], None], silent_s: float) -> None:
    """Wait where it cannot be seen at once whether the driver has ended.

    Raises:
        RunIsHeldError: it lives.
    """
    first = _read(run, number)
    gone = None if first is None else first.is_gone()
    if gone is None:
        who = "a process that did not write its name" if first is None else first.text()
        say(f"{run}: was trained by {who}; looking for {silent_s:g} s whether it still is")
        deadline = time.monotonic() + silent_s
        while (found := _read(run, number)) == first and time.monotonic() < deadline:
            time.sleep(min(1.0, silent_s / 10))
        gone = found == first or (found is not None and found.is_gone() is True)
        first = found
    if not gone:
        raise _held(run, first)


def _held(run: str, driver: Driver | None) -> RunIsHeldError:
    who = "another process" if driver is None else driver.text()
    return RunIsHeldError(
        f"{run}: is being trained by {who}; let it finish, or stop it and run this again (another name starts "
        "another run)"
    )


class _Beat:
    """Writes the driver's file again and again, and ends the job when somebody else has taken the run."""

    def __init__(self, run: str, number: int, *, say: Callable[[str], None]) -> None:
        self._run, self._number, self._say = run, number, say
        self._driver = _read(run, number) or Driver.here()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="holder", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Say in the file that the driver has ended."""
        self._closing.set()
        self._thread.join(timeout=BEAT_EVERY_S)
        self._driver = replace(self._driver, ended=True)
        with contextlib.suppress(OSError, ValueError):  # whoever comes next sees it from the process, or from the beats
            self._write()

    def _work(self) -> None:
        while not self._closing.wait(BEAT_EVERY_S):
            try:
                newest = _last_number(self._run)
                if newest is not None and newest > self._number:
                    self._give_way(newest)
                    return
                self._driver = replace(self._driver, beats=self._driver.beats + 1)
                self._write()
            except (OSError, ValueError):  # a store that is away for a moment, or cannot list now, stops no training
                continue

    def _write(self) -> None:
        if _last_number(self._run) in (self._number, None):
            storage.write_bytes(_place(self._run, self._number), _line(self._driver))

    def _give_way(self, number: int) -> None:
        """This process was silent for so long that another one took over: two must not write one run."""
        driver = _read(self._run, number)
        who = "another process" if driver is None else driver.text()
        self._say(f"{self._run}: this process was silent for a while and {who} has taken the run over; ending here")
        main = threading.main_thread().ident
        assert main is not None
        # It wakes a thread that waits, and `ray_session` takes it for Ctrl-C, to which jobs in the background are deaf.
        signal.pthread_kill(main, signal.SIGTERM)


def _place(run: str, number: int) -> str:
    return storage.join(run, FOLDER, f"{number:08d}.json")


def _last_number(run: str) -> int | None:
    folder = storage.join(run, FOLDER)
    files = storage.list_files(folder, recursive=False) if storage.is_dir(folder) else []
    return max((int(match.group(1)) for match in (_NAME.match(file.relative) for file in files) if match), default=None)


def _read(run: str, number: int) -> Driver | None:
    """A driver's file; None where it cannot be read: its writer is just at it, or died then."""
    try:
        return Driver(**json.loads(storage.read_bytes(_place(run, number))))
    except (ValueError, TypeError):
        return None


def _line(driver: Driver) -> bytes:
    return json.dumps(asdict(driver), indent=1).encode()


def _machine() -> str:
    """Equal in all processes that see each other's numbers."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    with contextlib.suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _start_of(pid: int) -> str | None:
    """When a process of this machine began; empty where the system does not say.

    None where there is no such process, or only what is left of one (a zombie).
    """
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "" if _exists(pid) else None
    return None if state in "ZX" else fields[18]


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # of another user, who may hide what /proc says
        pass
    return True
