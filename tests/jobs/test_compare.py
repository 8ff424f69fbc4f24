"""`segray compare`: gains between two evaluations whose figures are known."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jobs import compare
from jobs.report import write_report
from jobs.specs import CompareJob, TrackingSpec

UNTRACKED = TrackingSpec(enabled=False)
DATA = {"uri": "s3://bucket/city", "labels": "human", "split": "val", "fingerprint": "f1"}


def evaluation(
    folder: Path,
    *,
    iou: dict[str, float | None],
    images: dict[str, float],
    data: dict[str, str] = DATA,
    verb: str = "evaluate",
) -> str:
    """A folder as `segray evaluate` leaves it, as far as it is read."""
    folder.mkdir()
    known = [value for value in iou.values() if value is not None]
    result = {
        "verb": verb,
        "miou": sum(known) / len(known),
        "classes": [{"class": name, "iou": value} for name, value in iou.items()],
        "dataset": data,
        "checkpoint": {"uri": f"{folder}/model", "sha256": "0", "arch": "cft"},
    }
    (folder / "result.json").write_text(json.dumps(result))
    text = io.StringIO()
    csv.writer(text).writerows(
        [("id", "miou", "pixel_accuracy"), *((name, score, 0.5) for name, score in images.items())]
    )
    (folder / "per_image.csv").write_text(text.getvalue())
    return str(folder)


@pytest.fixture
def two(tmp_path: Path) -> tuple[str, str]:
    """A baseline, and an evaluation that is better at cars, worse at poles and does not know trams."""
    images = {f"i{number}": 0.5 for number in range(40)}
    better = {name: 0.5 + (0.1 if int(name[1:]) % 4 else -0.1) for name in images}
    before = evaluation(tmp_path / "a", iou={"road": 0.9, "car": 0.5, "pole": 0.3, "tram": None}, images=images)
    after = evaluation(tmp_path / "b", iou={"road": 0.9, "car": 0.75, "pole": 0.2, "tram": 0.1}, images=better)
    return before, after


def job(two: tuple[str, str], tmp_path: Path) -> CompareJob:
    return CompareJob(baseline=two[0], evaluation=two[1], output=str(tmp_path / "out"), tracking=UNTRACKED)


def test_every_class_has_its_gain_and_single_images_their_interval(two: tuple[str, str], tmp_path: Path) -> None:
    table = compare.run(job(two, tmp_path))
    assert {row["class"]: row["gain"] for row in table["gains"]} == pytest.approx(
        {"road": 0.0, "car": 0.25, "pole": -0.1, "tram": None}
    )
    assert table["miou_gain"] == pytest.approx((0.9 + 0.75 + 0.2 + 0.1) / 4 - (0.9 + 0.5 + 0.3) / 3)
    single = table["per_image"]
    assert (single["images"], single["better"], single["worse"]) == (40, 30, 10)
    assert single["mean_gain"] == pytest.approx(0.05)
    spread = np.std([0.1] * 30 + [-0.1] * 10) / np.sqrt(40)
    assert single["interval"] == pytest.approx([0.05 - 1.96 * spread, 0.05 + 1.96 * spread], abs=0.004)
    assert json.loads((tmp_path / "out" / "result.json").read_text()) == table


def test_the_files_and_the_page_show_the_classes_by_gain(two: tuple[str, str], tmp_path: Path) -> None:
    compare.run(job(two, tmp_path))
    rows = list(csv.DictReader((tmp_path / "out" / "gains.csv").open()))
    assert [row["class"] for row in rows] == ["road", "car", "pole", "tram"]
    assert rows[3] == {"class": "tram", "baseline": "", "evaluation": "0.1", "gain": ""}
    pixels = np.asarray(Image.open(tmp_path / "out" / "gains.png").convert("RGB")).reshape(-1, 3)
    for color in ((42, 127, 98), (181, 71, 60)):
        assert (pixels == color).all(axis=1).any()
    page = Path(write_report(str(tmp_path / "out"))).read_text()
    places = [page.index(f'<th scope="row">{name}</th>') for name in ("car", "road", "pole")]
    assert places == sorted(places)
    assert "+25.00" in page
    assert "does not know: tram" in page


def test_what_is_printed_names_the_extremes(
    two: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    compare.run(job(two, tmp_path))
    text = capsys.readouterr().out
    assert "most gained: car 0.5000 -> 0.7500 (+0.2500)" in text
    assert "least gained: pole 0.3000 -> 0.2000 (-0.1000)" in text
    assert "30 better, 10 worse of 40" in text


def test_a_dry_run_writes_nothing(two: tuple[str, str], tmp_path: Path) -> None:
    plan = compare.run(job(two, tmp_path), dry_run=True)["plan"]
    assert (plan["classes"], plan["images"]) == (4, 40)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": DATA | {"fingerprint": "f2"}}, "looked at fingerprint 'f2', the baseline at 'f1'"),
        ({"data": DATA | {"split": "test"}}, "looked at split 'test', the baseline at 'val'"),
        ({"iou": {"road": 0.1, "bus": 0.2}}, r"its classes \(road, bus\) are not those of the baseline"),
        ({"verb": "train"}, "found a run of 'train', one of 'evaluate' is needed"),
    ],
)
def test_evaluations_that_cannot_be_compared_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    same: dict[str, Any] = {"iou": {"road": 0.9, "car": 0.5}, "images": {"i": 0.5}}
    before = evaluation(tmp_path / "a", **same)
    after = evaluation(tmp_path / "b", **(same | changes))
    with pytest.raises(ValueError, match=message):
        compare.run(job((before, after), tmp_path))
    assert not (tmp_path / "out").exists()


def test_a_folder_without_an_evaluation_is_answered_with_the_nearest(two: tuple[str, str], tmp_path: Path) -> None:
    (tmp_path / "eval-cft").mkdir()
    wrong = str(tmp_path / "eval-ctf")
    with pytest.raises(ValueError, match=r"evaluation: .*eval-ctf: no finished evaluation .* .did you mean 'eval-cft'"):
        compare.run(job((two[0], wrong), tmp_path))


@pytest.mark.parametrize("which", [0, 1])
def test_an_evaluation_is_not_written_over(two: tuple[str, str], tmp_path: Path, which: int) -> None:
    changed = job(two, tmp_path).model_copy(update={"output": f"{two[which]}/"})
    with pytest.raises(ValueError, match=r"^output: .* holds an evaluation that is compared; name another folder$"):
        compare.run(changed)
    assert json.loads((Path(two[which]) / "result.json").read_text())["verb"] == "evaluate"


@pytest.mark.parametrize(("text", "told"), [('{"verb": ', "cannot be read: Expecting value"), ("[]", "found list")])
def test_a_damaged_evaluation_is_named(two: tuple[str, str], tmp_path: Path, text: str, told: str) -> None:
    (Path(two[1]) / "result.json").write_text(text)
    with pytest.raises(ValueError, match=rf"^evaluation: .*/b/result\.json: .*{told}"):
        compare.run(job(two, tmp_path))
