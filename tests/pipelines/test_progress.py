"""Progress on terminals and in logs."""

from __future__ import annotations

import io

import pytest

from pipelines.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr("pipelines.progress.time.monotonic", lambda: now[0])
    return now


def test_a_log_gets_few_plain_lines_with_rate_share_and_time_left(clock: list[float]) -> None:
    stream = io.StringIO()
    with Progress(total=100, unit="images", label="pssl", stream=stream) as bar:
        for _ in range(50):
            clock[0] += 1.0
            bar.update(1)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "pssl: 15/100 images (15%), 1.0 images/s, 1:25 left"
    assert len(lines) == 4
    assert "\r" not in stream.getvalue()


def test_a_log_says_once_that_the_job_is_done(clock: list[float]) -> None:
    stream = io.StringIO()
    with Progress(total=2, unit="images", label="x", stream=stream) as bar:
        clock[0] += 60.0
        bar.update(2)
    assert stream.getvalue() == "x: 2/2 images (100%), done\n"


def test_a_terminal_gets_a_bar_on_one_line(clock: list[float]) -> None:
    stream = Terminal()
    with Progress(total=4, unit="images", label="x", stream=stream) as bar:
        for _ in range(4):
            clock[0] += 1.0
            bar.update(1)
    text = stream.getvalue()
    assert text.count("\n") == 1
    assert "4/4 images (100%), done" in text


def test_hours_are_shown_as_hours(clock: list[float]) -> None:
    bar = Progress(total=10_000, unit="images", label="x", stream=io.StringIO())
    clock[0] = 10.0
    bar.update(10)
    assert bar.line().endswith("2:46:30 left")


def test_an_empty_job_is_done() -> None:
    assert Progress(total=0, unit="images", label="x", stream=io.StringIO()).line() == "x: 0/0 images (100%), done"


@pytest.mark.parametrize("columns", [120, 60, 20])
def test_the_bar_never_wraps_on_a_narrow_terminal(
    clock: list[float], monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    stream = Terminal()
    with Progress(total=1_281_167, unit="images", label="pssl", stream=stream) as bar:
        for _ in range(3):
            clock[0] += 1.0
            bar.update(250)
    drawn = [part.removesuffix("\x1b[K") for part in stream.getvalue().rstrip("\n").split("\r")[1:]]
    assert len(drawn) >= 3
    assert all(len(part) < columns for part in drawn)
