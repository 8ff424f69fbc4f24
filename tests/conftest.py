"""Fixtures shared by all tests."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
SHARED_DATA = Path(os.environ.get("SEGRAY_DATA", ROOT.parent / "shared" / "data")).resolve()


def pytest_configure(config: pytest.Config) -> None:
    """One thread a process: results do not depend on the machine's core count."""
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


def pytest_report_header(config: pytest.Config) -> str:
    """Say whether the tests on real data take part."""
    if SHARED_DATA.is_dir():
        return "real data: present, tests marked `real` run"
    return "real data: absent (set SEGRAY_DATA), tests marked `real` are not part of this run"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the tests that share the local Ray in one process, and leave out `real` tests where there is no data."""
    for item in items:
        if "ray_local" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.xdist_group("ray"))
    if not SHARED_DATA.is_dir():
        real = [item for item in items if item.get_closest_marker("real")]
        config.hook.pytest_deselected(items=real)
        items[:] = [item for item in items if item not in real]


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print what tests have measured, whichever process they ran in."""
    reports = [report for outcome in ("passed", "failed") for report in terminalreporter.getreports(outcome)]
    told = [(report.nodeid, text) for report in reports for name, text in report.user_properties if name == "told"]
    if told:
        terminalreporter.section("measured")
    for test, text in dict.fromkeys(told):
        terminalreporter.write_line(f"{test}\n{text}\n")


@pytest.fixture
def tell(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Print a text at the end of all tests."""
    return lambda text: record_property("told", text)


@pytest.fixture(autouse=True)
def no_determinism_left_behind() -> Iterator[None]:
    """Training in this process asks torch for deterministic algorithms; the next test starts without."""
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].use_deterministic_algorithms(False)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The real data beside the project (tests marked `real`)."""
    return SHARED_DATA


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    """A local Ray of two CPUs, shared by every test of the process."""
    from jobs.cluster import ray_session
    from pipelines.shards import ComputeSpec

    with ray_session(ComputeSpec(), num_cpus=2):
        yield
