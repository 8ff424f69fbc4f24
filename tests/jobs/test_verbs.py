"""What all verbs share: a dry run shows settings, plan and fit; a refused job leaves its folder as it was."""

from __future__ import annotations

import contextlib
import importlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs import real
from jobs.cli import run
from jobs.specs import RealJob
from tests.conftest import SHARED_DATA
from tests.oracle_model import publish
from tests.tiny_data import write_dataset

Arguments = dict[str, list[str]]
COMPUTE_MODULES = {
    "ingest": "jobs.ingest",
    "check": "jobs.check",
    "autolabel": "jobs.label_job",
    "evaluate": "jobs.evaluate",
    "predict": "jobs.predict",
    "unpack": "jobs.unpack",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a dataset, a checkpoint, plain images and a finished run."""
    root = tmp_path_factory.mktemp("verbs")
    write_dataset(root / "data", shard_sizes=(3,), split="test")
    publish(root / "model")
    (root / "photos").mkdir()
    Image.fromarray(np.zeros((32, 40, 3), np.uint8)).save(root / "photos" / "a.png")
    (root / "run").mkdir()
    (root / "run" / "result.json").write_text(json.dumps({"verb": "check"}))
    return root


@pytest.fixture
def arguments(made: Path, tmp_path: Path) -> Arguments:
    """Of every verb that the small folder is enough for, its arguments; all of them write below `tmp_path`."""
    data, model, out = ["--dataset", f"{made}/data"], ["--checkpoint", f"{made}/model"], f"{tmp_path}/out"
    source = ["--source.kind", "folder", "--source.images", f"{made}/photos", "--source.classes", '["a", "b"]']
    verbs = {
        "ingest": [*source, "--dataset", out],
        "check": [*data, "--output", out],
        "autolabel": [*model, *data],
        "evaluate": [*model, *data, "--output", out],
        "predict": [*model, "--images", f"{made}/photos", "--output", out],
        "export": [*model, "--output", out],
        "unpack": [*data, "--output", out],
        "report": ["--run", f"{made}/run"],
        "demo": ["--output", out],
    }
    tracking = ["--tracking.uri", f"sqlite:///{tmp_path}/mlflow.db"]
    return {verb: [verb, *given, *tracking] for verb, given in verbs.items()} | {
        "models": ["models"],
        "recipes": ["recipes"],
        "weights": ["weights", "--ensemble", "timm15"],
    }


def files_of(*folders: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for folder in folders for path in folder.rglob("*")}


@pytest.mark.parametrize(
    "verb",
    [
        *("ingest", "check", "autolabel", "evaluate", "predict", "export", "unpack", "report", "demo"),
        *("models", "recipes", "weights"),
    ],
)
def test_a_dry_run_shows_settings_plan_and_fit_and_writes_nothing(
    verb: str, arguments: Arguments, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files_of(made, tmp_path)
    assert run([*arguments[verb], "--dry-run"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["job"]
    assert shown["plan"]
    if verb not in ("models", "recipes", "weights"):
        assert shown["plan"]["compute"]["fits"] is True
    assert files_of(made, tmp_path) == before


@pytest.mark.real
def test_a_dry_run_of_the_real_walk_counts_its_images(tmp_path: Path) -> None:
    job = RealJob(data=str(SHARED_DATA), output=str(tmp_path / "out"))
    plan = real.run(job, dry_run=True)["plan"]
    assert plan["images"] == {"imagenet": {"train": 1000}, "camvid": {"train": 367, "val": 101, "test": 233}}
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("verb", COMPUTE_MODULES)
def test_a_job_that_does_not_fit_leaves_its_folder_as_it_was(
    verb: str,
    arguments: Arguments,
    made: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refuse(job: object) -> None:
        raise ValueError("compute.actors: 99 actors x 1 CPUs do not fit")

    module = importlib.import_module(COMPUTE_MODULES[verb])
    monkeypatch.setattr(module, "ray_session", lambda compute: contextlib.nullcontext())
    monkeypatch.setattr(module, "preflight", refuse)
    before = files_of(made)
    assert run(arguments[verb]) == 2
    assert "99 actors" in capsys.readouterr().err
    assert files_of(made).keys() == before.keys()
    assert {path.name for path in tmp_path.iterdir()} <= {"mlflow.db"}


@pytest.mark.parametrize("verb", ["ingest", "check", "evaluate", "predict", "export", "unpack"])
def test_an_output_that_cannot_be_written_is_called_so(
    verb: str, arguments: Arguments, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").write_text("a file")
    assert run(arguments[verb]) == 2
    message = capsys.readouterr().err
    assert f"{tmp_path}/out" in message
    assert "tracking" not in message
    assert not (tmp_path / "mlflow.db").exists()
