"""The HTML page of a run."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jobs import report
from jobs import report_page as html
from jobs.report import write_report
from jobs.report_pictures import MAX_SIDE_PX, confidence_picture, embed
from jobs.specs import ReportJob
from pipelines.confidence import encode_confidence
from pipelines.labels import LabelSpace
from pipelines.pictures import png
from pipelines.schema import ShardKey
from pipelines.tables import Dataset, write_shard
from tests.html_page import Page
from tests.tiny_data import SPACE, label_rows, write_dataset
from tests.tiny_data import scene as tiny_scene


def page_of(folder: Path) -> Page:
    return Page(Path(write_report(str(folder))).read_text())


def write_run(folder: Path, result: dict[str, Any], *, job: str = '{"name": "x"}') -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "job.json").write_text(job)
    return folder


def evaluation_result(**changes: Any) -> dict[str, Any]:
    space = LabelSpace(names=("road", "sky & sea"))
    classes = [
        {"class": name, "iou": iou, "accuracy": 0.9, "precision": 0.8, "pixels": 10, "predicted_pixels": 12}
        for name, iou in zip(space.names, (0.5, None), strict=True)
    ]
    picture = {"id": "a<b", "kind": "fixed", "miou": 0.25, "image": "i.png", "truth": "t.png", "prediction": "p.png"}
    result = {
        "verb": "evaluate",
        "miou": 0.5,
        "images_in": 6,
        "evaluated": 4,
        "skipped": 2,
        "classes": classes,
        "confusion": [[9, 1], [0, 0]],
        "label_space": space.model_dump(mode="json"),
        "pictures": [picture, {**picture, "kind": "worst"}],
        "reasons": {"truncated JPEG": 2},
        "mlflow": {"run_id": "abc123", "tracking_uri": "sqlite:///m.db"},
        "seconds": 130.0,
    }
    return result | changes


@pytest.fixture
def evaluation(tmp_path: Path) -> Path:
    (tmp_path / "pictures").mkdir()
    for name in ("i", "t", "p"):
        (tmp_path / "pictures" / f"{name}.png").write_bytes(png(np.zeros((4, 6, 3), np.uint8)))
    return write_run(tmp_path, evaluation_result())


def test_the_page_of_an_evaluation_needs_nothing_from_elsewhere(evaluation: Path) -> None:
    page = page_of(evaluation)
    assert all(source.startswith("data:image/") for source in page.values("img", "src"))
    targets = [link for link in page.values("a", "href") + page.values("link", "href") if link != "data:,"]
    assert {link.removeprefix("#") for link in targets} == set(page.values("section", "id"))
    names = {name for name, _ in page.tags}
    assert not names & {"script", "iframe", "object", "embed"}
    assert not re.search(r"url\(|@import|https?://", Path(evaluation, "report.html").read_text())


def test_the_page_of_an_evaluation_shows_its_figures(evaluation: Path) -> None:
    page = page_of(evaluation)
    for shown in ("0.500", "sky & sea", "a<b", "truncated JPEG", "abc123", "2 min 10 s", "evaluated: 4 (66.7%)"):
        assert shown in page.text
    assert "road seen as sky & sea: 10.0% (1 pixels)" in page.text
    assert len(page.values("img", "src")) == 6


def test_boundaries_and_calibration_have_a_chart_and_a_table(evaluation: Path) -> None:
    boundary = [
        {"px": px, "f": f, "precision": 0.75, "recall": f, "published_f": 0.875} for px, f in ((1, 0.25), (3, 0.625))
    ]
    bins = [
        {"low": 0.0, "high": 0.5, "pixels": 0, "confidence": None, "accuracy": None},
        {"low": 0.5, "high": 1.0, "pixels": 8, "confidence": 0.75, "accuracy": 0.5},
    ]
    calibration = {"ece": 0.25, "largest_error": 0.25, "mean_confidence": 0.75, "bins": bins}
    write_run(evaluation, evaluation_result(boundary=boundary, calibration=calibration, ece=0.25))
    text = Path(write_report(str(evaluation))).read_text()
    assert text.index('<section id="boundary-f">') < text.index('<section id="calibration">')
    assert 'aria-label="boundary F by width"' in text
    assert "F, width, pixels 3: 0.625" in text
    assert "confidence 0.750, accuracy 0.500, 8 pixels (100.0%), bin 0.500 to 1.000" in text
    assert text.count("<g><title>") == 1, "an empty bin has no bar"
    assert "calibration error" in text


def test_what_was_not_measured_has_no_section(evaluation: Path) -> None:
    text = Path(write_report(str(evaluation))).read_text()
    assert "boundary-f" not in text
    assert 'id="calibration"' not in text


def test_the_page_can_be_read_aloud_in_the_dark_on_a_phone_and_in_print(evaluation: Path) -> None:
    page = page_of(evaluation)
    assert all(page.values("img", "alt"))
    assert all(scope in ("col", "row") for scope in page.values("th", "scope"))
    assert all(page.values("svg", "aria-label"))
    assert "width=device-width,initial-scale=1" in page.values("meta", "content")
    for rule in ("prefers-color-scheme:dark", "@media print", "@media(max-width"):
        assert rule in html.STYLE


def test_names_from_the_data_cannot_become_markup(tmp_path: Path) -> None:
    reasons = {"<script>alert(1)</script>": 3}
    folder = write_run(tmp_path, {"verb": "ingest", "images_in": 3, "rejected": 3, "reasons": reasons}, job="<u>x</u>")
    page = page_of(folder)
    assert "<script>alert(1)</script>" in page.text
    assert "<u>x</u>" in page.text
    assert not {"script", "u"} & {name for name, _ in page.tags}


def test_a_folder_without_a_run_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no finished run here"):
        write_report(str(tmp_path))


def test_the_verb_writes_the_page_and_a_dry_run_does_not(evaluation: Path) -> None:
    report.run(ReportJob(run=str(evaluation)), dry_run=True)
    assert not (evaluation / "report.html").exists()
    assert report.run(ReportJob(run=str(evaluation))) == {"report": str(evaluation / "report.html")}
    assert (evaluation / "report.html").exists()


def test_the_page_of_a_training_shows_its_curves(tmp_path: Path) -> None:
    lines = [{"step": step, "train/loss": 2.0 / step, "train/lr": 0.1 - step / 100} for step in range(1, 5)]
    data = [{"dataset": "d", "labels": "human", "split": "train", "samples": 7}]
    parts = [{"part": "fine", "drawn": "0.5 by class", "share": 0.875, "epochs": 2.5}]
    classes = [{"class": "bus", "centroids": 41, "per_epoch": 3}]
    sampling = [{"steps": [0, 4], "parts": parts, "classes": classes}]
    result = {"verb": "train", "steps": 4, "loss": 0.5, "data": data, "sampling": sampling, "transfer": "kept 3"}
    folder = write_run(tmp_path, result)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = page_of(folder)
    assert len(page.values("polyline", "points")) == 2
    assert "loss, step 4: 0.5" in page.text
    assert "kept 3" in page.text
    assert "0–4fine0.5 by class87.5%2.5" in page.text
    assert "0–4bus413" in page.text


def test_the_page_of_a_training_shows_its_validations_and_where_the_best_is(tmp_path: Path) -> None:
    validations = [{"step": step, "miou": miou} for step, miou in ((10, 0.25), (20, 0.5))]
    result = {
        "verb": "train",
        "steps": 20,
        "validations": validations,
        "best": {**validations[1], "checkpoint": "r/best"},
    }
    write_run(tmp_path, result)
    text = Path(write_report(str(tmp_path))).read_text()
    assert "mIoU of validations" in text
    assert "mIoU, step 20: 0.5" in text
    assert "Best of 2 validations: step 20, in r/best" in text


def test_the_page_of_a_label_set_shows_image_label_and_confidence(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "d", shard_sizes=(3,), bad_labels=(1,))
    add_confidence(dataset)
    result = {"verb": "autolabel", "dataset": dataset.root, "labels": "teacher", "class_pixels": {"ground": 5}}
    page = page_of(write_run(tmp_path / "run", result))
    assert len(page.values("img", "src")) == 2 * 3
    assert "scene-0001" not in page.text
    assert page.values("img", "alt")[:3] == [
        f"{view}: scene-0000" for view in ("image", "label over the image", "confidence")
    ]


def add_confidence(dataset: Dataset) -> None:
    table = dataset.create_labels("teacher", label_space=SPACE, plan={})
    rows = [tiny_scene(number, space=SPACE, size=(36, 44)) | {"bad_label": number == 1} for number in range(3)]
    codes = label_rows(rows)
    confidence = [None if row["bad_label"] else encode_confidence(np.full((36, 44), 0.7, np.float32)) for row in rows]
    place = codes.schema.get_field_index("confidence")
    codes = codes.set_column(place, codes.schema.field(place), [confidence])
    table.commit([write_shard(table.uri, ShardKey("train", 0), codes)])


def test_the_page_of_a_check_lists_errors_and_that_of_an_export_its_files(tmp_path: Path) -> None:
    found = {"verb": "check", "errors": ["two splits share an image"], "warnings": [], "classes": []}
    assert "two splits share an image" in page_of(write_run(tmp_path / "check", found)).text
    files = [{"path": "m.onnx", "size": [8, 9], "size_bytes": 3_000_000, "max_abs_diff": 0.1, "max_rel_diff": 1e-6}]
    text = page_of(write_run(tmp_path / "export", {"verb": "export", "files": files})).text
    assert all(shown in text for shown in ("m.onnx", "8 × 9", "3.0 MB", "1.0e-06"))


def test_small_pictures_are_exact_and_photographs_shrink() -> None:
    label = np.zeros((20, 30, 3), np.uint8)
    label[5:, 7:] = (3, 200, 90)
    assert np.array_equal(pixels_of(embed(label, "x", smooth=False)), label)
    photo = np.random.default_rng(0).integers(0, 256, (700, 1400, 3)).astype(np.uint8)
    assert pixels_of(embed(photo, "x")).shape == (MAX_SIDE_PX // 2, MAX_SIDE_PX, 3)


def pixels_of(tag: str) -> Any:
    data = base64.b64decode(re.findall(r"base64,([^\"]+)", tag)[0])
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def test_more_confidence_is_brighter() -> None:
    picture = confidence_picture(np.array([[0.0, 0.5, 1.0]], np.float32)).astype(int).sum(axis=-1)
    assert (np.diff(picture[0]) > 0).all()


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (float("nan"), "–"),
        (0, "0"),
        (1234567, "1,234,567"),
        (0.5, "0.500"),
        (7.25, "7.25"),
        (105.79, "105.8"),
        (2e4, "20,000"),
    ],
)
def test_figures_have_about_three_digits(value: float, shown: str) -> None:
    assert html.number(value) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"), [(4.24, "4.2 s"), (56.4, "56 s"), (185, "3 min 05 s"), (4800, "1 h 20 min")]
)
def test_durations_are_readable(seconds: float, shown: str) -> None:
    assert html.duration(seconds) == shown


def test_a_column_with_missing_figures_still_stands_to_the_right() -> None:
    assert html.table(("class", "iou"), [("a", 0.5), ("b", "–")]).count('<td class="n">') == 2
    assert html.table(("class", "iou"), [("a", 0.5), ("b", None)]).count('<td class="n">') == 2
    assert html.table(("figure", "change"), [("a", "+0.5000"), ("b", "-1.25")]).count('<td class="n">') == 2
    assert html.table(("figure", "interval"), [("a", "-0.1 to +0.2")]).count('<td class="n">') == 0
    assert html.table(("class", "iou"), []) == ""
