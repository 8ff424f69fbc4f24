"""Walks over several verbs: the demo and the walk on real data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs import demo, real
from jobs.specs import DemoJob, RealJob
from jobs.walk import Verbs, Walk, closing, summarise
from jobs.walk_report import write_walk_report
from pipelines.labels import LabelSpace
from pipelines.pictures import png
from pipelines.sources import FolderSource
from tests.html_page import Page
from tests.tiny_data import write_dataset

ARMS = {"a": "first arm", "b": "second arm"}


def test_a_walk_does_not_run_a_finished_stage_again(tmp_path: Path) -> None:
    calls: list[int] = []

    def work() -> dict[str, int]:
        calls.append(1)
        return {"images_in": 5, "labelled": 4, "rejected": 1}

    for _ in range(2):
        walk = Walk(str(tmp_path))
        walk.stage("ingest", work)
    assert len(calls) == 1
    counts = {key: value for key, value in walk.summary()["ingest"].items() if key != "seconds"}
    assert counts == {"images_in": 5, "labelled": 4, "rejected": 1}


def test_a_stage_that_fails_is_run_again(tmp_path: Path) -> None:
    def fail() -> dict[str, Any]:
        raise ValueError("no")

    walk = Walk(str(tmp_path))
    with pytest.raises(ValueError, match="no"):
        walk.stage("pssl", fail)
    assert walk.stage("pssl", lambda: {"images_in": 1})["images_in"] == 1
    assert walk.summary()["pssl"]["attempts"] == 2  # its seconds are those of the second alone


def test_a_walk_does_not_take_the_stages_of_other_settings_for_its_own(tmp_path: Path) -> None:
    for _ in range(2):
        Walk(str(tmp_path), {"samples": 1, "steps": 500}).begin()
    with pytest.raises(ValueError, match=r"samples: now 10, there 1\); choose another folder with --output"):
        Walk(str(tmp_path), {"samples": 10, "steps": 500}).begin()


def test_the_demo_replaces_its_own_folder_and_no_other(tmp_path: Path) -> None:
    own, other = tmp_path / "demo", tmp_path / "other"
    demo.clear(own)
    (own / "old").write_text("x")
    demo.clear(own)
    assert not (own / "old").exists()
    other.mkdir()
    (other / "thesis").write_text("x")
    with pytest.raises(ValueError, match="no demo made it"):
        demo.clear(other)
    assert (other / "thesis").exists()


def test_a_dry_run_of_the_demo_writes_nothing(tmp_path: Path) -> None:
    demo.run(DemoJob(output=str(tmp_path / "demo")), dry_run=True)
    assert not (tmp_path / "demo").exists()


def test_the_walk_on_real_data_names_the_folder_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="imagenet-sample-1000"):
        real.run(RealJob(data=str(tmp_path), output=str(tmp_path / "out")), dry_run=True)


@pytest.fixture
def walk(tmp_path: Path) -> Walk:
    """A finished walk of two arms, without the work."""
    dataset = write_dataset(tmp_path / "data", shard_sizes=(2,))
    labels = {"dataset": dataset.root, "labels": "human", "images_in": 3, "labelled": 2, "rejected": 1}
    done = Walk(str(tmp_path))
    done.stage("ingest", lambda: labels)
    done.stage("pssl", lambda: labels | {"skipped_maps": {"net": 0}, "mlflow": {"run_id": "run-of-pssl"}})
    done.stage("pretrain", lambda: {"steps": 9, "loss": 0.5})
    for arm in ARMS:
        done.stage(f"train_{arm}", lambda: {"steps": 7, "loss": 0.25})
    done.stage("autolabel", lambda: labels | {"kept": 0.8, "kept_share": {"red": 0.5}, "threshold": 0.5})
    for number, arm in enumerate(ARMS):
        result = evaluation(tmp_path / "evaluate" / arm, miou=0.25 * (number + 1))
        done.stage(f"evaluate_{arm}", lambda result=result: result)  # type: ignore[misc]
    return done


def evaluation(folder: Path, *, miou: float) -> dict[str, Any]:
    """The result of an evaluation of one image, and its pictures."""
    space = LabelSpace(names=("ground", "red"))
    views = {view: f"fixed-00-{view}.png" for view in ("image", "truth", "prediction")}
    (folder / "pictures").mkdir(parents=True)
    for name in views.values():
        (folder / "pictures" / name).write_bytes(png(np.zeros((4, 6, 3), np.uint8)))
    classes = [{"class": name, "iou": miou} for name in space.names]
    return {
        "verb": "evaluate",
        "miou": miou,
        "evaluated": 1,
        "images_in": 1,
        "classes": classes,
        "confusion": [[3, 1], [0, 2]],
        "label_space": space.model_dump(mode="json"),
        "pictures": [{"id": "scene", "kind": "fixed", "miou": miou, **views}],
    }


def test_rows_of_images_without_labels_count_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = {"images_in": 5, "good": 4, "labelled": 0, "rejected": 1}
    monkeypatch.setattr("jobs.walk.ingest.run", lambda job: counts)
    source = FolderSource(images=str(tmp_path))
    result = Verbs(DemoJob(), str(tmp_path)).ingest("photos", source)
    assert (result["images_in"], result["labelled"], result["rejected"]) == (5, 4, 1)


def test_the_summary_adds_up(walk: Walk) -> None:
    summary = summarise(walk, arms=ARMS)
    assert summary["miou"] == {"a": 0.25, "b": 0.5}
    for name in ("ingest", "pssl", "autolabel"):
        assert summary[name]["images_in"] == summary[name]["labelled"] + summary[name]["rejected"]
    assert summary["seconds"] == pytest.approx(sum(s["seconds"] for s in summary["stages"].values()), abs=0.06)
    assert summary["mlflow_run_ids"] == {"pssl": "run-of-pssl"}
    assert json.loads(json.dumps(summary)) == summary
    assert "second arm               0.5000" in closing(summary, arms=ARMS, report="r.html")


def test_the_page_of_a_walk_sets_the_arms_side_by_side(walk: Walk, tmp_path: Path) -> None:
    place = write_walk_report(walk, summarise(walk, arms=ARMS), output=tmp_path, arms=ARMS, best="b", title="t")
    page = Page(Path(place).read_text())
    assert all(source.startswith("data:image/") for source in page.values("img", "src"))
    assert {f"{title}: scene" for title in ARMS.values()} <= set(page.values("img", "alt"))
    for shown in ("0.250", "0.500", "run-of-pssl", "9 steps on the pseudo-labels", "80% of the pixels kept"):
        assert shown in page.text
