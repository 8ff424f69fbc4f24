"""Prediction over folders and datasets, in every form."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jobs import predict
from jobs.cli import run as command
from jobs.specs import PredictJob, TrackingSpec
from pipelines import storage
from pipelines.codecs import decode_label
from pipelines.confidence import decode_confidence
from pipelines.label_files import file_name, read_label_image
from pipelines.labels import LabelSpace
from pipelines.predict import PredictResult, plan_predict, run_predict
from pipelines.published import open_checkpoint
from pipelines.shards import ComputeSpec, ShardError
from pipelines.tables import Table
from seg_models.predictor import PredictorSpec
from tests.inline_shards import inline_shards
from tests.oracle_model import OracleSpec, publish
from tests.s3_server import s3_bucket
from tests.tiny_data import SPACE, scene, write_dataset

__all__ = ["s3_bucket"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return publish(tmp_path_factory.mktemp("model"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three good images in sub-folders, an empty file, a text file and a torn PNG."""
    root = tmp_path / "images"
    for number, name in enumerate(["a.png", "deep/b.png", "deep/er/c.png"]):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(drawn(number)["image"])
    (root / "empty.jpg").write_bytes(b"")
    (root / "notes.txt").write_text("no image at all, just words")
    (root / "torn.png").write_bytes(drawn(9)["image"][:200])
    return root


def drawn(number: int) -> dict[str, Any]:
    return scene(number, space=SPACE, size=(36, 44))


def go(model: str, images: Path | str, output: Path, **settings: Any) -> PredictResult:
    with inline_shards():
        work = plan_predict(model, images=str(images), output=str(output), **settings)
        return run_predict(work, compute=ComputeSpec())


def test_index_pngs_are_named_by_the_id_and_keep_the_sub_folders(model: str, folder: Path, tmp_path: Path) -> None:
    result = go(model, folder, tmp_path / "out")
    written = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.png"))
    assert written == ["labels/a.png", "labels/deep/b.png", "labels/deep/er/c.png"]
    for number, name in enumerate(written):
        label = read_label_image((tmp_path / "out" / name).read_bytes())
        assert np.array_equal(label, drawn(number)["label"])
    red = sum(int((drawn(number)["label"] == 1).sum()) for number in range(3))
    assert result.class_pixels["red"] == red


def test_bad_images_are_listed_with_a_reason_and_stop_nothing(model: str, folder: Path, tmp_path: Path) -> None:
    result = go(model, folder, tmp_path / "out")
    assert (result.images_in, result.predicted) == (6, 3)
    assert set(result.failures) == {"empty", "notes", "torn"}
    assert result.failures["empty"] == "empty file"
    assert "not an image" in result.failures["notes"]
    assert all(result.failures.values())


def test_overlays_lay_the_class_colours_over_the_image(model: str, folder: Path, tmp_path: Path) -> None:
    go(model, folder, tmp_path / "out", format="overlay")
    shown = np.asarray(Image.open(tmp_path / "out" / "overlays" / "a.png")).astype(float)
    image = np.asarray(Image.open(folder / "a.png")).astype(float)
    colors = SPACE.colorize(drawn(0)["label"]).astype(float)
    assert np.abs(shown - (0.45 * image + 0.55 * colors)).max() <= 1


def test_a_table_holds_labels_confidence_and_reasons_in_the_order_of_the_listing(
    model: str, folder: Path, tmp_path: Path
) -> None:
    go(model, folder, tmp_path / "out", format="table")
    table = Table.open(str(tmp_path / "out" / "table"))
    rows = [row for file in table.files() for row in table.read(file.key).to_pylist()]
    assert [row["id"] for row in rows] == ["a", "deep/b", "deep/er/c", "empty", "notes", "torn"]
    assert np.array_equal(decode_label(rows[1]["label"]), drawn(1)["label"])
    assert decode_confidence(rows[1]["confidence"]).shape == (36, 44)
    assert rows[3]["reason"] == "empty file"
    assert table.label_space == SPACE
    assert (table.counts().rows, table.counts().rejected) == (6, 3)


def test_a_dataset_is_predicted_shard_by_shard_and_its_rejected_rows_are_listed(model: str, tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data", shard_sizes=(3, 2), bad_images=[1])
    result = go(model, data.root, tmp_path / "out", format="table", split="train")
    table = Table.open(str(tmp_path / "out" / "table"))
    assert table.committed() == data.images.committed()
    assert result.failures == {"scene-0001": "image was rejected: planted"}
    rows = table.read(max(table.committed())).to_pylist()
    assert [row["id"] for row in rows] == ["scene-0003", "scene-0004"]
    assert np.array_equal(decode_label(rows[0]["label"]), drawn(3)["label"])


def test_running_again_keeps_what_is_there_and_tries_failed_images_again(
    model: str, folder: Path, tmp_path: Path
) -> None:
    go(model, folder, tmp_path / "out")
    kept = tmp_path / "out" / "labels" / "a.png"
    before = kept.stat().st_mtime_ns
    (folder / "torn.png").write_bytes(drawn(9)["image"])
    (tmp_path / "out" / "labels" / "deep" / "b.png").unlink()
    result = go(model, folder, tmp_path / "out")
    assert (result.predicted, result.existing) == (2, 2)
    assert set(result.failures) == {"empty", "notes"}
    assert kept.stat().st_mtime_ns == before


def test_running_again_over_a_table_predicts_nothing_twice_and_still_tells_what_failed(
    model: str, folder: Path, tmp_path: Path
) -> None:
    first = go(model, folder, tmp_path / "out", format="table")
    again = go(model, folder, tmp_path / "out", format="table")
    assert (again.predicted, again.existing) == (0, 3)
    assert again.failures == first.failures
    (folder / "new.png").write_bytes(drawn(5)["image"])
    with pytest.raises(ValueError, match=r"other settings are here \(images"):
        go(model, folder, tmp_path / "out", format="table")


def test_a_limit_of_memory_stops_the_job_where_it_is_too_small_and_changes_no_label_where_it_is_not(
    model: str, folder: Path, tmp_path: Path
) -> None:
    small, enough = (PredictorSpec(window=(16, 16), memory_gb=gb) for gb in (0.01, 0.5))
    with pytest.raises(ShardError, match=r"predictor.memory_gb = 0.01 is too small .* the smallest that works is 0"):
        go(model, folder, tmp_path / "small", predictor=small)
    go(model, folder, tmp_path / "out", predictor=enough)
    label = read_label_image((tmp_path / "out" / "labels" / "a.png").read_bytes())
    assert np.array_equal(label, drawn(0)["label"])


def test_predictions_of_another_model_or_other_settings_are_never_mixed(
    model: str, folder: Path, tmp_path: Path
) -> None:
    go(model, folder, tmp_path / "out")
    with pytest.raises(ValueError, match=r"predictor\.flip: now true, there false.*choose another output"):
        go(model, folder, tmp_path / "out", predictor=PredictorSpec(flip=True))
    with pytest.raises(ValueError, match="format"):
        go(model, folder, tmp_path / "out", format="overlay")


@pytest.mark.parametrize("format", ["png", "overlay", "table"])
def test_predictions_of_another_folder_are_never_taken_for_this_ones(
    model: str, folder: Path, tmp_path: Path, format: str
) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.png").write_bytes(drawn(5)["image"])
    go(model, folder, tmp_path / "out", format=format)
    message = (
        rf"output: {tmp_path}/out holds predictions of {folder}, images is {tmp_path}/other; choose another output"
    )
    with pytest.raises(ValueError, match=message):
        go(model, tmp_path / "other", tmp_path / "out", format=format)


def test_predictions_of_a_dataset_made_anew_at_its_place_are_refused(model: str, tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data", shard_sizes=(2,))
    go(model, data.root, tmp_path / "out")
    shutil.rmtree(data.root)
    write_dataset(tmp_path / "data", shard_sizes=(3,))
    with pytest.raises(ValueError, match=r"other settings are here \(images"):
        go(model, data.root, tmp_path / "out")


def test_an_image_that_was_replaced_is_predicted_anew_and_a_table_of_it_refused(
    model: str, folder: Path, tmp_path: Path
) -> None:
    for format in ("png", "table"):
        go(model, folder, tmp_path / format, format=format)
    before = (folder / "a.png").stat()
    (folder / "a.png").write_bytes(drawn(7)["image"])
    os.utime(folder / "a.png", ns=(before.st_atime_ns, before.st_mtime_ns + 10**9))
    result = go(model, folder, tmp_path / "png")
    assert (result.predicted, result.existing) == (1, 2)
    label = read_label_image((tmp_path / "png" / "labels" / "a.png").read_bytes())
    assert np.array_equal(label, drawn(7)["label"])
    assert go(model, folder, tmp_path / "png").predicted == 0
    with pytest.raises(ValueError, match=r"other settings are here \(images"):
        go(model, folder, tmp_path / "table", format="table")


def test_credentials_that_expire_stop_the_job_and_reject_no_image(
    model: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = storage.read_bytes

    def read(uri: str) -> bytes:
        if uri.endswith("b.png"):
            raise storage.StorageError("the token has expired")
        return real(uri)

    monkeypatch.setattr(storage, "read_bytes", read)
    with pytest.raises(ShardError, match="the token has expired"):
        go(model, folder, tmp_path / "out")


def test_more_than_255_classes_are_written_as_16_bit_png(folder: Path, tmp_path: Path) -> None:
    space = LabelSpace(names=tuple(f"class {index}" for index in range(300)))
    checkpoint = publish(tmp_path / "model", spec=OracleSpec(answers=(0, 280, 299)), space=space)
    go(checkpoint, folder, tmp_path / "out")
    label = read_label_image((tmp_path / "out" / "labels" / "a.png").read_bytes())
    assert np.array_equal(label, np.array([0, 280, 299])[drawn(0)["label"]])


def test_images_of_one_stem_do_not_overwrite_each_other(model: str, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for number, name in enumerate(["x.png", "x.bmp"]):
        (tmp_path / "images" / name).write_bytes(drawn(number)["image"])
    result = go(model, tmp_path / "images", tmp_path / "out")
    assert result.predicted == 2
    assert {path.name for path in (tmp_path / "out" / "labels").iterdir()} == {"x.bmp.png", "x.png.png"}


@pytest.mark.parametrize(
    ("image_id", "name"),
    [("a/b", "a/b.png"), ("../../etc/passwd", "etc/passwd.png"), ("/srv/x", "srv/x.png"), ("..", "_.png")],
)
def test_an_id_never_leads_out_of_the_output(image_id: str, name: str) -> None:
    assert file_name(image_id) == name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": "imagse"}, r"no such folder \(did you mean 'images'\?\)"),
        ({"split": "train"}, "split: takes no effect"),
        ({"images": "bare"}, "no files in"),
        ({"checkpoint": "images"}, "checkpoint: .*model.json is missing"),
    ],
)
def test_what_does_not_fit_is_named_before_work_starts(
    model: str, folder: Path, tmp_path: Path, changes: dict[str, str], message: str
) -> None:
    (tmp_path / "bare").mkdir()
    images = str(tmp_path / changes.get("images", "images"))
    checkpoint = str(tmp_path / changes["checkpoint"]) if "checkpoint" in changes else model
    with pytest.raises(ValueError, match=message):
        plan_predict(checkpoint, images=images, output=str(tmp_path / "out"), split=changes.get("split"))


def test_the_folder_of_a_training_run_stands_for_the_model_in_it(folder: Path, tmp_path: Path) -> None:
    publish(tmp_path / "run" / "model")
    assert go(str(tmp_path / "run"), folder, tmp_path / "out").predicted == 3


@pytest.mark.cluster
def test_a_checkpoint_in_an_object_store_is_copied_alone_and_a_wrong_address_copies_nothing(
    s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEGRAY_CACHE", str(tmp_path / "cache"))
    storage.upload_dir(Path(publish(tmp_path / "local")), f"{s3_bucket}/run/model")
    storage.write_bytes(f"{s3_bucket}/run/model/large/pictures", b"x")
    with pytest.raises(ValueError, match=r"checkpoint: s3://.*model.json: no such file"):
        open_checkpoint(s3_bucket)
    assert not (tmp_path / "cache").exists()
    assert open_checkpoint(f"{s3_bucket}/run").uri == f"{s3_bucket}/run/model"
    copied = [path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert sorted(copied) == ["model.json", "model.safetensors"]


def test_the_job_runs_on_ray_and_lists_failures_in_its_result(
    model: str, folder: Path, tmp_path: Path, ray_local: None, capsys: pytest.CaptureFixture[str]
) -> None:
    job = PredictJob(
        checkpoint=model,
        images=str(folder),
        output=str(tmp_path / "out"),
        tracking=TrackingSpec(enabled=False),
        report=False,
    )
    assert predict.run(job, dry_run=True)["plan"]["images"] == 6
    assert not (tmp_path / "out").exists()
    capsys.readouterr()
    table = predict.run(job)
    stored = json.loads((tmp_path / "out" / "result.json").read_text())
    assert stored == json.loads(json.dumps(table))
    assert (stored["images_in"], stored["predicted"], stored["rejected"], stored["failed"]) == (6, 3, 3, False)
    assert [item["id"] for item in stored["rejected_rows"]] == ["empty", "notes", "torn"]
    assert "empty: empty file" in capsys.readouterr().out
    for picture in stored["pictures"]:
        assert (tmp_path / "out" / "pictures" / picture["prediction"]).is_file()


def test_the_command_fails_only_where_no_image_could_be_predicted(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import contextlib

    monkeypatch.setattr(predict, "ray_session", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(predict, "preflight", lambda _: None)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "empty.png").write_bytes(b"")
    flags = ["--checkpoint", model, "--images", str(tmp_path / "images"), "--output", str(tmp_path / "out")]
    flags += ["--no-report", "--tracking.uri", f"sqlite:///{tmp_path}/mlflow.db"]
    with inline_shards():
        assert command(["predict", *flags]) == 1
        (tmp_path / "images" / "good.png").write_bytes(drawn(0)["image"])
        assert command(["predict", *flags]) == 0
    assert "empty: empty file" in capsys.readouterr().out

    from mlflow import MlflowClient

    note = json.loads((tmp_path / "out" / "mlflow.json").read_text())
    inputs = MlflowClient(note["tracking_uri"]).get_run(note["run_id"]).inputs.dataset_inputs
    assert len({found.dataset.digest for found in inputs}) == 2  # other files, another fingerprint
    assert json.loads(inputs[0].dataset.source)["uri"] == str(tmp_path / "images")
