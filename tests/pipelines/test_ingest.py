"""Ingest deals samples to shards by hash, commits both tables, resumes, and counts what is committed."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs import ingest as ingest_verb
from jobs.report import write_report
from jobs.specs import IngestJob, TrackingSpec
from pipelines.codecs import decode_label
from pipelines.ingest import IngestResult, PairedCommits, count_dataset, worker_args
from pipelines.ingest_plan import IngestPlan, PlannedShard, cut, deal, plan_ingest
from pipelines.ingest_worker import IngestWorker, ShardReceipts
from pipelines.labels import LabelSpace
from pipelines.shards import ComputeSpec
from pipelines.sources import CamVidSource, FolderSource, ImageNetSource, Sample
from pipelines.tables import Dataset
from tests.source_files import CLASSES, HEIGHT, WIDTH, encoded, mask, pairs, put, scene, write_tar

NAMES = {f"s{number:02d}": 1 + number % 2 for number in range(12)}


def folder(root: Path, **changes: object) -> FolderSource:
    settings = {"images": str(root / "images"), "labels": str(root / "labels"), "classes": CLASSES}
    return FolderSource.model_validate(settings | changes)


def open_target(plan: IngestPlan) -> Dataset:
    dataset = Dataset.create(plan.root, plan.info)
    if plan.labels is not None:
        dataset.create_labels(
            plan.labels, label_space=plan.info.label_space, plan={"made_by": "ingest"} | plan.info.source
        )
    return dataset


def work(plan: IngestPlan, shards: Iterable[PlannedShard]) -> list[ShardReceipts]:
    """Receipts of shards, without Ray."""
    worker = IngestWorker(**worker_args(plan, open_target(plan)))
    return [worker(shard) for shard in shards]


def run_here(plan: IngestPlan) -> IngestResult:
    """A whole ingest without Ray."""
    dataset = open_target(plan)
    todo = plan.remaining()
    commit = PairedCommits(dataset, plan.labels)
    for receipts in work(plan, todo):
        commit.add(receipts)
    commit.flush()
    return count_dataset(plan, dataset, shards_done=len(todo), seconds=1.0)


def rows(dataset: Dataset, table: str = "images") -> dict[str, dict[str, object]]:
    """Rows of every shard by id."""
    opened = dataset.images if table == "images" else dataset.labels(table)
    return {row["id"]: row for file in opened.files() for row in opened.read(file.key).to_pylist()}


def index_map(root: Path, name: str, label: bytes, **settings: object) -> np.ndarray:
    """The stored label of a one-image data set."""
    put(root / "images" / f"{name}.jpg", encoded(scene(1)))
    put(root / "labels" / f"{name}.png", label)
    plan = plan_ingest(folder(root, **settings), dataset=str(root / "dataset"))
    result = run_here(plan)
    assert result.rejected == 0, result.text()
    return decode_label(rows(Dataset.open(plan.root), "human")[name]["label"])  # type: ignore[arg-type]


def test_shards_keep_every_sample_once_within_both_limits() -> None:
    samples = [Sample(f"i{n}", "train" if n % 3 else "val", f"/i{n}", size_bytes=n * 10) for n in range(1, 40)]
    shards = deal(samples, seed=1, shard_rows=4, shard_bytes=900)
    assert sorted(sample.id for shard in shards for sample in shard.samples) == sorted(s.id for s in samples)
    assert all(sample.split == shard.key.split for shard in shards for sample in shard.samples)
    assert max(len(shard.samples) for shard in shards) == 4
    assert all(shard.size_bytes <= 900 for shard in shards)
    numbers = [shard.key.shard for shard in shards if shard.key.split == "val"]
    assert numbers == list(range(len(numbers)))


def test_a_sample_larger_than_a_shard_is_a_shard_of_its_own() -> None:
    samples = [Sample(str(n), "train", "", size_bytes=size) for n, size in enumerate((5, 100, 5, 5))]
    assert [[s.size_bytes for s in piece] for piece in cut(samples, shard_rows=9, shard_bytes=10)] == [
        [5],
        [100],
        [5, 5],
    ]


def test_dealing_depends_on_seed_and_ids_and_not_on_the_order_of_the_listing() -> None:
    samples = [Sample(f"class{n // 20}/{n}", "train", f"/{n}", size_bytes=1) for n in range(60)]
    one = deal(samples, seed=0, shard_rows=10, shard_bytes=1000)
    assert deal(samples[::-1], seed=0, shard_rows=10, shard_bytes=1000) == one
    assert deal(samples, seed=1, shard_rows=10, shard_bytes=1000) != one
    assert all(len({sample.id.split("/")[0] for sample in shard.samples}) > 1 for shard in one)


def test_images_are_stored_as_they_came_and_labels_as_indices(tmp_path: Path) -> None:
    pairs(tmp_path, NAMES)
    plan = plan_ingest(folder(tmp_path), dataset=str(tmp_path / "dataset"), shard_rows=5)
    result = run_here(plan)
    assert (result.images_in, result.good, result.rejected, result.shards) == (12, 12, 0, 3)
    dataset = Dataset.open(plan.root)
    images, labels = rows(dataset), rows(dataset, "human")
    for name, value in NAMES.items():
        assert images[name]["image"] == (tmp_path / "images" / f"{name}.jpg").read_bytes()
        assert (images[name]["height"], images[name]["width"]) == (HEIGHT, WIDTH)
        label = decode_label(labels[name]["label"])  # type: ignore[arg-type]
        expected = np.zeros((HEIGHT, WIDTH), np.uint8)
        expected[2:6, 3:8] = value
        np.testing.assert_array_equal(label, expected)
    assert result.class_pixels == {"ground": 12 * (HEIGHT * WIDTH - 20), "red": 120, "green": 120}
    assert result.sizes == {f"{WIDTH}x{HEIGHT}": 12}


def test_both_tables_hold_the_same_ids_in_the_same_order(tmp_path: Path) -> None:
    pairs(tmp_path, NAMES)
    plan = plan_ingest(folder(tmp_path), dataset=str(tmp_path / "dataset"), shard_rows=5)
    run_here(plan)
    dataset = Dataset.open(plan.root)
    images, labels = dataset.images, dataset.labels("human")
    assert images.committed() == labels.committed() == {shard.key for shard in plan.shards}
    for shard in plan.shards:
        ids = [sample.id for sample in shard.samples]
        assert images.read(shard.key).column("id").to_pylist() == ids
        assert labels.read(shard.key).column("id").to_pylist() == ids


def test_raw_values_and_void_values_are_mapped(tmp_path: Path) -> None:
    label = np.full((HEIGHT, WIDTH), 40, np.uint8)
    label[:3], label[3:5] = 10, 99
    png = encoded(Image.fromarray(label), "PNG")
    found = index_map(tmp_path, "a", png, raw_values=(10, 20, 40), void_values=(99,))
    assert {int(found[0, 0]), int(found[4, 0]), int(found[9, 9])} == {0, 255, 2}


def test_palette_values_are_indices_and_colours_are_mapped_where_given(tmp_path: Path) -> None:
    colors = ((0, 0, 0), (255, 0, 0), (0, 255, 0))
    palette = Image.open(io.BytesIO(mask(2)))
    palette.putpalette([value for color in colors for value in color])
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    expected[2:6, 3:8] = 2
    np.testing.assert_array_equal(
        index_map(tmp_path / "palette", "a", encoded(palette, "PNG"), colors=colors), expected
    )
    rgb = encoded(palette.convert("RGB"), "PNG")
    np.testing.assert_array_equal(index_map(tmp_path / "auto", "a", rgb, colors=colors), expected)
    swapped = {"colors": (colors[0], colors[2], colors[1]), "label_codec": "rgb"}
    found = index_map(tmp_path / "rgb", "a", encoded(palette, "PNG"), **swapped)
    np.testing.assert_array_equal(found, expected // 2)


def test_grey_labels_saved_as_rgb_are_indices_and_colour_labels_without_colours_are_rejected(tmp_path: Path) -> None:
    grey = encoded(Image.open(io.BytesIO(mask(2))).convert("RGB"), "PNG")
    assert index_map(tmp_path, "a", grey).max() == 2
    put(tmp_path / "images" / "b.jpg", encoded(scene(2)))
    put(tmp_path / "labels" / "b.png", encoded(scene(2), "PNG"))
    result = run_here(plan_ingest(folder(tmp_path), dataset=str(tmp_path / "second")))
    assert result.reasons == {"colour label without colors": 1}


def test_a_mask_of_0_and_255_is_rejected_with_the_line_to_add(tmp_path: Path) -> None:
    pairs(tmp_path, {"a": 255})
    source = folder(tmp_path, classes=("ground", "horse"), void_values=())
    result = run_here(plan_ingest(source, dataset=str(tmp_path / "dataset")))
    (row,) = result.rejected_rows
    assert "a.png: value 255 on 20 pixels" in row.reason
    assert "add `raw_values = [0, 255]`" in row.reason


def test_a_jpeg_label_is_told_that_jpeg_changes_values(tmp_path: Path) -> None:
    pairs(tmp_path, {"a": 1})
    (tmp_path / "labels" / "a.png").unlink()
    label = np.zeros((HEIGHT, WIDTH), np.uint8)
    label[:, ::2] = 200
    put(tmp_path / "labels" / "a.jpg", encoded(Image.fromarray(label)))
    (row,) = run_here(plan_ingest(folder(tmp_path), dataset=str(tmp_path / "dataset"))).rejected_rows
    assert "save labels as PNG" in row.reason


def test_a_label_fitting_the_image_before_its_rotation_is_told_so(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    put(tmp_path / "images" / "a.jpg", encoded(scene(1), exif=exif))
    put(tmp_path / "labels" / "a.png", mask())
    (row,) = run_here(plan_ingest(folder(tmp_path), dataset=str(tmp_path / "dataset"))).rejected_rows
    assert row.reason.startswith("label size differs (a.png: 32x24, image 24x32 px; it fits the image before its EXIF")


def test_an_unlabelled_folder_has_no_label_set(tmp_path: Path) -> None:
    pairs(tmp_path, NAMES)
    plan = plan_ingest(FolderSource(images=str(tmp_path / "images")), dataset=str(tmp_path / "dataset"))
    result = run_here(plan)
    assert (result.good, result.labels, Dataset.open(plan.root).label_sets()) == (12, None, [])


def test_classes_of_images_are_stored_and_counted(tmp_path: Path) -> None:
    for folder_name in ("n01440764", "n01443537"):
        put(tmp_path / "data" / "train" / folder_name / "x.JPEG", encoded(scene(len(folder_name))))
    plan = plan_ingest(ImageNetSource(root=str(tmp_path / "data")), dataset=str(tmp_path / "dataset"))
    result = run_here(plan)
    assert result.class_images == {"tench": 1, "goldfish": 1}
    assert {key: row["class"] for key, row in rows(Dataset.open(plan.root)).items()} == {
        "train/n01440764/x": 0,
        "train/n01443537/x": 1,
    }
    assert Dataset.open(plan.root).info.label_space.background == 1000


def test_images_inside_tars_are_ingested(tmp_path: Path) -> None:
    pictures = {f"{number:03d}": encoded(scene(number)) for number in range(5)}
    members = {f"{key}.jpg": data for key, data in pictures.items()} | {f"{key}.cls": b"3" for key in pictures}
    write_tar(tmp_path / "data" / "train-0.tar", members)
    plan = plan_ingest(ImageNetSource(root=str(tmp_path / "data")), dataset=str(tmp_path / "dataset"), shard_rows=2)
    assert run_here(plan).good == 5
    found = rows(Dataset.open(plan.root))
    assert {key: row["image"] for key, row in found.items()} == {f"train/{key}": data for key, data in pictures.items()}


def test_planning_writes_nothing(tmp_path: Path) -> None:
    pairs(tmp_path, NAMES)
    plan = plan_ingest(folder(tmp_path), dataset=str(tmp_path / "deep" / "dataset"), shard_rows=5)
    assert plan.summary()["images"] == {"train": 12}
    assert plan.summary()["shards_to_do"] == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "labels"]


def test_a_target_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    pairs(tmp_path, NAMES)
    put(tmp_path / "file", b"x")
    with pytest.raises(ValueError, match=r"cannot be written .*choose another folder"):
        plan_ingest(folder(tmp_path), dataset=str(tmp_path / "file" / "dataset"))


def test_a_second_run_has_nothing_to_do_and_the_same_result(tmp_path: Path) -> None:
    pairs(tmp_path, NAMES)
    first = run_here(plan_ingest(folder(tmp_path), dataset=str(tmp_path / "dataset"), shard_rows=5))
    again = plan_ingest(folder(tmp_path), dataset=str(tmp_path / "dataset"), shard_rows=5)
    assert again.remaining() == ()
    second = run_here(again)
    assert (second.shards_done, second.class_pixels, second.rejected_rows) == (
        0,
        first.class_pixels,
        first.rejected_rows,
    )


@pytest.mark.parametrize("committed", ["nothing", "one shard", "images of a second shard", "everything but labels"])
def test_a_killed_ingest_continues_and_ends_in_equal_bytes(committed: str, tmp_path: Path) -> None:
    pairs(tmp_path, NAMES)
    put(tmp_path / "images" / "s03.jpg", b"broken")
    undisturbed = plan_ingest(folder(tmp_path), dataset=str(tmp_path / "whole"), shard_rows=4)
    expected = run_here(undisturbed)
    plan = plan_ingest(folder(tmp_path), dataset=str(tmp_path / "killed"), shard_rows=4)
    dataset, receipts = open_target(plan), work(plan, plan.shards)
    if committed != "nothing":
        dataset.images.commit([receipt.images for receipt in receipts[:1]])
        dataset.labels("human").commit([receipt.labels for receipt in receipts[:1] if receipt.labels])
    if committed == "images of a second shard":
        dataset.images.commit([receipts[1].images])
    if committed == "everything but labels":
        dataset.images.commit([receipt.images for receipt in receipts])
    continued = plan_ingest(folder(tmp_path), dataset=str(tmp_path / "killed"), shard_rows=4)
    assert len(continued.remaining()) == (3 if committed == "nothing" else 2)
    result = run_here(continued)
    assert (result.rejected_rows, result.class_pixels) == (expected.rejected_rows, expected.class_pixels)
    whole = Dataset.open(undisturbed.root)
    assert dataset.images.fingerprint() == whole.images.fingerprint()
    assert dataset.labels("human").fingerprint() == whole.labels("human").fingerprint()


def test_labels_are_never_committed_before_their_images(tmp_path: Path) -> None:
    pairs(tmp_path, NAMES)
    plan = plan_ingest(folder(tmp_path), dataset=str(tmp_path / "dataset"), shard_rows=1)
    dataset = open_target(plan)
    commit = PairedCommits(dataset, "human")
    commit._labels.max_receipts = 2  # labels are full long before images are
    for receipts in work(plan, plan.shards):
        commit.add(receipts)
        assert dataset.labels("human").committed() <= dataset.images.committed()
    assert dataset.labels("human").committed()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 5}, r"source.seed: now 5, there 0"),
        ({"shard_rows": 3}, r"source.shard_rows: now 3, there 256"),
        ({"labels": "other"}, r"source.labels: now \"other\""),
    ],
)
def test_another_plan_for_the_same_target_is_refused(change: dict[str, object], message: str, tmp_path: Path) -> None:
    pairs(tmp_path, NAMES)
    run_here(plan_ingest(folder(tmp_path), dataset=str(tmp_path / "dataset")))
    with pytest.raises(ValueError, match=rf"made from another plan is here \({message}.*choose another folder"):
        plan_ingest(folder(tmp_path), dataset=str(tmp_path / "dataset"), **change)  # type: ignore[arg-type]


@pytest.mark.parametrize("place", ["images/s01.jpg", "labels/s01.png", "images/new.jpg"])
def test_a_source_that_changed_since_is_refused(place: str, tmp_path: Path) -> None:
    pairs(tmp_path, NAMES)
    run_here(plan_ingest(folder(tmp_path), dataset=str(tmp_path / "dataset")))
    put(tmp_path / place, encoded(scene(77), "PNG"))
    with pytest.raises(ValueError, match=r"source\.listing"):
        plan_ingest(folder(tmp_path), dataset=str(tmp_path / "dataset"))


def test_a_file_that_vanishes_after_planning_is_a_row_with_a_reason(tmp_path: Path) -> None:
    pairs(tmp_path, NAMES)
    plan = plan_ingest(folder(tmp_path), dataset=str(tmp_path / "dataset"))
    (tmp_path / "images" / "s00.jpg").unlink()
    (tmp_path / "labels" / "s01.png").unlink()
    result = run_here(plan)
    assert {row.id: (row.table, row.reason) for row in result.rejected_rows} == {
        "s00": ("images", "unreadable file (it is gone)"),
        "s01": ("labels", "unreadable file (it is gone)"),
    }


def test_a_source_that_a_node_does_not_see_stops_the_job(tmp_path: Path) -> None:
    pairs(tmp_path, NAMES)
    plan = plan_ingest(folder(tmp_path), dataset=str(tmp_path / "dataset"))
    (tmp_path / "images").rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"none of its 12 images is there.*every node must see the source"):
        work(plan, plan.shards)


def test_a_failing_disk_stops_the_job_instead_of_rejecting_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs(tmp_path, NAMES)
    plan = plan_ingest(folder(tmp_path), dataset=str(tmp_path / "dataset"))

    def fail(uri: str) -> bytes:
        raise OSError(5, "Input/output error")

    open_target(plan)
    monkeypatch.setattr("pipelines.ingest_worker.read_image", lambda sample: fail(sample.image_uri))
    with pytest.raises(OSError, match="Input/output error"):
        work(plan, plan.shards)


def job(root: Path, **changes: object) -> IngestJob:
    settings: dict[str, object] = {
        "source": folder(root),
        "dataset": str(root / "dataset"),
        "shard_rows": 4,
        "tracking": TrackingSpec(enabled=False),
        "compute": ComputeSpec(actors=1),
    }
    return IngestJob.model_validate(settings | changes)


def test_a_dry_run_shows_the_plan_and_starts_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs(tmp_path, NAMES)
    shown = ingest_verb.run(job(tmp_path), dry_run=True)
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(shown))
    assert shown["plan"]["shards"] == {"train": 3}
    assert shown["plan"]["image_bytes"] == sum(path.stat().st_size for path in (tmp_path / "images").iterdir())
    assert not (tmp_path / "dataset").exists()


@pytest.mark.usefixtures("ray_local")
def test_the_job_on_ray_writes_what_the_worker_alone_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs(tmp_path, NAMES)
    put(tmp_path / "images" / os.fsdecode(b"caf\xe9.jpg"), encoded(scene(50)))
    put(tmp_path / "images" / "notes.txt", b"nothing to see")
    result = ingest_verb.run(job(tmp_path))
    assert (result["images_in"], result["good"], result["rejected"], result["labelled"]) == (14, 12, 2, 12)
    stored = json.loads((tmp_path / "dataset" / "runs" / "ingest-human" / "result.json").read_text())
    assert stored == json.loads(json.dumps(result))
    assert "no label file" in Path(write_report(str(tmp_path / "dataset" / "runs" / "ingest-human"))).read_text()
    here = plan_ingest(folder(tmp_path), dataset=str(tmp_path / "here"), shard_rows=4)
    run_here(here)
    found, expected = Dataset.open(str(tmp_path / "dataset")), Dataset.open(here.root)
    assert found.images.fingerprint() == expected.images.fingerprint()
    assert found.labels("human").fingerprint() == expected.labels("human").fingerprint()
    out = capsys.readouterr().out
    assert "14 images in = 12 good + 2 rejected" in out
    assert r"caf\xe9: no label file (expected caf\xe9.*)" in out
    again = ingest_verb.run(job(tmp_path))
    assert (again["shards_done"], again["rejected_rows"]) == (0, result["rejected_rows"])


@pytest.mark.usefixtures("ray_local")
def test_too_many_rejected_rows_fail_the_job_after_the_result_is_written(tmp_path: Path) -> None:
    pairs(tmp_path, NAMES)
    for number in range(3):
        put(tmp_path / "images" / f"s{number:02d}.jpg", b"broken")
    run_here(plan_ingest(folder(tmp_path), dataset=str(tmp_path / "dataset"), shard_rows=4))
    with pytest.raises(ValueError, match=r"3 of 12 images were rejected, more than max_rejected = 0.2 allows"):
        ingest_verb.run(job(tmp_path, max_rejected=0.2))
    assert Dataset.open(str(tmp_path / "dataset")).images.counts().rows == 12
    assert (tmp_path / "dataset" / "runs" / "ingest-human" / "result.json").exists()


@pytest.mark.real
def test_camvid_frames_keep_their_label_pixels(shared_data: Path, tmp_path: Path) -> None:
    plan = plan_ingest(CamVidSource(root=str(shared_data / "datasets" / "camvid-11")), dataset=str(tmp_path / "d"))
    assert len(plan.shards) == 2 + 1 + 1
    few = PlannedShard(plan.shards[0].key, plan.shards[0].samples[:6])
    (receipts,) = work(plan, [few])
    dataset = open_target(plan)
    dataset.images.commit([receipts.images])
    assert receipts.labels is not None
    dataset.labels("human").commit([receipts.labels])
    raw = [np.asarray(Image.open(str(sample.label_uri))) for sample in few.samples]
    result = count_dataset(plan, dataset, shards_done=1, seconds=1.0)
    assert (result.images_in, result.rejected) == (6, 0)
    space = plan.info.label_space
    for index, name in enumerate((*space.names, "(void)")):
        assert result.class_pixels[name] == sum(int((label == index).sum()) for label in raw)


@pytest.mark.real
def test_all_voc_masks_with_void_borders_are_good(shared_data: Path, tmp_path: Path) -> None:
    root = shared_data / "datasets" / "voc-6"
    source = FolderSource(images=str(root / "images"), labels=str(root / "labels"), classes=str(root / "classes.txt"))
    result = run_here(plan_ingest(source, dataset=str(tmp_path / "dataset")))
    assert (result.good, result.rejected) == (6, 0)
    assert result.class_pixels["(void)"] > 0
    assert isinstance(source.label_space(), LabelSpace)
