"""The check counts what a dataset holds and tells errors from things to look at."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from jobs import check as check_verb
from jobs.report import write_report
from jobs.specs import CheckJob, TrackingSpec
from pipelines import quality
from pipelines.codecs import encode_label
from pipelines.ingest import PairedCommits, worker_args
from pipelines.ingest_plan import plan_ingest
from pipelines.ingest_worker import IngestWorker
from pipelines.labels import LabelSpace
from pipelines.quality import QualityReport, check_dataset
from pipelines.schema import LABELS, ShardKey
from pipelines.shards import ComputeSpec, RunStats, ShardTask
from pipelines.sources import FolderSource
from pipelines.tables import Dataset, write_shard
from tests.source_files import CLASSES, HEIGHT, WIDTH, encoded, mask, pairs, put, scene


@pytest.fixture
def inline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards are worked on in this process: what is counted does not depend on Ray."""

    def run(
        worker: type,
        *,
        tasks: list[ShardTask],
        worker_args: dict[str, Any],
        on_result: Callable[[str, Any], None],
        **_: Any,
    ) -> RunStats:
        built = worker(**worker_args)
        for task in tasks:
            on_result(task.key, built(task.payload))
        return RunStats(tasks=len(tasks))

    monkeypatch.setattr(quality, "run_shards", run)


def ingested(root: Path, **changes: object) -> Dataset:
    """The dataset of `root/images` and `root/labels`."""
    settings = {"images": str(root / "images"), "labels": str(root / "labels"), "classes": CLASSES}
    plan = plan_ingest(FolderSource.model_validate(settings | changes), dataset=str(root / "dataset"), shard_rows=4)
    dataset = Dataset.create(plan.root, plan.info)
    if plan.labels is not None:
        dataset.create_labels(plan.labels, label_space=plan.info.label_space, plan={})
    commit = PairedCommits(dataset, plan.labels)
    worker = IngestWorker(**worker_args(plan, dataset))
    for shard in plan.shards:
        commit.add(worker(shard))
    commit.flush()
    return dataset


def checked(dataset: Dataset, labels: str = "human") -> QualityReport:
    return check_dataset(dataset.root, labels=labels, compute=ComputeSpec(actors=1))


def add_label_set(dataset: Dataset, name: str, maps: Mapping[str, np.ndarray], *, reverse: bool = False) -> None:
    """A label set made of given maps, in the rows of the images."""
    table = dataset.create_labels(name, label_space=LabelSpace(names=CLASSES), plan={})
    receipts = []
    for file in dataset.images.files():
        ids = dataset.images.read(file.key).column("id").to_pylist()
        ids = ids[::-1] if reverse else ids
        columns = {
            "id": ids,
            "label": [encode_label(maps[row_id]) for row_id in ids],
            "confidence": [None] * len(ids),
            "reason": [None] * len(ids),
        }
        fields = [field for field in LABELS if field.name in columns]
        receipts.append(write_shard(table.uri, file.key, pa.Table.from_pydict(columns, schema=pa.schema(fields))))
    table.commit(receipts)


@pytest.mark.usefixtures("inline")
def test_class_pixels_shares_and_sizes_are_exact(tmp_path: Path) -> None:
    pairs(tmp_path, {"train/a": 1, "train/b": 1, "val/c": 2})
    put(tmp_path / "images" / "val" / "d.jpg", encoded(scene(9, height=40, width=50)))
    put(tmp_path / "labels" / "val" / "d.png", mask(255, height=40, width=50))
    report = checked(ingested(tmp_path))
    total = 3 * HEIGHT * WIDTH + 40 * 50
    assert {row.name: (row.pixels, row.images) for row in report.classes} == {
        "ground": (total - 80, 4),
        "red": (40, 2),
        "green": (20, 1),
    }
    assert report.void_pixels == 20
    assert report.classes[1].share == pytest.approx(40 / (total - 20))
    assert report.sizes == {f"{WIDTH}x{HEIGHT}": 3, "50x40": 1}
    assert (report.splits, report.images_in, report.good) == ({"train": 2, "val": 2}, 4, 4)
    assert report.errors == ()


@pytest.mark.usefixtures("inline")
def test_rejected_rows_are_counted_once_with_their_reason(tmp_path: Path) -> None:
    pairs(tmp_path, {"a": 1, "b": 1, "c": 9})
    put(tmp_path / "images" / "b.jpg", b"")
    report = checked(ingested(tmp_path))
    assert (report.good, report.rejected) == (1, 2)
    assert report.reasons == {"unreadable image: empty file": 1, "label value outside the class list": 1}
    assert sorted(report.rejected_rows) == ["b", "c"]
    assert any("2 of 3 rows are rejected" in line for line in report.warnings)


@pytest.mark.usefixtures("inline")
def test_the_same_image_in_two_splits_is_an_error_and_within_a_split_a_warning(tmp_path: Path) -> None:
    pairs(tmp_path, {"train/a": 1, "train/b": 1, "train/c": 2, "val/d": 1})
    copy = (tmp_path / "images" / "train" / "a.jpg").read_bytes()
    put(tmp_path / "images" / "val" / "d.jpg", copy)
    put(tmp_path / "images" / "train" / "c.jpg", (tmp_path / "images" / "train" / "b.jpg").read_bytes())
    report = checked(ingested(tmp_path))
    assert report.duplicates_between_splits == (("train: train/a", "val: val/d"),)
    assert report.num_duplicates_within_splits == 1
    assert len(report.errors) == 1
    assert "1 images are in more than one split, first train: train/a = val: val/d" in report.errors[0]
    assert "1 images repeat another image of their split" in report.warnings


@pytest.mark.usefixtures("inline")
def test_void_labels_and_classes_never_seen_are_named(tmp_path: Path) -> None:
    pairs(tmp_path, {"a": 1, "b": 1})
    put(tmp_path / "labels" / "b.png", encoded(scene(0).convert("L").point(lambda _: 255), "PNG"))
    report = checked(ingested(tmp_path))
    assert report.all_void == ("b",)
    assert report.unseen_classes == ("green",)
    assert "1 labels are void everywhere: b" in report.warnings
    assert "1 classes are in no label: green" in report.warnings
    assert report.errors == ()


@pytest.mark.usefixtures("inline")
def test_labels_that_are_all_void_are_an_error(tmp_path: Path) -> None:
    pairs(tmp_path, {"a": 1})
    report = checked(ingested(tmp_path, raw_values=(7, 8, 9), void_values=(0, 1)))
    assert report.errors == ("every label is void everywhere; void_values may be wrong",)


@pytest.mark.usefixtures("inline")
def test_masks_of_0_and_255_read_as_void_get_a_hint(tmp_path: Path) -> None:
    pairs(tmp_path, {"a": 255, "b": 255})
    report = checked(ingested(tmp_path, classes=("ground", "horse")))
    assert any("raw_values = [0, 255]" in line for line in report.warnings)
    assert not any("raw_values" in line for line in checked(ingested(pairs(tmp_path / "x", {"a": 1}))).warnings)


@pytest.mark.usefixtures("inline")
def test_a_dataset_without_labels_is_scanned_for_its_images(tmp_path: Path) -> None:
    pairs(tmp_path, {"a": 1, "b": 1})
    report = checked(ingested(tmp_path, labels=None, classes=None))
    assert (report.labels, report.good, report.classes) == (None, 2, ())
    assert report.warnings == ("there is no label set; only images were scanned",)


@pytest.mark.usefixtures("inline")
def test_a_label_set_of_another_name_is_suggested(tmp_path: Path) -> None:
    pairs(tmp_path, {"a": 1})
    with pytest.raises(ValueError, match=r"no label set 'humen' \(did you mean 'human'\?\)"):
        checked(ingested(tmp_path), labels="humen")


@pytest.mark.usefixtures("inline")
def test_labels_of_wrong_size_or_value_are_errors(tmp_path: Path) -> None:
    pairs(tmp_path, {"a": 1, "b": 1})
    dataset = ingested(tmp_path)
    wrong = np.full((HEIGHT, WIDTH), 3, np.uint8)
    add_label_set(dataset, "odd", {"a": np.zeros((5, 6), np.uint8), "b": wrong})
    assert sorted(checked(dataset, "odd").errors) == [
        f"a: label of 6x5 px, image of {WIDTH}x{HEIGHT} px",
        f"b: label value 3 on {HEIGHT * WIDTH} pixels is neither a class nor void",
    ]


@pytest.mark.usefixtures("inline")
def test_labels_in_another_order_than_their_images_are_an_error(tmp_path: Path) -> None:
    pairs(tmp_path, {"a": 1, "b": 1})
    dataset = ingested(tmp_path)
    add_label_set(dataset, "odd", dict.fromkeys("ab", np.zeros((HEIGHT, WIDTH), np.uint8)), reverse=True)
    assert checked(dataset, "odd").errors == ("shard train/00000: images and labels hold other ids or another order",)


@pytest.mark.usefixtures("inline")
def test_an_unfinished_label_set_is_told(tmp_path: Path) -> None:
    pairs(tmp_path, {f"i{number}": 1 for number in range(6)})
    dataset = ingested(tmp_path)
    dataset.create_labels("later", label_space=LabelSpace(names=CLASSES), plan={})
    report = checked(dataset, "later")
    assert any("lacks 2 shards of the images" in line for line in report.warnings)


@pytest.mark.usefixtures("inline")
@pytest.mark.parametrize("position", [200, 1000, -20])
def test_a_damaged_shard_file_is_an_error_and_the_others_are_counted(position: int, tmp_path: Path) -> None:
    pairs(tmp_path, {f"i{number}": 1 for number in range(6)})
    dataset = ingested(tmp_path)
    file = next(file for file in dataset.images.files() if file.key == ShardKey("train", 0))
    path = Path(dataset.images.uri) / file.path
    content = bytearray(path.read_bytes())
    content[position] ^= 255
    path.write_bytes(bytes(content))
    report = checked(dataset)
    assert len(report.errors) == 1
    assert "damaged shard file" in report.errors[0]
    assert sum(report.sizes.values()) == 2


@pytest.mark.usefixtures("ray_local")
def test_the_check_job_writes_its_report_and_says_that_it_failed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs(tmp_path, {"train/a": 1, "val/b": 2})
    put(tmp_path / "images" / "val" / "b.jpg", (tmp_path / "images" / "train" / "a.jpg").read_bytes())
    dataset = ingested(tmp_path)
    job = CheckJob(
        dataset=dataset.root,
        output=str(tmp_path / "out"),
        compute=ComputeSpec(actors=1),
        tracking=TrackingSpec(enabled=False),
    )
    plan = check_verb.run(job, dry_run=True)["plan"]
    assert (plan["images"], plan["shards"], (tmp_path / "out").exists()) == (2, 2, False)
    capsys.readouterr()
    result = check_verb.run(job)
    assert result["failed"] is True
    assert len(result["errors"]) == 1
    assert json.loads((tmp_path / "out" / "result.json").read_text()) == json.loads(json.dumps(result))
    out = capsys.readouterr().out
    assert "error: 1 images are in more than one split" in out
    assert "green" in out
    assert "green" in Path(write_report(str(tmp_path / "out"))).read_text()
