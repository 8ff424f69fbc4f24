"""The command that takes every architecture through PSSL labels and CamVid."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest

from benchmarks.dense_systems import __main__ as command
from benchmarks.dense_systems import systems
from benchmarks.dense_systems.stages import FRAMES, IMAGES, CommandError, Stages, copy_sample, segray
from benchmarks.dense_systems.systems import small_system, weight_flags
from benchmarks.dense_systems.table import majority
from jobs.load import parse_flags
from pipelines.sources.camvid import CLASSES
from seg_models.recipes.shared import EFFICIENTNET_LITE0
from seg_models.spec import ARCHITECTURES, preset
from tests.tiny_frames import write_frames, write_images

ROW = {"arch": "pspnet", "preset": "p", "params": 7, "pssl_losses": [2, 1], "camvid_losses": [3, 2], "seconds": 5.0}
SCORES = {"miou": 0.5, "pixel_accuracy": 0.8, "evaluated": 1, "confusion": [[6, 0], [1, 1]], "classes": ["Sky", "Road"]}


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_architecture_has_a_small_preset(arch: str) -> None:
    found = small_system(arch, num_classes=len(CLASSES), crop=(128, 160))
    assert found.spec.arch == arch
    assert found.gmac <= systems.MOST_GMAC


def test_an_architecture_without_one_is_named_with_what_its_cheapest_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(systems, "MOST_GMAC", 0.1)
    with pytest.raises(ValueError, match=r"fcn has no small preset: fcn_efficientnet_lite0 takes 0\.3 GMAC .* 128×160"):
        small_system("fcn", num_classes=11, crop=(128, 160))


def test_weights_are_given_to_backbones_however_deep_they_stand() -> None:
    table = parse_flags(list(weight_flags(preset("hmsa_pspnet_efficientnet_lite0"))))
    assert table == {"recipe": {"model": {"inner": {"backbone": EFFICIENTNET_LITE0}}}}
    assert list(weight_flags(preset("hrnet_ocr_w18_small"))) == []


def test_the_baseline_is_the_most_frequent_class_everywhere() -> None:
    found = majority({"confusion": [[3, 2, 0], [1, 0, 9], [0, 5, 0]], "classes": ["a", "b", "c"]})
    assert found.name == "b"
    assert found.pixel_accuracy == pytest.approx(10 / 20)
    assert found.miou == pytest.approx(10 / 20 / 3)


def test_a_network_that_fails_is_told_and_stops_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scores: dict[str, Any] = {
        "fcn": CommandError("segray train: out of luck"),
        "pspnet": ROW | SCORES,
        "danet": ROW | SCORES | {"miou": 0.375},  # what predicting Sky everywhere scores
    }

    def row_of(stages: Any, system: systems.System) -> dict[str, Any]:
        if isinstance(scores[system.arch], Exception):
            raise scores[system.arch]
        return scores[system.arch]  # type: ignore[no-any-return]

    monkeypatch.setattr(command, "ray_session", lambda compute: contextlib.nullcontext())
    monkeypatch.setattr(Stages, "prepare", lambda stages: stages.runs.mkdir(parents=True, exist_ok=True))
    monkeypatch.setattr(Stages, "measure", row_of)
    assert command.main(["--output", str(tmp_path), "--only", "fcn", "danet", "pspnet"]) == 1
    said = capsys.readouterr()
    assert "failed: fcn: segray train: out of luck" in said.err
    assert "failed: danet: mIoU 0.3750 is not above 0.3750, that of Sky everywhere" in said.err
    assert "1 of 3 networks trained" in said.out
    (text,) = tmp_path.glob("runs-*/table.md")
    assert "| pspnet | `p` | 7 | 2.00 → 1.00 | 3.00 → 2.00 | 5 | 0.5000 | 0.8000 |" in text.read_text()
    assert "| the most frequent class | Sky | – | – | – | – | 0.3750 | 0.7500 |" in text.read_text()
    scores["fcn"] = ROW | SCORES | {"arch": "fcn", "miou": 0.75}
    assert command.main(["--output", str(tmp_path), "--only", "fcn"]) == 0
    assert "1 of 1 networks trained" in capsys.readouterr().out
    assert [line.split()[1] for line in text.read_text().splitlines() if "`p`" in line] == ["fcn", "pspnet"]


def test_a_command_that_fails_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CommandError, match=r"segray train: segray: error: .*missing\.toml: no such job file"):
        segray("train", "missing.toml")
    assert "$ segray train missing.toml" in capsys.readouterr().out


def test_a_sample_is_spread_over_the_list(tmp_path: Path) -> None:
    write_images(tmp_path / "all", count=7)
    assert copy_sample(tmp_path / "all", tmp_path / "some", count=3) == {"images": 3}
    assert sorted(path.name for path in (tmp_path / "some").iterdir()) == ["0.png", "2.png", "4.png", "index.tsv"]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("ray_local")
def test_a_network_is_trained_and_evaluated_and_not_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_images(tmp_path / "data" / IMAGES, count=4)
    for split in ("train", "val"):
        write_frames(tmp_path / "data" / FRAMES / split, count=4)
    places = ["--data", str(tmp_path / "data"), "--output", str(tmp_path / "out"), "--only", "semfpn"]
    sizes = [
        "--pssl-steps",
        "2",
        "--pssl-crop",
        "32",
        "32",
        "--steps",
        "20",
        "--batch",
        "4",
        "--crop",
        "32",
        "32",
        "--short-side",
        "40",
    ]
    assert command.main([*places, *sizes]) == 0
    first = capsys.readouterr().out
    assert first.count("$ segray train") == 2
    assert command.main([*places, *sizes]) == 0
    second = capsys.readouterr().out
    assert "$ segray" not in second
    assert first.splitlines()[-8:] == second.splitlines()[-8:]  # the table
