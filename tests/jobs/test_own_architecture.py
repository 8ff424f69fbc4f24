"""The page on an architecture of one's own, run as it stands there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.tiny_data import write_dataset

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "own_architecture.md").read_text()


def files_of_the_page() -> dict[str, str]:
    """Path -> content of each block of code that begins with its path."""
    return {path: text for path, text in re.findall(r"```(?:python|toml)\n# (\S+)\n(.*?)```", PAGE, re.S)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the page's files and a data set at out/mine."""
    for path, text in files_of_the_page().items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    write_dataset(tmp_path / "out" / "mine")
    return tmp_path


def run(folder: Path, command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A shell as a user has it: `segray` and `python` are those of this environment."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "RAY_ADDRESS")}
    return subprocess.run(
        ["bash", "-euc", command], cwd=folder, capture_output=True, text=True, env={**kept, "PATH": path, **environment}
    )


@pytest.mark.cluster
@pytest.mark.timeout(400)
def test_the_page_trains_saves_loads_and_exports_what_it_shows(folder: Path) -> None:
    assert set(files_of_the_page()) == {"acme/nets.py", "train.toml", "use.py"}
    (commands,) = re.findall(r"```sh\n(.*?)```", PAGE, re.S)
    done = run(folder, f"{commands}\npython use.py")
    assert done.returncode == 0, done.stderr + done.stdout
    assert done.stdout.splitlines()[-1] == "WideNet (1, 3, 3, 4)"
    for name in ("model.pt2", "model.onnx"):
        assert (folder / "out" / "export" / name).stat().st_size > 0


def test_a_package_that_python_does_not_find_is_answered_with_the_remedy(folder: Path) -> None:
    done = run(folder, "segray train train.toml --dry-run")
    assert done.returncode == 2
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("segray"))
    assert "'acme.nets:WideNetSpec' cannot be imported: No module named 'acme'" in line
    assert "PYTHONPATH" in line


def test_an_own_setting_with_a_wrong_name_is_answered_with_the_nearest(folder: Path) -> None:
    job = folder / "train.toml"
    job.write_text(job.read_text().replace("reach = 5", "raech = 5"))
    done = run(folder, "segray train train.toml --dry-run", PYTHONPATH=".")
    assert done.returncode == 2
    assert "raech" in done.stderr
    assert "did you mean 'reach'" in done.stderr


def test_what_is_no_spec_is_refused(folder: Path) -> None:
    (folder / "acme" / "nets.py").write_text(
        textwrap.dedent(
            """
            class WideNetSpec:
                pass
            """
        )
    )
    done = run(folder, "segray train train.toml --dry-run", PYTHONPATH=".")
    assert done.returncode == 2
    assert "'acme.nets:WideNetSpec' is not a ModelSpec class" in done.stderr
