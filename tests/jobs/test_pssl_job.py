"""`segray pssl` as a job: dry run, result files, and errors before Ray starts."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import timm
from PIL import Image
from pydantic import ValidationError
from safetensors.torch import save_file

from jobs import cli, label_job
from jobs import pssl as verb
from jobs.specs import PsslJob
from pipelines import label_run, schema
from pipelines.labels import LabelSpace
from pipelines.schema import ShardKey
from pipelines.shards import RunStats, ShardTask
from pipelines.tables import Dataset, DatasetInfo, write_shard
from seg_models.weights.files import file_sha256


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards are worked on in this process: what is tested is the job, not Ray."""

    def run_here(worker: type, *, tasks: list[ShardTask], worker_args: dict[str, Any], **other: Any) -> RunStats:
        working = worker(**worker_args)
        for task in tasks:
            other["on_result"](task.key, working(task.payload))
        return RunStats(tasks=len(tasks), actors=1)

    monkeypatch.setattr(label_run, "run_shards", run_here)
    monkeypatch.setattr(label_job, "ray_session", lambda compute: contextlib.nullcontext())
    monkeypatch.setattr(label_job, "preflight", lambda job: None)


@pytest.fixture
def table(tmp_path: Path) -> dict[str, Any]:
    """The settings of a job over four tiny images of two classes, one without a class."""
    dataset = Dataset.create(
        str(tmp_path / "data"), DatasetInfo(name="tiny", label_space=LabelSpace(names=("a", "b")), splits=("train",))
    )
    rng = np.random.default_rng(0)
    rows = []
    for number in range(4):
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (32, 40, 3)).astype(np.uint8)).save(buffer, "PNG")
        index = None if number == 3 else number % 2
        rows.append({"id": f"i{number}", "image": buffer.getvalue(), "height": 32, "width": 40, "class": index})
    columns = pa.schema([field for field in schema.IMAGES if field.name not in schema.PARTITION_BY])
    images = dataset.images
    images.commit([write_shard(images.uri, ShardKey("train", 0), pa.Table.from_pylist(rows, columns))])
    save_file(timm.create_model("test_resnet", num_classes=2).state_dict(), tmp_path / "own.safetensors")
    classifier = {"name": "test_resnet", "weights": str(tmp_path / "own.safetensors"), "num_classes": 2, "size": 32}
    return {
        "dataset": dataset.root,
        "ensemble": {"classifiers": [classifier]},
        "pssl": {"explainer": {"kind": "smoothgrad", "samples": 2}},
        "tracking": {"enabled": False},
    }


@pytest.mark.usefixtures("here")
def test_a_job_writes_its_settings_and_result_beside_the_labels(
    table: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    job = PsslJob.model_validate(table)
    found = verb.run(job)
    folder = Path(table["dataset"]) / "runs" / "pssl-pssl"
    assert PsslJob.model_validate_json((folder / "job.json").read_text()) == job
    assert json.loads((folder / "result.json").read_text()) == found
    assert (found["images_in"], found["labelled"], found["rejected"]) == (4, 3, 1)
    assert found["digest"] == Dataset.open(table["dataset"]).labels("pssl").label_digest()
    assert "3 of 4 images labelled, 1 rejected" in (printed := capsys.readouterr().out)
    assert "1 x no image-level class" in printed
    verb.run(job)
    assert "(nothing left to do: 1 of 1 shards committed by earlier runs)" in capsys.readouterr().out


def test_a_dry_run_tells_the_plan_and_writes_nothing(table: dict[str, Any]) -> None:
    found = verb.run(PsslJob.model_validate(table), dry_run=True)
    assert found["plan"]["images"] == 4
    assert found["plan"]["label_plan"]["classifiers"][0]["numerics"]["chunk"] == 16
    assert sorted(path.name for path in Path(table["dataset"]).iterdir()) == ["dataset.json", "images"]


def test_the_plan_holds_the_whole_hash_of_weights_that_are_named_by_its_beginning(
    table: dict[str, Any], tmp_path: Path
) -> None:
    whole = file_sha256(tmp_path / "own.safetensors")
    (settings,) = table["ensemble"]["classifiers"]
    ensemble = {"classifiers": [{**settings, "weights_sha256": whole[:8]}]}
    plans = [
        verb.run(PsslJob.model_validate(changed), dry_run=True)["plan"]["label_plan"]
        for changed in (table, table | {"ensemble": ensemble})
    ]
    assert plans[0] == plans[1]
    assert plans[0]["classifiers"][0]["weights_sha256"] == whole


@pytest.mark.usefixtures("here")
def test_other_settings_for_an_existing_label_set_are_refused_before_ray_starts(
    table: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    verb.run(PsslJob.model_validate(table))
    monkeypatch.setattr(label_job, "ray_session", lambda compute: pytest.fail("Ray was started"))
    with pytest.raises(ValueError, match=r"plan\.settings\.seed: now 7, there 0"):
        verb.run(PsslJob.model_validate(table | {"pssl": {**table["pssl"], "seed": 7}}))


def test_settings_that_would_have_no_effect_are_refused(table: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="`ensemble` and `pssl` have no effect"):
        PsslJob.model_validate(table | {"import_from": "released"})
    with pytest.raises(ValidationError, match="no effect without import_from"):
        PsslJob.model_validate(table | {"import_minus_one": "background"})
    with pytest.raises(ValidationError, match="no classifiers"):
        PsslJob(dataset="data")
    assert (
        PsslJob.model_validate({"dataset": "data", "pssl": {"explainer": {"kind": "random"}}}).ensemble.resolve() == ()
    )


def test_an_estimate_is_printed_for_the_job_and_for_imagenet(
    table: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "job.json").write_text(json.dumps(table))
    before = sorted(Path(table["dataset"]).rglob("*"))
    assert cli.run(["pssl", str(tmp_path / "job.json"), "--estimate", "--price", "2.5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    figures = {line[:24].strip(): line[24:].split() for line in lines if line}
    assert figures["images"] == ["4", "1,281,167"]
    assert figures["passes"] == ["8", "2,562,334"]
    assert float(figures["cost at 2.5 an hour"][0]) == pytest.approx(2.5 * float(figures["CPU-hours"][0]), abs=0.006)
    assert any(line.startswith("test_resnet") and line.endswith("own") for line in lines)
    assert cli.run(["pssl", str(tmp_path / "job.json"), "--estimate", "--json", "--compute.actors", "3"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["job"]["images"], found["job"]["cost"], found["actors"]) == (4, None, 1)  # one shard, one actor
    assert found["imagenet"]["passes"] == 2 * 1_281_167
    assert sorted(Path(table["dataset"]).rglob("*")) == before


def test_an_estimate_says_where_weights_are_random(
    table: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own.safetensors").unlink()
    (tmp_path / "job.json").write_text(json.dumps(table))
    assert cli.run(["pssl", str(tmp_path / "job.json"), "--estimate"]) == 0
    printed = capsys.readouterr().out
    assert "random weights for 1 of 1 classifiers, whose own are not here (`segray weights` lists them)" in printed
    assert "cost" not in printed


def test_a_price_that_is_no_number_and_an_import_are_refused(
    table: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "job.json").write_text(json.dumps(table))
    for price in ("much", "-1", "true"):
        assert cli.run(["pssl", str(tmp_path / "job.json"), "--estimate", "--price", price]) == 2
        assert "--price: found" in capsys.readouterr().err
    assert cli.run(["pssl", "--dataset", table["dataset"], "--import-from", "released", "--estimate"]) == 2
    assert "nothing to estimate" in capsys.readouterr().err
    assert cli.run(["pssl", str(tmp_path / "job.json"), "--price", "2"]) == 2
    assert "price: unknown key" in capsys.readouterr().err


def test_absent_weights_end_in_one_line_that_says_which_command_lists_them(
    table: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own.safetensors").unlink()
    (tmp_path / "job.json").write_text(json.dumps(table))
    assert cli.run(["pssl", str(tmp_path / "job.json"), "--dry-run"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        f"segray: error: weights 'own.safetensors' are missing: put the file at {tmp_path}/own.safetensors; "
        "`segray weights` lists all files and where to put them"
    )
