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
from jobs.compare_figures import per_image
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
    more: dict[str, float] | None = None,
    boundary: dict[str, float | None] | None = None,
    calibration: dict[str, Any] | None = None,
) -> str:
    """A folder as `segray evaluate` leaves it, as far as it is read."""
    folder.mkdir()
    known = [value for value in iou.values() if value is not None]
    result = {
        "verb": verb,
        "miou": sum(known) / len(known),
        "classes": [
            {"class": name, "iou": value} | ({} if boundary is None else {"boundary_f_3px": boundary[name]})
            for name, value in iou.items()
        ],
        **(more or {}),
        **({} if calibration is None else {"calibration": calibration}),
        "dataset": data,
        "checkpoint": {"uri": f"{folder}/model", "sha256": "0", "arch": "cft"},
    }
    (folder / "result.json").write_text(json.dumps(result))
    text = io.StringIO()
    csv.writer(text).writerows(
        [("id", "miou", *(more or {})), *((name, score, *(more or {}).values()) for name, score in images.items())]
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


@pytest.fixture
def measured(tmp_path: Path) -> tuple[str, str]:
    """Two evaluations that measured boundary F and calibration; only the second one a width of 5 px."""
    names, images = ("road", "car", "tram"), {f"i{number}": 0.5 for number in range(4)}
    iou: dict[str, float | None] = dict.fromkeys(names, 0.5)
    before = evaluation(
        tmp_path / "a",
        iou=iou,
        images=images,
        more={"fwiou": 0.6, "boundary_f_3px": 0.4, "ece": 0.2},
        boundary={"road": 0.5, "car": 0.3, "tram": None},
    )
    after = evaluation(
        tmp_path / "b",
        iou=iou,
        images=images,
        more={"fwiou": 0.7, "boundary_f_3px": 0.45, "boundary_f_5px": 0.9, "ece": 0.1},
        boundary={"road": 0.6, "car": 0.2, "tram": 0.1},
    )
    return before, after


def test_every_figure_that_both_know_is_compared_and_less_calibration_error_is_better(
    measured: tuple[str, str], tmp_path: Path
) -> None:
    table = compare.run(job(measured, tmp_path))
    rows = {row["figure"]: row for row in table["figures"]}
    assert list(rows) == ["miou", "fwiou", "boundary_f_3px", "ece"]
    assert rows["fwiou"]["change"] == pytest.approx(0.1)
    single = rows["ece"]["per_image"]
    assert (single["better"], single["worse"], single["mean_gain"]) == (4, 0, pytest.approx(-0.1))
    assert single["interval"] == pytest.approx([-0.1, -0.1])
    assert table["per_image"] == rows["miou"]["per_image"]
    assert {row["class"]: row["boundary_f_3px_gain"] for row in table["gains"]} == pytest.approx(
        {"road": 0.1, "car": -0.1, "tram": None}
    )
    assert (tmp_path / "out" / "gains.csv").read_text().splitlines()[0].endswith(",gain,boundary_f_3px_gain")


def test_the_page_and_the_lines_show_every_figure(
    measured: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    compare.run(job(measured, tmp_path))
    assert "ece                  0.2000 -> 0.1000 (-0.1000)" in capsys.readouterr().out
    page = Path(write_report(str(tmp_path / "out"))).read_text()
    for text in ("boundary F within 3 px", "calibration error", "less is better", "-0.1000 to -0.1000", "+0.0500"):
        assert text in page


def test_an_image_without_a_figure_takes_no_part_in_its_interval() -> None:
    found = per_image(np.array([0.1, np.nan, -0.3]))
    assert found is not None
    assert (found["images"], found["better"], found["worse"]) == (2, 1, 1)
    assert found["mean_gain"] == pytest.approx(-0.1)
    assert per_image(np.array([np.nan])) is None


def test_the_interval_is_that_of_a_slow_bootstrap() -> None:
    differences = np.random.default_rng(5).normal(0.02, 0.1, 30)
    rng = np.random.default_rng(1)
    means = [np.mean([differences[i] for i in rng.integers(0, 30, 30)]) for _ in range(4000)]
    found = per_image(differences)
    assert found is not None
    assert found["interval"] == pytest.approx(np.quantile(means, (0.025, 0.975)), abs=0.004)


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


def test_a_folder_that_is_there_is_not_answered_with_its_own_name(two: tuple[str, str], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no finished evaluation here \(result.json is missing\)$"):
        compare.run(job((two[0], str(tmp_path / "empty")), tmp_path))


def test_an_evaluation_beside_itself_is_refused(two: tuple[str, str], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^evaluation: \S+/a: is the baseline itself; name another evaluation$"):
        compare.run(job((two[0], f"{two[0]}/"), tmp_path))


def test_calibration_in_other_bins_is_another_figure(tmp_path: Path) -> None:
    folders = [
        evaluation(tmp_path / name, iou={"road": 0.5}, images={"i": 0.5}, calibration={"bins": [{}] * bins})
        for name, bins in (("a", 10), ("b", 15))
    ]
    with pytest.raises(
        ValueError, match=r"b: calibration was measured in 15 bins, in the baseline in 10: their errors"
    ):
        compare.run(job((folders[0], folders[1]), tmp_path))


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
