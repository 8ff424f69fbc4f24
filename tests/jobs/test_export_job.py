"""`segray export` from a published checkpoint to a file that gives the same labels."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from jobs import export
from jobs.specs import ExportJob, TrackingSpec
from pipelines.images import decode_image
from seg_models.predictor import Predictor
from tests.oracle_model import OracleSpec, publish
from tests.tiny_data import SPACE, scene

UNTRACKED = TrackingSpec(enabled=False)


def test_the_exported_file_gives_the_labels_of_the_checkpoint(tmp_path: Path) -> None:
    job = ExportJob(
        checkpoint=publish(tmp_path / "model"), output=str(tmp_path / "out"), size=(36, 44), tracking=UNTRACKED
    )
    table = export.run(job)
    stored = json.loads((tmp_path / "out" / "result.json").read_text())
    assert stored == json.loads(json.dumps(table))
    assert stored["files"][0]["max_rel_diff"] <= job.tolerance
    image = decode_image(scene(3, space=SPACE, size=(36, 44))["image"])
    scores = torch.export.load(stored["files"][0]["path"]).module()(torch.tensor(image).permute(2, 0, 1)[None])
    expected = Predictor(OracleSpec().build(3)).predict(image).label
    assert torch.equal(scores.argmax(1)[0], torch.from_numpy(expected.astype("int64")))
    assert json.loads((tmp_path / "out" / "classes.json").read_text())["names"] == list(SPACE.names)
    assert ExportJob.model_validate_json((tmp_path / "out" / "job.json").read_text()) == job


def test_a_dry_run_names_the_files_and_writes_none(tmp_path: Path) -> None:
    job = ExportJob(checkpoint=publish(tmp_path / "model"), output=str(tmp_path / "out"), formats=("pt2", "onnx"))
    plan = export.run(job, dry_run=True)["plan"]
    assert plan["writes"] == [str(tmp_path / "out" / name) for name in ("model.pt2", "model.onnx")]
    assert {path.name for path in tmp_path.iterdir()} == {"model"}


def test_a_checkpoint_that_is_not_there_is_named(tmp_path: Path) -> None:
    job = ExportJob(checkpoint=str(tmp_path / "lost"), output=str(tmp_path / "out"), tracking=UNTRACKED)
    with pytest.raises(ValueError, match=r"checkpoint: .*lost.*model\.json is missing"):
        export.run(job)
    assert not (tmp_path / "out").exists()


def test_weights_that_were_changed_are_refused(tmp_path: Path) -> None:
    folder = Path(publish(tmp_path / "model"))
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "model.safetensors").write_bytes(data)
    with pytest.raises(ValueError, match="SHA-256"):
        export.run(ExportJob(checkpoint=str(folder), output=str(tmp_path / "out"), tracking=UNTRACKED))
