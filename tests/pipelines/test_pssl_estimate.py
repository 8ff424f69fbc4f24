"""The estimate of a PSSL job: real images, the job's own classifiers, plain arithmetic, nothing left behind."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from pipelines import schema
from pipelines.codecs import encode_label
from pipelines.labels import LabelSpace
from pipelines.pssl_estimate import PsslEstimate, estimate_pssl
from pipelines.pssl_plan import pssl_label_space
from pipelines.pssl_sample import take_samples
from pipelines.pssl_spec import EnsembleSpec, PsslSpec
from pipelines.pssl_timing import ClassifierTime
from pipelines.schema import ShardKey
from pipelines.shards import ComputeSpec
from pipelines.tables import Dataset, DatasetInfo, write_shard
from seg_models.explain import CaptumSpec, IntegratedGradientsSpec, RandomSpec, SmoothGradSpec
from seg_models.numerics import Numerics
from seg_models.weights.classifiers import ClassifierSpec
from seg_models.weights.files import file_sha256

SPACE = LabelSpace(names=("a", "b"))
QUICK = PsslSpec(explainer=SmoothGradSpec(samples=6), numerics=Numerics(chunk=2))


def row(number: int, size: tuple[int, int] = (36, 48)) -> dict[str, Any]:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (*size, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    usual = {"id": f"i{number}", "image": buffer.getvalue(), "height": size[0], "width": size[1], "class": number % 2}
    return {**usual, "reason": None}


def dataset_of(root: Path, shards: Sequence[Sequence[dict[str, Any]]]) -> Dataset:
    dataset = Dataset.create(str(root), DatasetInfo(name="tiny", label_space=SPACE, splits=("train",)))
    columns = pa.schema([field for field in schema.IMAGES if field.name not in schema.PARTITION_BY])
    for number, rows in enumerate(shards):
        table = pa.Table.from_pylist(list(rows), columns)
        dataset.images.commit([write_shard(dataset.images.uri, ShardKey("train", number), table)])
    return dataset


def commit_labels(dataset: Dataset, shard: int, ids: Sequence[str]) -> None:
    """A label set `pssl` that has this shard."""
    space = pssl_label_space(SPACE)
    table = dataset.create_labels("pssl", label_space=space, plan={"an": "earlier plan"})
    columns = pa.schema([field for field in schema.LABELS if field.name not in schema.PARTITION_BY])
    label = encode_label(np.zeros((36, 48), np.uint8))
    rows = [{"id": one, "label": label, "confidence": None, "reason": None} for one in ids]
    table.commit([write_shard(table.uri, ShardKey("train", shard), pa.Table.from_pylist(rows, columns))])


def classifier(folder: Path, **settings: Any) -> ClassifierSpec:
    path = folder / "own.safetensors"
    save_file(timm.create_model("test_resnet", num_classes=2).state_dict(), path)
    table = {"name": "test_resnet", "weights": str(path), "num_classes": 2, "size": 32, **settings}
    return ClassifierSpec.model_validate(table)


def estimate(dataset: Dataset, *classifiers: ClassifierSpec, pssl: PsslSpec = QUICK, **more: Any) -> PsslEstimate:
    ensemble = EnsembleSpec(classifiers=classifiers)
    return estimate_pssl(dataset.root, labels="pssl", pssl=pssl, ensemble=ensemble, **{"seconds": 0.01, **more})


def by_hand(*, compute: ComputeSpec, actors: int) -> PsslEstimate:
    """Two classifiers, of 30 and 5 seconds an image, and a second beside them: an image takes 0.01 hours."""
    times = (
        ClassifierTime("a", (224, 224), 50, 8, 0.6, False),
        ClassifierTime("b", (224, 224), 50, 50, 0.1, True),
    )
    return PsslEstimate(
        device="cuda" if compute.gpus else "cpu",
        compute=compute,
        actors=actors,
        measured_s=1.0,
        measured_images=1,
        classifiers=times,
        other_seconds=1.0,
        label_bytes=1500.4,
        decile_bytes=30_000.0,
        images_in_scope=1000,
        images_left=900,
    )


@pytest.mark.parametrize(
    ("compute", "actors", "device_hours", "wall_hours"),
    [
        (ComputeSpec(), 4, 10.0, 2.5),
        (ComputeSpec(cpus=2), 4, 20.0, 2.5),
        (ComputeSpec(cpus=0.5), 4, 10.0, 2.5),
        (ComputeSpec(gpus=1), 8, 10.0, 1.25),
        (ComputeSpec(gpus=0.25), 8, 10.0, 5.0),
        (ComputeSpec(gpus=2), 2, 20.0, 5.0),
    ],
)
def test_device_hours_are_paid_and_actors_share_a_gpus_speed(
    compute: ComputeSpec, actors: int, device_hours: float, wall_hours: float
) -> None:
    need = by_hand(compute=compute, actors=actors).need(1000, price=2.5)
    assert need.device_hours == pytest.approx(device_hours)
    assert need.wall_hours == pytest.approx(wall_hours)
    assert need.cost == pytest.approx(2.5 * device_hours)
    assert (need.passes, need.label_bytes, need.decile_bytes) == (100_000, 1_500_400, 30_000_000)
    assert by_hand(compute=compute, actors=actors).need(1000).cost is None


def test_an_estimate_counts_passes_and_images_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = dataset_of(tmp_path / "data", [[row(0), row(1)], [row(2), row(3), row(4)]])
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    monkeypatch.setattr(ray, "init", lambda *_, **__: pytest.fail("Ray was started"))
    own = classifier(tmp_path)
    before, threads = sorted(tmp_path.rglob("*")), torch.get_num_threads()
    found = estimate(dataset, own, own.model_copy(update={"size": 40}), pssl=QUICK.model_copy(update={"threads": 2}))
    assert sorted(tmp_path.rglob("*")) == before
    assert torch.get_num_threads() == threads
    assert (found.images_in_scope, found.images_left, found.passes_per_image) == (5, 5, 12)
    assert [each.input for each in found.classifiers] == [(32, 32), (40, 64)]
    assert not any(each.random_weights for each in found.classifiers)
    assert found.seconds_per_image > sum(each.seconds_per_pass for each in found.classifiers) > 0
    assert 0 < found.label_bytes < 36 * 48
    assert 0 < found.decile_bytes <= 36 * 48


def test_committed_shards_are_not_counted_again(tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path / "data", [[row(0), row(1)], [row(2), row(3), row(4)]])
    commit_labels(dataset, 1, ["i2", "i3", "i4"])
    found = estimate(dataset, classifier(tmp_path))
    assert (found.images_in_scope, found.images_left) == (5, 2)
    commit_labels(dataset, 0, ["i0", "i1"])
    assert estimate(dataset, classifier(tmp_path)).need(0).passes == 0


def test_absent_or_wrong_weights_are_replaced_by_random_ones_and_it_says_so(tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path / "data", [[row(0)]])
    own = classifier(tmp_path)
    right = own.model_copy(update={"weights_sha256": file_sha256(Path(str(own.weights)))[:8]})
    wrong = own.model_copy(update={"weights_sha256": "0" * 8})
    absent = own.model_copy(update={"weights": str(tmp_path / "absent.pth"), "match": "order", "identity": ("fc",)})
    found = estimate(dataset, right, wrong, absent)
    assert [each.random_weights for each in found.classifiers] == [False, True, True]
    assert not (tmp_path / "absent.pth").exists()


def test_as_many_passes_are_measured_as_the_time_allows(tmp_path: Path) -> None:
    dataset, own = dataset_of(tmp_path / "data", [[row(0)]]), classifier(tmp_path)
    pssl = PsslSpec(explainer=SmoothGradSpec(samples=40))
    for seconds, measured in ((0.0, 16), (60.0, 40)):
        (each,) = estimate(dataset, own, pssl=pssl, seconds=seconds).classifiers
        assert (each.passes, each.measured_passes) == (40, measured)
        assert each.seconds_per_image == pytest.approx(40 * each.seconds_per_pass)


@pytest.mark.parametrize(
    ("explainer", "passes"),
    [(SmoothGradSpec(samples=3), 3), (IntegratedGradientsSpec(steps=7), 7), (CaptumSpec(method="Saliency"), 1)],
    ids=lambda value: getattr(value, "kind", None),
)
def test_every_explainer_is_measured(tmp_path: Path, explainer: Any, passes: int) -> None:
    dataset = dataset_of(tmp_path / "data", [[row(0)]])
    assert estimate(dataset, classifier(tmp_path), pssl=PsslSpec(explainer=explainer)).passes_per_image == passes


def test_images_of_the_most_usual_shape_are_taken_and_unusable_rows_passed_over(tmp_path: Path) -> None:
    bad = [row(0) | {"class": None}, row(1) | {"image": None, "reason": "torn"}]
    bad += [row(2) | {"image": b"\xff\xd8 torn"}, row(3) | {"class": 9}]
    good = [row(10, size=(20, 80)), row(11), row(12), row(13), row(14, size=(80, 20))]
    dataset = dataset_of(tmp_path / "data", [bad, [*bad, *good]])
    samples = take_samples(dataset, dataset.images.files(), num_scores=2)
    assert [sample.image_id for sample in samples[:3]] == ["i11", "i12", "i13"]
    assert len(samples) == 4
    assert samples[0].pixels.shape == (36, 48, 3)
    only_bad = dataset_of(tmp_path / "bad", [bad])
    with pytest.raises(ValueError, match="first 1 shards in scope hold no image with a class"):
        take_samples(only_bad, only_bad.images.files(), num_scores=2)


def test_what_cannot_be_estimated_is_refused_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, own = dataset_of(tmp_path / "data", [[row(0)]]), classifier(tmp_path)
    with pytest.raises(ValueError, match="random runs no classifier"):
        estimate(dataset, own, pssl=PsslSpec(explainer=RandomSpec()))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"compute\.gpus = 0\.5: this machine has no GPU"):
        estimate(dataset, own, compute=ComputeSpec(gpus=0.5))
    with pytest.raises(ValueError, match="scores 5 classes"):
        estimate(dataset, own.model_copy(update={"num_classes": 5}))
    with pytest.raises(ValueError, match=r"no split 'trian' .did you mean 'train'"):
        estimate(dataset, own, split="trian")
