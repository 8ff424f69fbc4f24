"""`segray weights`: what to fetch, where to put it, and whether it is there and right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from jobs import cli
from pipelines import storage
from pipelines.weights_list import classifier_file
from seg_models.weights.classifiers import ClassifierSpec, build_classifier
from seg_models.weights.files import file_sha256
from tests.s3_server import s3_bucket

__all__ = ["s3_bucket"]


@pytest.fixture(autouse=True)
def empty_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No files of this machine."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


def listed(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, list[dict[str, Any]]]:
    code = cli.run(["weights", *arguments, "--json"])
    rows: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    return code, rows


def own(folder: Path, **settings: Any) -> tuple[list[str], Path]:
    """Flags of one small classifier of one's own, and its file."""
    path = folder / "own.safetensors"
    torch.manual_seed(0)
    save_file(timm.create_model("test_resnet", num_classes=2).state_dict(), path)
    table = {"name": "test_resnet", "num_classes": 2, "size": 32, "weights": str(path), **settings}
    inline = ", ".join(f"{key} = {json.dumps(value)}" for key, value in table.items())
    return ["--ensemble.classifiers", f"[{{{inline}}}]"], path


def test_every_file_of_the_fifteen_is_named_with_address_hash_size_and_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, rows = listed(["--ensemble", "timm15"], capsys)
    assert (code, len(rows)) == (0, 15)
    for row in rows:
        file_name = row["source"].rpartition("/")[2]
        assert row["source"].startswith("https://")
        assert row["place"] == str(tmp_path / "torch" / "hub" / "checkpoints" / file_name)
        assert row["state"] == "missing"
        assert row["sha256"] in file_name
        assert row["input"]["size"] == 224
    sizes = {row["name"]: row["size_bytes"] for row in rows}
    # torchvision states 527.866 MiB and 54.708 MiB for these two files
    assert sizes["vgg16_bn.tv_in1k"] == pytest.approx(527.866 * 2**20, rel=0.01)
    assert sizes["densenet169.tv_in1k"] == pytest.approx(54.708 * 2**20, rel=0.01)


def test_a_check_fails_until_every_file_is_there_and_right(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags, path = own(tmp_path)
    tagged, _ = own(tmp_path, weights_sha256=file_sha256(path)[:12])
    assert listed([*tagged, "--check"], capsys)[0] == 0
    assert listed(tagged, capsys)[1][0]["state"] == "verified"
    assert listed(flags, capsys)[1][0]["state"] == "there"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    code, rows = listed([*tagged, "--check"], capsys)
    assert (code, rows[0]["state"]) == (1, "wrong")
    path.unlink()
    code, rows = listed([*tagged, "--check"], capsys)
    assert (code, rows[0]["state"], rows[0]["place"]) == (1, "missing", str(path))
    assert listed(tagged, capsys)[0] == 0


def test_the_place_that_is_named_is_the_place_the_loader_takes_the_file_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, path = own(tmp_path)
    tag = file_sha256(path)[:8]
    url = f"https://example.invalid/own-{tag}.safetensors"
    flags, _ = own(tmp_path, weights=url, weights_sha256=tag)
    place = Path(listed(flags, capsys)[1][0]["place"])
    place.parent.mkdir(parents=True)
    place.write_bytes(path.read_bytes())
    assert listed([*flags, "--check"], capsys)[0] == 0
    build_classifier(ClassifierSpec(name="test_resnet", num_classes=2, size=32, weights=url, weights_sha256=tag))


def test_a_folder_of_the_fifteen_is_looked_through_by_file_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "vgg16_bn-6c64b313.pth").write_bytes(b"another file")
    code, rows = listed(["--ensemble", f"timm15:{tmp_path}", "--check"], capsys)
    assert code == 1
    states = {Path(row["place"]).name: row["state"] for row in rows}
    assert states.pop("vgg16_bn-6c64b313.pth") == "wrong"
    assert set(states.values()) == {"missing"}
    assert all(Path(row["place"]).parent == tmp_path for row in rows)
    assert all(row["source"].startswith("https://") for row in rows)


def test_the_backbone_of_a_recipe_is_listed_too_and_an_untrained_one_needs_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = ["--recipe", "pspnet_resnet50_voc"]
    _, (row,) = listed([*recipe, "--recipe.model.backbone.name", "resnet18"], capsys)
    assert row["source"] == "https://huggingface.co/timm/resnet18.a1_in1k/resolve/main/model.safetensors"
    assert row["place"] == str(tmp_path / "hub" / "models--timm--resnet18.a1_in1k")
    assert row["size_bytes"] == pytest.approx(46.8e6, rel=0.01)
    assert listed([*recipe, "--recipe.model.backbone.no-pretrained"], capsys) == (0, [])
    assert cli.run(["weights", *recipe]) == 0
    assert "(the folder as the hub's client leaves it)" in capsys.readouterr().out


def test_a_package_that_is_not_installed_is_named_with_the_pip_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags, _ = own(tmp_path, weights="package:no_such_package_here/a.pth")
    code, (row,) = listed([*flags, "--check"], capsys)
    assert code == 1
    assert (row["state"], row["place"], row["source"]) == ("missing", None, "pip install no-such-package-here")


def test_the_table_for_people_ends_with_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["weights", "--ensemble", "timm15", "--check"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "missing  resnet18.a1_in1k  about 46.8 MB, SHA-256 d63eafa0"
    assert lines[-1] == "15 files, 2,386 MB: 15 missing"


def test_a_request_for_nothing_says_what_to_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["weights"]) == 2
    assert "name an `ensemble` (such as timm15), a `recipe`, or both" in capsys.readouterr().err


@pytest.mark.cluster
def test_files_below_an_address_of_an_object_store_are_looked_for_there(s3_bucket: str, tmp_path: Path) -> None:
    _, path = own(tmp_path)
    place = f"{s3_bucket}/weights/own.safetensors"
    tag = file_sha256(path)[:8]
    spec = ClassifierSpec(name="test_resnet", num_classes=2, weights=place, weights_sha256=tag)
    assert classifier_file(spec).state == "missing"
    storage.write_bytes(place, path.read_bytes())
    found = classifier_file(spec)
    assert (found.state, found.place, found.size_bytes) == ("verified", place, path.stat().st_size)
    assert classifier_file(spec.model_copy(update={"weights_sha256": "0" * 8})).state == "wrong"
