"""The real Cityscapes and VOC networks as teachers: they see what they saw when collected; their labels are small."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.real_teachers import CITYSCAPES, VOC, camvid_of_cityscapes, publish_espnet, publish_graph
from pipelines.autolabel import run_autolabel
from pipelines.autolabel_plan import plan_autolabel, plan_derived
from pipelines.codecs import decode_label
from pipelines.images import decode_image
from pipelines.keep import KeepSpec
from pipelines.labels import LabelSpace
from pipelines.schema import ShardKey
from pipelines.shards import ComputeSpec
from pipelines.tables import Dataset, DatasetInfo, write_shard
from seg_models.checkpoints import load_model
from seg_models.metrics import ConfusionMatrix
from seg_models.predictor import Predictor, PredictorSpec
from tests.inline_shards import inline_shards
from tests.tiny_data import image_rows

pytestmark = pytest.mark.real

EDGETPU = "deeplab_edgetpu_slim_cityscapes19_513"
ESPNET = "espnetv2_s_2.0_city_1024x512"
HALF_ESPNET = "espnetv2_s_1.0_city_1024x512"
SIZES = {EDGETPU: (513, 513), ESPNET: (512, 1024), HALF_ESPNET: (512, 1024)}


@pytest.fixture(scope="module")
def teacher(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Publishes a Cityscapes teacher; its folder."""

    def publish(name: str) -> str:
        folder = tmp_path_factory.mktemp("teacher") / name
        make = publish_espnet if name.startswith("espnet") else publish_graph
        return make(folder, name=name, shared_data=shared_data, space=CITYSCAPES)

    return publish


def camvid_frames(shared_data: Path) -> Iterator[tuple[Any, Any]]:
    """Image and human label of the test frames in their order; 255 is void."""
    folder = shared_data / "datasets" / "camvid-11" / "test"
    for path in sorted((folder / "images").iterdir()):
        label = np.asarray(Image.open(folder / "labels" / f"{path.stem}.png"))
        yield decode_image(path.read_bytes()), np.where(label == 11, 255, label)


def camvid_space(shared_data: Path) -> LabelSpace:
    names = (shared_data / "datasets" / "camvid-11" / "classes.txt").read_text().split()
    return LabelSpace(names=tuple(names))


def miou_over_truth(pairs: Iterable[tuple[Any, Any]], predict: Callable[[Any], Any], *, num_classes: int) -> float:
    """Mean IoU over the classes that people drew."""
    matrix = ConfusionMatrix(num_classes, 255)
    for image, truth in pairs:
        matrix.update(predict(image), truth)
    drawn = matrix.matrix.sum(1) > 0
    return float(matrix.iou()[drawn].mean())


@pytest.mark.parametrize(("name", "frames", "expected"), [(EDGETPU, 10, 0.514), (ESPNET, 20, 0.483)])
def test_a_cityscapes_teacher_sees_camvid_as_it_did_when_collected(
    teacher: Callable[[str], str], shared_data: Path, name: str, frames: int, expected: float
) -> None:
    torch.set_num_threads(1)
    space = camvid_space(shared_data)
    predictor = Predictor(load_model(teacher(name)).model, spec=PredictorSpec(size=SIZES[name]))
    table = camvid_of_cityscapes(space)
    pairs = (pair for pair, _ in zip(camvid_frames(shared_data), range(frames), strict=False))
    found = miou_over_truth(pairs, lambda image: table[predictor.predict(image).label], num_classes=11)
    assert found == pytest.approx(expected, abs=0.03)


def test_a_voc_teacher_sees_six_images_as_it_did_when_collected(shared_data: Path, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    checkpoint = publish_graph(tmp_path / "voc", name="deeplabv3_mnv2_voc21_513", shared_data=shared_data, space=VOC)
    predictor = Predictor(load_model(checkpoint).model, spec=PredictorSpec(size=(513, 513)))
    folder = shared_data / "datasets" / "voc-6"
    matrix = ConfusionMatrix(21, 255)
    for path in sorted((folder / "images").iterdir()):
        truth = np.asarray(Image.open(folder / "labels" / f"{path.stem}.png"))
        matrix.update(predictor.predict(decode_image(path.read_bytes())).label, truth)
    assert matrix.miou() == pytest.approx(0.636, abs=0.03)


def test_the_ranges_of_a_quantised_graph_are_applied(shared_data: Path, tmp_path: Path) -> None:
    """The ADE20K graph has its ReLU6 in them: with them its scores stay in the range that its last one names."""
    space = LabelSpace(names=tuple(f"class {number}" for number in range(32)))
    checkpoint = publish_graph(
        tmp_path / "ade", name="deeplabv3plus_mnv2_ade32_512", shared_data=shared_data, space=space
    )
    path = min((shared_data / "datasets" / "ade20k-3").rglob("*.jpg"))
    image = Image.open(path).convert("RGB").resize((512, 512))
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
    with torch.inference_mode():
        logits = load_model(checkpoint).model(pixels).logits
    assert logits.shape == (1, 32, 512, 512)
    assert -29.7 < float(logits.min()) < float(logits.max()) < 7.1
    assert len(logits.argmax(1).unique()) >= 4


def enlarged_dataset(root: Path, shared_data: Path, *, frames: int) -> Dataset:
    """CamVid frames spread over the test split, enlarged to 1920 x 1080, in two shards."""
    dataset = Dataset.create(str(root), DatasetInfo(name="camvid", label_space=CITYSCAPES, splits=("train",)))
    paths = sorted((shared_data / "datasets" / "camvid-11" / "test" / "images").iterdir())
    chosen = paths[:: len(paths) // frames][:frames]
    for shard in range(2):
        rows = [_enlarged(path) for path in chosen[shard::2]]
        dataset.images.commit([write_shard(dataset.images.uri, ShardKey("train", shard), image_rows(rows))])
    return dataset


def _enlarged(path: Path) -> dict[str, Any]:
    buffer = io.BytesIO()
    Image.open(path).convert("RGB").resize((1920, 1080), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=92)
    return {"id": path.stem, "image": buffer.getvalue(), "size": (1080, 1920), "bad_image": False}


@pytest.mark.parametrize(
    ("name", "scales", "frames"),
    [(EDGETPU, (1.0,), 10), (ESPNET, (1.0,), 10), (HALF_ESPNET, (1.0,), 10), (ESPNET, (0.5, 1.0), 3)],
    ids=["edgetpu", "espnet", "half", "scales"],
)
def test_labels_of_full_hd_frames_are_small_and_another_threshold_needs_no_teacher(
    teacher: Callable[[str], str],
    shared_data: Path,
    tmp_path: Path,
    name: str,
    scales: tuple[float, ...],
    frames: int,
    record_property: Callable[[str, object], None],
) -> None:
    dataset = enlarged_dataset(tmp_path / "data", shared_data, frames=frames)
    checkpoint = teacher(name)
    predictor = PredictorSpec(size=SIZES[name], scales=scales, flip=len(scales) > 1)
    with inline_shards():
        work = plan_autolabel(checkpoint, dataset=dataset.root, labels="teacher", predictor=predictor)
        result = run_autolabel(work, compute=ComputeSpec())
    assert result.labelled == frames
    rows = [row for file in dataset.labels("teacher-raw").files() for row in _rows(dataset, "teacher-raw", file.key)]
    label, both = ([len(row["label"]) + extra * len(row["confidence"]) for row in rows] for extra in (0, 1))
    for key, sizes in (("label", label), ("label and confidence", both)):
        print(f"{name} {scales}: {key} {np.mean(sizes) / 1000:.1f} kB an image, at most {max(sizes) / 1000:.1f}")
        record_property(key, float(np.mean(sizes)))
    assert np.mean(label) <= 30_000
    assert np.mean(both) <= 90_000
    assert decode_label(rows[0]["label"]).shape == (1080, 1920)
    (Path(checkpoint) / "model.safetensors").unlink()
    with inline_shards():
        strict = plan_derived("teacher", dataset=dataset.root, labels="strict", keep=KeepSpec(threshold=0.9))
        again = run_autolabel(strict, compute=ComputeSpec())
    assert 0 < again.kept < result.kept < 1
    assert again.teacher["shards_labelled"] == 0


def _rows(dataset: Dataset, labels: str, key: ShardKey) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = dataset.labels(labels).read(key).to_pylist()
    return rows
