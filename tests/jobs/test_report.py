"""The HTML pages."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from jobs import report_page as html
from jobs.report import write_report
from jobs.scenes import CLASSES, SIZE, SceneCounts, scene, write_scenes
from jobs.walk import Walk
from pipelines.labels import LabelSpace
from pipelines.pictures import png

VOID_TAGS = {"meta", "link", "img", "br", "rect", "line", "polyline", "input"}


class Balanced(HTMLParser):
    """Notices tags that are not closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID_TAGS:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID_TAGS:
            assert self.open.pop() == tag


def balanced(text: str) -> bool:
    parser = Balanced()
    parser.feed(text)
    return not parser.open


@pytest.fixture
def evaluation(tmp_path: Path) -> Path:
    space = LabelSpace(names=("road", "sky & sea"))
    classes = [
        {"class": name, "iou": iou, "accuracy": 0.9, "precision": 0.8, "pixels": 10, "predicted_pixels": 12}
        for name, iou in zip(space.names, (0.5, None), strict=True)
    ]
    picture = {"id": "a<b", "kind": "fixed", "miou": 0.25, "image": "i.png", "truth": "t.png", "prediction": "p.png"}
    result = {
        "verb": "evaluate",
        "miou": 0.5,
        "images_in": 4,
        "classes": classes,
        "confusion": [[9, 1], [0, 0]],
        "label_space": space.model_dump(mode="json"),
        "pictures": [picture, {**picture, "kind": "worst"}],
        "reasons": {"truncated JPEG": 2},
    }
    (tmp_path / "pictures").mkdir()
    for name in ("i", "t", "p"):
        (tmp_path / "pictures" / f"{name}.png").write_bytes(png(np.zeros((4, 6, 3), np.uint8)))
    (tmp_path / "result.json").write_text(json.dumps(result))
    (tmp_path / "job.json").write_text('{"name": "x"}')
    return tmp_path


def test_the_page_of_an_evaluation_is_whole_and_needs_nothing_from_elsewhere(evaluation: Path) -> None:
    text = Path(write_report(str(evaluation))).read_text()
    assert balanced(text)
    assert not re.findall(r'(?:src|href)="(?!data:)', text)
    assert "<script" not in text
    for shown in ("0.500", "sky &amp; sea", "a&lt;b", "truncated JPEG", "road seen as sky &amp; sea: 10.0%"):
        assert shown in text
    assert text.count("<img alt=") == 6


def test_a_folder_without_a_run_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no finished run here"):
        write_report(str(tmp_path))


def test_curves_leave_out_what_cannot_be_drawn() -> None:
    assert html.curves({"loss": [(1, 2.0)]}, title="t") == ""
    text = html.curves({"loss": [(1, 2.0), (2, float("nan")), (3, 1.0)]}, title="t")
    assert text.count("polyline") == 1
    assert "nan" not in text


def test_missing_figures_are_dashes() -> None:
    assert html.number(float("nan")) == "–"
    assert "nan" not in html.bars({"a": float("nan"), "b": 1.0})


def test_equal_seeds_make_equal_scenes(tmp_path: Path) -> None:
    counts = SceneCounts(train=2, test=2, objects_per_class=1, unlabelled=1)
    for name in ("a", "b"):
        write_scenes(tmp_path / name, seed=3, counts=counts)
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.png"))
    assert len(files) == 2 * 2 * 2 + 5 + 1
    assert all((tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes() for file in files)


def test_scenes_have_exact_masks_of_the_classes_asked_for() -> None:
    for index in range(1, len(CLASSES)):
        image, label = scene(np.random.default_rng(index), classes=[index])
        assert image.shape == (SIZE, SIZE, 3)
        assert set(np.unique(label)) == {0, index}


def test_a_walk_does_not_run_a_finished_stage_again(tmp_path: Path) -> None:
    calls: list[int] = []

    def work() -> dict[str, int]:
        calls.append(1)
        return {"images_in": 5, "labelled": 4, "rejected": 1}

    for _ in range(2):
        walk = Walk(str(tmp_path))
        walk.stage("ingest", work)
    assert len(calls) == 1
    assert {k: v for k, v in walk.summary()["ingest"].items() if k != "seconds"} == {
        "images_in": 5,
        "labelled": 4,
        "rejected": 1,
    }
