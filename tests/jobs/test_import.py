"""`segray import`: a published checkpoint becomes one of ours, or is refused with an account."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from jobs import cli
from jobs.specs import ImportJob
from pipelines import storage
from pipelines.class_lists import read_classes
from pipelines.labels import LabelSpace
from pipelines.published import open_checkpoint
from seg_models.checkpoints import load_model
from seg_models.weights.files import file_sha256
from tests.published_lists import from_lists
from tests.s3_server import s3_bucket

__all__ = ["s3_bucket"]

NAMES = tuple(f"class {number}" for number in range(150))
OUTPUT_HEAD = "decode_head.linear_pred.weight"


def checkpoint() -> dict[str, Tensor]:
    """A SegFormer-B0 as its authors publish it: keys and shapes of the literal list, small numbers."""
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: 0.02 * torch.randn(value.shape, generator=generator)
        for name, value in from_lists("segformer_official_mit_b0").items()
    }
    return {name: value.abs() + 1 if name.endswith("running_var") else value for name, value in tensors.items()}


def arguments(path: Path | str, folder: Path, **flags: str) -> list[str]:
    """The command for a file; everything is written below `folder`."""
    folder.mkdir(exist_ok=True)
    (folder / "names.txt").write_text("\n".join(NAMES) + "\n")
    settings = {
        "checkpoint": str(path),
        "model": "segformer_mit_b0",
        "layout": "segformer_official",
        "classes": str(folder / "names.txt"),
        "output": str(folder / "out"),
        **flags,
    }
    given = [word for key, value in settings.items() for word in (f"--{key}", value)]
    return ["import", *given, "--tracking.no-enabled"]


def saved(tensors: dict[str, Tensor], path: Path) -> Path:
    torch.save({"meta": {"epoch": 1}, "state_dict": tensors}, path)
    return path


def failing(command: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert cli.run(command) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


def test_a_published_checkpoint_becomes_one_of_ours_and_predicts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = checkpoint()
    path = saved(tensors, tmp_path / "b0.pth")
    assert cli.run(arguments(path, tmp_path)) == 0
    told = capsys.readouterr().out
    assert "the authors' SegFormer: 192 tensors used; 2 left behind on purpose (decode_head.conv_seg.weight" in told
    loaded = load_model(tmp_path / "out" / "model")
    weight = loaded.model.state_dict()["classifier.conv.weight"]
    assert torch.equal(weight, tensors[OUTPUT_HEAD])
    with torch.no_grad():
        assert loaded.model(torch.zeros(1, 3, 64, 64, dtype=torch.uint8)).logits.shape[:2] == (1, 150)
    assert open_checkpoint(str(tmp_path / "out")).label_space.names == NAMES
    origin = loaded.info["provenance"]["imported_from"]
    assert origin == {"checkpoint": str(path), "sha256": file_sha256(path), "layout": "segformer_official"}
    account = json.loads((tmp_path / "out" / "result.json").read_text())["account"]
    assert (account["unused"], account["missing"], account["misshapen"]) == ([], [], [])
    assert "left behind on purpose" in (tmp_path / "out" / "report.html").read_text()


def test_settings_that_the_files_are_not_made_for_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved(checkpoint(), tmp_path / "b0.pth")
    assert cli.run(arguments(path, tmp_path)) == 0
    assert "other settings" not in capsys.readouterr().err
    assert json.loads((tmp_path / "out" / "result.json").read_text())["unlike"] is None
    assert cli.run(arguments(path, tmp_path, model="segformer_mit_b0_paddleseg")) == 0
    err = capsys.readouterr().err
    assert (
        "layout 'segformer_official' are for 'segformer_mit_b0', which has other settings (backbone.mean: now " in err
    )
    assert "backbone.std: now " in err


def test_a_half_loaded_model_is_refused_unless_partial(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = checkpoint()
    tensors["decode_head.linear_perd.weight"] = tensors.pop(OUTPUT_HEAD)
    path = saved(tensors, tmp_path / "b0.pth")
    text = failing(arguments(path, tmp_path), capsys)
    assert "1 unused (decode_head.linear_perd.weight); 1 missing (classifier.conv.weight)" in text
    assert "expected decode_head.linear_pred.weight (did you mean 'decode_head.linear_perd.weight'" in text
    assert text.endswith("partial = true imports what fits")
    assert not (tmp_path / "out" / "model").exists()
    assert cli.run([*arguments(path, tmp_path), "--partial"]) == 0
    assert load_model(tmp_path / "out" / "model").info["provenance"]["left_new"] == ["classifier.conv.weight"]


def test_the_wrong_layout_is_answered_with_the_right_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "b0.safetensors"
    save_file(checkpoint(), path)
    text = failing(arguments(path, tmp_path, layout="segformer_transformers"), capsys)
    assert "does not fit SegFormer: transformers' SegFormer" in text
    assert "layout 'segformer_official' has a place for 192 of them" in text
    text = failing(arguments(path, tmp_path, layout="segformer_oficial"), capsys)
    assert "layout: unknown layout 'segformer_oficial' (did you mean 'segformer_official'" in text
    assert not (tmp_path / "out" / "model").exists()


def test_another_class_list_is_refused_by_the_layers_that_differ(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = saved(checkpoint(), tmp_path / "b0.pth")
    text = failing(arguments(path, tmp_path, classes='["a", "b"]'), capsys)
    assert "2 of another shape (decode_head.linear_pred.weight (150, 256, 1, 1) for classifier.conv.weight (2, " in text


def test_a_dry_run_shows_the_account_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved(checkpoint(), tmp_path / "b0.pth")
    assert cli.run([*arguments(path, tmp_path), "--dry-run"]) == 0
    plan = json.loads(capsys.readouterr().out)["plan"]
    assert plan["account"].startswith("the authors' SegFormer: 192 tensors used")
    assert not (tmp_path / "out").exists()
    url = ["--checkpoint", "https://example.invalid/b0.pth", "--sha256", "0" * 12]
    assert cli.run([*arguments(path, tmp_path), *url, "--dry-run"]) == 0
    assert json.loads(capsys.readouterr().out)["plan"]["account"] == "made when the file has been fetched"
    assert "are missing" in failing([*arguments(tmp_path / "lost.pth", tmp_path), "--dry-run"], capsys)


def test_a_file_that_runs_code_or_has_another_hash_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "evil.pth"
    torch.save({"state_dict": {"a": Path("x")}}, path)
    assert "cannot be read" in failing(arguments(path, tmp_path), capsys)
    path = saved(checkpoint(), tmp_path / "b0.pth")
    assert "SHA-256 is" in failing(arguments(path, tmp_path, sha256="0" * 12), capsys)
    url = "https://example.invalid/b0.pth"
    assert "sha256: is needed" in failing(arguments(url, tmp_path), capsys)


def test_classes_are_names_a_text_file_or_a_table(tmp_path: Path) -> None:
    space = LabelSpace(names=("a", "b"), background=0)
    (tmp_path / "classes.json").write_text(space.model_dump_json())
    (tmp_path / "names.txt").write_text("a\nb\n")
    assert read_classes(str(tmp_path / "classes.json")) == space
    assert read_classes(str(tmp_path / "names.txt")) == read_classes(["a", "b"]) == {"names": ("a", "b")}
    with pytest.raises(ValueError, match="'a' is listed twice"):
        read_classes(["a", "a"])
    with pytest.raises(ValueError, match=r"^(?!classes: ).*a,b: no such file; several names .* a b$"):
        read_classes("a,b")
    job = {"checkpoint": "x.pth", "model": "pspnet_resnet50", "layout": "pspnet_mmseg", "classes": space}
    assert ImportJob.model_validate(job).classes == space


@pytest.mark.cluster
def test_a_file_in_an_object_store_is_imported_into_one(s3_bucket: str, tmp_path: Path) -> None:
    path = saved(checkpoint(), tmp_path / "b0.pth")
    storage.write_bytes(f"{s3_bucket}/b0.pth", path.read_bytes())
    command = arguments(f"{s3_bucket}/b0.pth", tmp_path, output=f"{s3_bucket}/out")
    assert cli.run([*command, "--sha256", file_sha256(path)[:12]]) == 0
    assert open_checkpoint(f"{s3_bucket}/out").label_space.names == NAMES
