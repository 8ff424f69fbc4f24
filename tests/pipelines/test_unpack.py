"""A label set as files: PNG, the released layout, JPEG XL."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jobs import unpack
from jobs.specs import TrackingSpec, UnpackJob
from pipelines import storage
from pipelines.codecs import LABEL_CODECS, encode_deciles, encode_label, imagecodecs
from pipelines.label_files import read_label_image
from pipelines.labels import LabelSpace, with_background
from pipelines.pssl_import import import_npz
from pipelines.released import label_to_mask
from pipelines.schema import IMAGES, LABELS, ShardKey, shard_rows
from pipelines.shard_counts import RowError
from pipelines.shards import ComputeSpec, ShardError
from pipelines.tables import Dataset, DatasetInfo, write_shard
from pipelines.unpack import Unpacked, plan_unpack, run_unpack
from tests.inline_shards import inline_shards
from tests.tiny_data import SPACE, scene, write_dataset

SYNSETS = ("n01440764", "n01443537", "n01484850")
WITH_DECILES = {**LABEL_CODECS, "deciles": "nibble-zstd"}


def go(dataset: Dataset, output: Path, **settings: Any) -> Unpacked:
    with inline_shards():
        work = plan_unpack(dataset.root, **{"labels": "human", "output": str(output), **settings})
        return run_unpack(work, compute=ComputeSpec())


def files(folder: Path, pattern: str) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob(pattern))


def pseudo_label(number: int, *, class_index: int, space: LabelSpace) -> Any:
    """A box of the class, a strip of void, background elsewhere."""
    label = np.full((20, 30 + number), space.background, space.dtype)
    label[2 : 8 + number, 3:9] = class_index
    label[15, :7] = space.void
    return label


def imagenet(root: Path, ids: list[str], *, split_of: Any = lambda _: "train") -> Dataset:
    """A dataset as the imagenet source makes it, with a label set `pssl`; the last row has no label."""
    (root / "synsets.txt").write_text("\n".join(SYNSETS))
    space = with_background(SYNSETS)
    settings = {"settings": {"kind": "imagenet", "synsets": str(root / "synsets.txt")}}
    info = DatasetInfo(name="in", label_space=space, splits=("train", "val"), source=settings)
    dataset = Dataset.create(str(root / "data"), info)
    labels = dataset.create_labels("pssl", label_space=space, plan={}, codecs=WITH_DECILES)
    for number, image_id in enumerate(ids):
        key, last = ShardKey(split_of(number), number), number == len(ids) - 1
        label = pseudo_label(number, class_index=number % 3, space=space)
        images: dict[str, list[Any]] = {
            "id": [image_id],
            "image": [b"x"],
            "height": [20],
            "width": [30 + number],
            "class": [number % 3],
        }
        dataset.images.commit([write_shard(dataset.images.uri, key, shard_rows(images, columns_of=IMAGES))])
        row: dict[str, list[Any]] = {
            "id": [image_id],
            "label": [encode_label(label)],
            "deciles": [encode_deciles(deciles(label))],
        }
        row = {"id": [image_id], "reason": ["no signal"]} if last else row
        labels.commit([write_shard(labels.uri, key, shard_rows(row, columns_of=LABELS))])
    return dataset


def deciles(label: Any) -> Any:
    return (np.arange(label.size) % 10).astype(np.uint8).reshape(label.shape)


IDS = [f"train/{SYNSETS[number % 3]}/{SYNSETS[number % 3]}_{number}" for number in range(7)]


def test_pngs_are_named_by_the_id_and_hold_the_indices_and_their_colours(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "data", shard_sizes=(2, 2), bad_labels=[3])
    result = go(dataset, tmp_path / "out")
    assert files(tmp_path / "out" / "labels", "*") == ["scene-0000.png", "scene-0001.png", "scene-0002.png"]
    for number in range(3):
        data = (tmp_path / "out" / "labels" / f"scene-000{number}.png").read_bytes()
        drawn = scene(number, space=SPACE, size=(36, 44))["label"]
        assert np.array_equal(read_label_image(data), drawn)
    with Image.open(tmp_path / "out" / "labels" / "scene-0000.png") as image:
        drawn = scene(0, space=SPACE, size=(36, 44))["label"]
        assert np.array_equal(np.asarray(image.convert("RGB")), SPACE.colorize(drawn))
    assert (result.images_in, result.written, result.failures) == (4, 3, {"scene-0003": "planted"})
    assert json.loads((tmp_path / "out" / "classes.json").read_text())["names"] == list(SPACE.names)


def test_running_again_writes_only_what_is_missing(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "data", shard_sizes=(2, 2))
    go(dataset, tmp_path / "out")
    (tmp_path / "out" / "labels" / "scene-0002.png").unlink()
    kept = (tmp_path / "out" / "labels" / "scene-0001.png").stat().st_mtime_ns
    result = go(dataset, tmp_path / "out")
    assert (result.written, result.existing) == (1, 3)
    assert (tmp_path / "out" / "labels" / "scene-0001.png").stat().st_mtime_ns == kept


def test_a_run_that_ends_half_way_leaves_whole_files_and_is_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, whole = imagenet(tmp_path, IDS), tmp_path / "whole"
    go(dataset, whole, labels="pssl", format="npz")
    write, calls = storage.write_bytes, []

    def full_disk(uri: str, data: bytes) -> None:
        calls.append(uri)
        if len(calls) == 6:
            raise OSError("no space left on device")
        write(uri, data)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "write_bytes", full_disk)
        with pytest.raises(ShardError, match="no space left"):
            go(dataset, tmp_path / "out", labels="pssl", format="npz")
    assert len(files(tmp_path / "out", "*.npz")) == 3
    assert not (tmp_path / "out" / "train.txt").exists()
    result = go(dataset, tmp_path / "out", labels="pssl", format="npz")
    assert (result.written, result.existing) == (3, 3)
    for name in (*files(whole, "*.npz"), "train.txt"):
        assert (tmp_path / "out" / name).read_bytes() == (whole / name).read_bytes()


def test_an_output_with_other_files_is_refused(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "data", shard_sizes=(2,))
    other = write_dataset(tmp_path / "other", shard_sizes=(2,))
    go(dataset, tmp_path / "out")
    with pytest.raises(ValueError, match=r"holds files made otherwise \(source: now .*choose another output"):
        go(other, tmp_path / "out")
    with pytest.raises(ValueError, match=r"split: now \"train\", there null"):
        go(dataset, tmp_path / "out", split="train")
    (tmp_path / "mine" / "labels").mkdir(parents=True)
    with pytest.raises(ValueError, match="holds files that unpack did not write"):
        go(dataset, tmp_path / "mine")


def test_a_label_set_made_anew_under_its_name_is_another_one(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "data", shard_sizes=(2,))
    go(dataset, tmp_path / "out")
    storage.delete(dataset.root)
    again = write_dataset(tmp_path / "data", shard_sizes=(2,))
    with pytest.raises(ValueError, match=r"\(table: now"):
        go(again, tmp_path / "out")


def test_the_released_layout_is_read_back_to_equal_labels(tmp_path: Path) -> None:
    dataset, out = imagenet(tmp_path, IDS), tmp_path / "out"
    result = go(dataset, out, labels="pssl", format="npz")
    assert (result.written, result.failures) == (6, {IDS[6]: "no signal"})
    lines = (out / "train.txt").read_text().splitlines()
    assert lines == files(out, "*.npz") == sorted(f"{image_id}.JPEG_eiseg.npz" for image_id in IDS[:6])
    assert (out / "imagenet_lsvrc_2015_synsets.txt").read_text().split() == list(SYNSETS)
    with np.load(out / lines[0]) as arrays:
        assert sorted(np.unique(arrays["arr_0"]).tolist()) == [-1, 0, 1]
        assert arrays["arr_0"].shape == (20, 30)
    with inline_shards():
        import_npz(dataset.root, folder=str(out), labels="back", max_rejected=1.0)
    for key in sorted(dataset.labels("pssl").committed()):
        (before,), (after,) = (dataset.labels(name).read(key).to_pylist() for name in ("pssl", "back"))
        assert (after["id"], after["label"]) == (before["id"], before["label"])


def test_images_without_a_synset_in_their_name_come_back_too(tmp_path: Path) -> None:
    dataset = imagenet(tmp_path, ["cat", "deep/dog", "last"])
    go(dataset, tmp_path / "out", labels="pssl", format="npz")
    with inline_shards():
        result = import_npz(dataset.root, folder=str(tmp_path / "out"), labels="back", max_rejected=1.0)
    assert result.labelled == 2


def test_two_images_of_one_released_name_are_named(tmp_path: Path) -> None:
    ids = [f"{split}/{SYNSETS[0]}/img" for split in ("train", "", "", "val")]
    dataset = imagenet(tmp_path, [ids[0], "x", "y", ids[3], "last"])
    with pytest.raises(ValueError, match=rf"img.JPEG_eiseg.npz: images '{ids[0]}' and '{ids[3]}' have this name both"):
        go(dataset, tmp_path / "out", labels="pssl", format="npz")


def test_a_label_with_a_second_class_has_no_mask() -> None:
    space = with_background(SYNSETS)
    label = np.array([[0, 3], [space.void, 3]], np.uint8)
    assert label_to_mask(label, class_index=0, space=space).tolist() == [[1, 0], [-1, 0]]
    with pytest.raises(RowError, match="holds class 2 beside the image's class 0"):
        label_to_mask(np.array([[0, 2]], np.uint8), class_index=0, space=space)


def test_jpeg_xl_holds_labels_and_deciles_losslessly(tmp_path: Path) -> None:
    dataset = imagenet(tmp_path, IDS[:3])
    space = dataset.labels("pssl").label_space
    go(dataset, tmp_path / "labels", labels="pssl", format="jxl")
    go(dataset, tmp_path / "deciles", labels="pssl", format="jxl", content="deciles")
    go(dataset, tmp_path / "png", labels="pssl", content="deciles")
    for number in range(2):
        label = pseudo_label(number, class_index=number, space=space)
        name = f"{IDS[number]}.jxl"
        decode = imagecodecs().jpegxl_decode
        assert np.array_equal(decode((tmp_path / "labels" / "labels" / name).read_bytes()), label)
        assert np.array_equal(decode((tmp_path / "deciles" / "deciles" / name).read_bytes()), deciles(label))
        shown = (tmp_path / "png" / "deciles" / f"{IDS[number]}.png").read_bytes()
        assert np.array_equal(read_label_image(shown), deciles(label))


def test_what_does_not_fit_is_named_before_work_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = write_dataset(tmp_path / "data", shard_sizes=(2,))
    with pytest.raises(ValueError, match=r"format: npz names files by synset.*found 'none'"):
        go(dataset, tmp_path / "out", format="npz")
    with pytest.raises(ValueError, match="keeps no deciles; make it with keep_deciles = true"):
        go(dataset, tmp_path / "out", content="deciles")
    with pytest.raises(ValueError, match=r"no label set 'humna' \(did you mean 'human'\?\)"):
        go(dataset, tmp_path / "out", labels="humna")
    with pytest.raises(ValueError, match=r"no split 'trian' \(did you mean 'train'\?\)"):
        go(dataset, tmp_path / "out", split="trian")
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    with pytest.raises(ValueError, match="install the extra `archive`"):
        go(dataset, tmp_path / "out", format="jxl")
    assert not (tmp_path / "out").exists()


def test_the_job_runs_on_ray_and_its_dry_run_writes_nothing(
    tmp_path: Path, ray_local: None, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = write_dataset(tmp_path / "data", shard_sizes=(2, 2), bad_labels=[3])
    job = UnpackJob(dataset=dataset.root, output=str(tmp_path / "out"), tracking=TrackingSpec(enabled=False))
    plan = unpack.run(job, dry_run=True)["plan"]
    assert (plan["images"], plan["shards"], plan["codec"]) == (4, 2, "contour-zstd")
    assert not (tmp_path / "out").exists()
    table = unpack.run(job)
    assert json.loads((tmp_path / "out" / "result.json").read_text()) == json.loads(json.dumps(table))
    assert (table["written"], table["rejected"], table["failed"]) == (3, 1, False)
    assert "3 of 4 images unpacked" in capsys.readouterr().out
