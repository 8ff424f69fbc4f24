"""The version is known where the code runs without being installed: a cluster is sent the folders and no metadata."""

from __future__ import annotations

import ast
import importlib.metadata
import json
from pathlib import Path

import pytest

from jobs import cli
from jobs.report import written_by
from jobs.training.publish import MODEL_FOLDER, copy_weights, publish
from pipelines.samples import Part, build_index
from seg_models import __version__
from tests.conftest import ROOT
from tests.jobs.tiny_training import plan_of, tiny_recipe
from tests.tiny_data import write_dataset


@pytest.fixture
def not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the metadata of segray, and of nothing else."""
    find = importlib.metadata.Distribution.from_name

    def find_others(name: str) -> importlib.metadata.Distribution:
        if name == "segray":
            raise importlib.metadata.PackageNotFoundError(name)
        return find(name)

    monkeypatch.setattr(importlib.metadata.Distribution, "from_name", find_others)
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version("segray")


def test_the_version_is_that_of_the_installed_package() -> None:
    assert importlib.metadata.version("segray") == __version__


@pytest.mark.usefixtures("not_installed")
def test_a_model_is_published_with_its_version_where_segray_is_not_installed(tmp_path: Path) -> None:
    write_dataset(tmp_path / "data", shard_sizes=(2,))
    plan = plan_of(build_index([Part(dataset=str(tmp_path / "data"))]), tmp_path / "run", tiny_recipe())
    publish(plan, copy_weights(plan.recipe.model.build(3), step=1), folder=MODEL_FOLDER, workers=1)
    info = json.loads((tmp_path / "run" / "model" / "model.json").read_text())
    assert info["provenance"]["versions"]["segray"] == __version__


@pytest.mark.usefixtures("not_installed")
def test_pages_and_the_command_line_say_the_version_where_segray_is_not_installed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert written_by().startswith(f"segray {__version__} · torch ")
    assert cli.run(["--version"]) == 0
    assert capsys.readouterr().out == f"segray {__version__}\n"


def test_no_code_asks_the_metadata_for_segray_itself() -> None:
    asking = []
    for package in ("seg_models", "pipelines", "jobs", "benchmarks"):
        for path in sorted((ROOT / package).rglob("*.py")):
            text = path.read_text()
            names = {node.value for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant)}
            if "importlib.metadata" in text and "segray" in names:
                asking.append(str(path.relative_to(ROOT)))
    assert asking == []
