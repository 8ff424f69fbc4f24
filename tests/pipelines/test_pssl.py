"""Pseudo-label sets: what they hold, that they resume, and that nothing but the plan decides their bytes."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import timm
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file

from pipelines import codecs, label_run, schema
from pipelines.codecs import decode_deciles, decode_label
from pipelines.label_run import ImageShard, LabelWork, run_work
from pipelines.labels import LabelSpace, with_background
from pipelines.pssl import make_pssl, plan_pssl
from pipelines.pssl_import import import_npz
from pipelines.pssl_plan import LabelPlan, check_machine, check_scores, make_plan, pssl_label_space, target_index
from pipelines.pssl_spec import EnsembleSpec, PsslSpec, resolve_pssl
from pipelines.pssl_worker import NO_SIGNAL, PsslWorker
from pipelines.released import mask_to_label, npz_paths, read_mask
from pipelines.schema import Receipt, ShardKey
from pipelines.shard_counts import RowError
from pipelines.shards import ComputeSpec, RunStats, ShardTask
from pipelines.tables import Dataset, DatasetInfo, write_shard
from seg_models.consensus import resize_map
from seg_models.explain import AnyExplainer, CaptumSpec, IntegratedGradientsSpec, RandomSpec, SmoothGradSpec, unit_noise
from seg_models.numerics import Numerics
from seg_models.smoothing import GuidedSpec, NoSmoothing
from seg_models.weights.classifiers import ClassifierSpec, build_classifier

CLASSES = ("disc", "ring", "bar")
SPACE = LabelSpace(names=CLASSES)
QUICK = PsslSpec(explainer=SmoothGradSpec(samples=3), smoothing=NoSmoothing(), numerics=Numerics(chunk=2))


def jpeg(number: int, *, height: int = 36, width: int = 48) -> bytes:
    rng = np.random.default_rng(number)
    pixels = rng.integers(0, 90, (height, width, 3)).astype(np.uint8)
    pixels[8 + number % 7 : 24, 10 + number % 9 : 30] += np.uint8(120)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


def row(number: int, **changes: Any) -> dict[str, Any]:
    """An image row; image `number` is of class `number` modulo three."""
    size = {"height": 36, "width": 48}
    return {
        "id": f"train/a/img_{number}",
        "image": jpeg(number),
        **size,
        "class": number % 3,
        "reason": None,
        **changes,
    }


def write_images(root: Path, shards: Sequence[Sequence[dict[str, Any]]], *, space: LabelSpace = SPACE) -> Dataset:
    """A dataset with one split `train` and the given rows."""
    dataset = Dataset.create(str(root), DatasetInfo(name="tiny", label_space=space, splits=("train", "test")))
    images = dataset.images
    columns = pa.schema([field for field in schema.IMAGES if field.name not in schema.PARTITION_BY])
    for number, rows in enumerate(shards):
        images.commit([write_shard(images.uri, ShardKey("train", number), pa.Table.from_pylist(list(rows), columns))])
    return dataset


def classifiers(folder: Path, *, num_classes: int = 3, count: int = 2) -> EnsembleSpec:
    """Random small networks of 32 and 40 px, trained on nothing."""
    specs = []
    for number in range(count):
        torch.manual_seed(number)
        model = timm.create_model("test_resnet", num_classes=num_classes)
        path = folder / f"classifier-{number}.safetensors"
        save_file(model.state_dict(), path)
        size = 32 if number % 2 else 40
        specs.append(ClassifierSpec(name="test_resnet", weights=str(path), num_classes=num_classes, size=size))
    return EnsembleSpec(classifiers=tuple(specs))


def work_in_process(
    dataset: Dataset, ensemble: EnsembleSpec, *, pssl: PsslSpec = QUICK, name: str = "pssl"
) -> PsslWorker:
    """The worker a job would start, without Ray, writing to a fresh label set."""
    work = plan_pssl(dataset.root, labels=name, pssl=pssl, ensemble=ensemble)
    return PsslWorker(**work.worker_args, labels_uri=work.open().uri)


def labels_of(dataset: Dataset, name: str, shard: int = 0) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = dataset.labels(name).read(ShardKey("train", shard)).to_pylist()
    return rows


def label_first_shard(dataset: Dataset, worker: PsslWorker, name: str) -> Receipt:
    image = dataset.images.files()[0]
    receipt = worker(ImageShard(image.key, image.path))
    dataset.labels(name).commit([receipt])
    return receipt


def slow_label(ensemble: EnsembleSpec, row: dict[str, Any], *, samples: int) -> NDArray[np.int64]:
    """The sheet's formula with plain loops, one sample at a time: l1 normalisation, mean over models, top tenth."""
    image = np.asarray(Image.open(io.BytesIO(row["image"])))
    total = np.zeros((40, 64))  # the input of the larger classifier, where maps meet
    for spec in ensemble.resolve():
        classifier = build_classifier(spec)
        x = classifier.prepare(torch.from_numpy(image.copy()).permute(2, 0, 1))
        noise = unit_noise(seed=0, image_id=row["id"], num_samples=samples, height=x.shape[1], width=x.shape[2])
        gradient = torch.zeros_like(x)
        for sample in noise:
            point = (x + 0.1 * (x.max() - x.min()) * sample).requires_grad_(True)
            probability = classifier(point[None]).softmax(1)[0, row["class"]]
            gradient += torch.autograd.grad(probability, point)[0] / samples
        found = resize_map(gradient.abs().sum(0).double(), height=40, width=64).numpy()
        total += found / found.sum()
    scores = resize_map(torch.from_numpy(total), height=image.shape[0], width=image.shape[1]).numpy()
    order = np.argsort(scores.ravel(), kind="stable")
    label = np.full(scores.size, len(CLASSES))
    label[order[-(scores.size // 10) :]] = row["class"]
    return label.reshape(scores.shape)


def test_a_label_is_the_top_tenth_of_the_mean_of_normalised_smoothgrad_maps(tmp_path: Path) -> None:
    ensemble = classifiers(tmp_path)
    rows = [row(number) for number in range(3)]
    dataset = write_images(tmp_path / "data", [rows])
    receipt = label_first_shard(dataset, work_in_process(dataset, ensemble), "pssl")
    assert (receipt.num_rows, receipt.num_rejected) == (3, 0)
    for stored, given in zip(labels_of(dataset, "pssl"), rows, strict=True):
        label = decode_label(stored["label"])
        expected = slow_label(ensemble, given, samples=3)
        assert stored["id"] == given["id"]
        assert label.shape == (36, 48)
        assert int((label == given["class"]).sum()) == 36 * 48 // 10
        assert float((label != expected).mean()) < 0.005  # float32 sums in another order may swap a few pixels


def test_images_of_one_noisy_copy_are_explained_in_batches_of_the_shard_with_the_same_labels(tmp_path: Path) -> None:
    """Sizes, rejected rows and the end of a shard cut batches; each image keeps the label it has alone."""
    rows = [row(number) for number in range(6)]
    rows[1] = row(1, image=None, reason="empty file")
    rows[3] = row(3, image=jpeg(3, height=48, width=36), height=48, width=36)
    dataset, ensemble = write_images(tmp_path / "data", [rows]), classifiers(tmp_path)
    one = QUICK.model_copy(update={"explainer": SmoothGradSpec(samples=1), "smoothing": GuidedSpec()})
    for name, chunk in (("alone", 1), ("together", 4)):
        pssl = one.model_copy(update={"numerics": Numerics(chunk=chunk)})
        worker = work_in_process(dataset, ensemble, pssl=pssl, name=name)
        label_first_shard(dataset, worker, name)
    pairs = list(zip(labels_of(dataset, "alone"), labels_of(dataset, "together"), strict=True))
    assert [left["reason"] is None for left, _ in pairs] == [True, False, True, True, True, True]
    for left, right in pairs:
        assert (left["id"], left["reason"]) == (right["id"], right["reason"])
        if left["label"] is not None:
            assert float((decode_label(left["label"]) != decode_label(right["label"])).mean()) < 0.005


def test_settings_are_a_preset_or_a_table_over_one() -> None:
    fast, paper = resolve_pssl("fast"), resolve_pssl("paper")
    assert fast == PsslSpec()
    assert isinstance(paper.explainer, SmoothGradSpec)
    assert (paper.explainer.samples, paper.explainer.score, paper.smoothing.kind) == (50, "probability", "none")
    changed = resolve_pssl({"base": "paper", "explainer": {"samples": 10}, "smoothing": {"kind": "guided"}})
    assert changed == paper.model_copy(
        update={"explainer": paper.explainer.model_copy(update={"samples": 10}), "smoothing": GuidedSpec()}
    )
    assert resolve_pssl({"explainer": {"kind": "random"}}).explainer == RandomSpec()
    assert resolve_pssl(paper.model_dump(mode="json")) == paper
    with pytest.raises(ValueError, match=r"base = 'fast' would change nothing.*\(--pssl fast\)"):
        resolve_pssl({**paper.model_dump(mode="json"), "base": "fast"})
    with pytest.raises(ValueError, match=r"unknown preset 'papr' \(did you mean 'paper'\?\); known: fast, paper"):
        resolve_pssl("papr")
    with pytest.raises(ValueError, match=r"numerics\n.*found 'prob' \(did you mean 'probe'\?\); allowed: probe"):
        resolve_pssl({"numerics": "prob"})


def test_what_is_fastest_here_is_measured_once_and_kept_in_the_plan(tmp_path: Path) -> None:
    dataset, ensemble = write_images(tmp_path / "data", [[row(0)]]), classifiers(tmp_path)
    probing = QUICK.model_copy(update={"numerics": "probe"})
    first = plan_pssl(dataset.root, labels="pssl", pssl=probing, ensemble=ensemble)
    first.open()
    odd = Numerics(dtype="bfloat16", channels_last=False, stem_once=True, chunk=7)
    plan = LabelPlan.model_validate(first.plan)
    assert [planned.numerics.chunk for planned in plan.classifiers] == [Numerics().chunk] * 2
    kept = plan.model_copy(
        update={"classifiers": tuple(one.model_copy(update={"numerics": odd}) for one in plan.classifiers)}
    )
    again = make_plan(probing, ensemble.resolve(), images="x", earlier=kept.model_dump(mode="json"))
    assert [planned.numerics for planned in again.classifiers] == [odd, odd]
    own = ensemble.resolve()[0].model_copy(update={"numerics": Numerics(chunk=3)})
    assert make_plan(probing, (own,), images="x").classifiers[0].numerics == Numerics(chunk=3)


def test_the_label_set_has_the_classes_of_the_dataset_and_a_background(tmp_path: Path) -> None:
    dataset = write_images(tmp_path / "data", [[row(0)]])
    label_first_shard(dataset, work_in_process(dataset, classifiers(tmp_path)), "pssl")
    space = dataset.labels("pssl").label_space
    assert space.names == (*CLASSES, "background")
    assert (space.background, space.void) == (3, 255)


def test_imagenet_labels_are_two_bytes_with_background_1000_and_void_65535(tmp_path: Path) -> None:
    space = with_background([f"class {index}" for index in range(1000)])
    dataset = write_images(tmp_path / "data", [[row(0, **{"class": 999})]], space=space)
    label_first_shard(dataset, work_in_process(dataset, classifiers(tmp_path, num_classes=1000)), "pssl")
    label = decode_label(labels_of(dataset, "pssl")[0]["label"])
    assert label.dtype == np.uint16
    assert set(np.unique(label).tolist()) == {999, 1000}
    assert dataset.labels("pssl").label_space.void == 65535


def test_rows_without_image_class_or_signal_keep_their_place_with_a_reason(tmp_path: Path) -> None:
    rows = [
        row(0),
        row(1, image=None, reason="truncated JPEG"),
        row(2, **{"class": None}),
        row(3, image=b"\xff\xd8 torn"),
        row(4, **{"class": 7}),
        row(5),
    ]
    dataset = write_images(tmp_path / "data", [rows])
    receipt = label_first_shard(dataset, work_in_process(dataset, classifiers(tmp_path)), "pssl")
    stored = labels_of(dataset, "pssl")
    assert [one["id"] for one in stored] == [one["id"] for one in rows]
    assert [one["label"] is None for one in stored] == [False, True, True, True, True, False]
    reasons = [one["reason"] or "" for one in stored]
    assert reasons[1] == "image was rejected: truncated JPEG"
    assert reasons[2] == "no image-level class"
    assert "JPEG" in reasons[3]
    assert "class 7" in reasons[4]
    assert receipt.num_rejected == 4


def test_an_image_whose_maps_are_all_zero_is_rejected_and_the_maps_are_counted(tmp_path: Path) -> None:
    ensemble = classifiers(tmp_path)
    for spec in ensemble.classifiers:
        model = timm.create_model("test_resnet", num_classes=3)
        torch.nn.init.zeros_(model.fc.weight)
        save_file(model.state_dict(), str(spec.weights))
    dataset = write_images(tmp_path / "data", [[row(0), row(1)]])
    work = plan_pssl(dataset.root, labels="pssl", pssl=QUICK, ensemble=ensemble)
    worker = PsslWorker(**work.worker_args, labels_uri=work.open().uri)
    receipt = label_first_shard(dataset, worker, "pssl")
    assert [one["reason"] for one in labels_of(dataset, "pssl")] == [NO_SIGNAL, NO_SIGNAL]
    assert receipt.stats["reasons"] == {NO_SIGNAL: 2}


@pytest.mark.parametrize(
    "explainer",
    [IntegratedGradientsSpec(steps=3), CaptumSpec(method="DeepLift"), RandomSpec()],
    ids=lambda explainer: explainer.kind,
)
def test_every_explainer_labels_the_same_area(tmp_path: Path, explainer: AnyExplainer) -> None:
    dataset = write_images(tmp_path / "data", [[row(0), row(1)]])
    ensemble = classifiers(tmp_path)
    pssl = QUICK.model_copy(update={"explainer": explainer, "top_deciles": 2})
    label_first_shard(dataset, work_in_process(dataset, ensemble, pssl=pssl), "pssl")
    areas = [int((decode_label(one["label"]) != 3).sum()) for one in labels_of(dataset, "pssl")]
    assert areas == [36 * 48 * 2 // 10] * 2


def test_pixels_between_the_top_decile_and_otsus_threshold_can_be_void(tmp_path: Path) -> None:
    dataset = write_images(tmp_path / "data", [[row(0), row(1)]])
    ensemble = classifiers(tmp_path)
    found = {}
    for rule in ("background", "class", "void"):
        pssl = QUICK.model_copy(update={"above_otsu": rule})
        label_first_shard(dataset, work_in_process(dataset, ensemble, pssl=pssl, name=rule), rule)
        found[rule] = [decode_label(one["label"]) for one in labels_of(dataset, rule)]
    for number in (0, 1):
        decile, otsu, void = (found[rule][number] for rule in ("background", "class", "void"))
        assert int((otsu == number).sum()) > int((decile == number).sum()) == 36 * 48 // 10
        np.testing.assert_array_equal(void == number, decile == number)
        np.testing.assert_array_equal(void == 255, (otsu == number) & (decile != number))


def test_the_random_control_knows_no_threshold() -> None:
    with pytest.raises(
        ValueError, match=r"above_otsu = 'void' has no meaning for the random control.*allowed: background"
    ):
        PsslSpec(explainer=RandomSpec(), above_otsu="void")


def test_a_dataset_with_a_background_of_its_own_keeps_its_classes() -> None:
    space = LabelSpace(names=("ground", "red", "green"), background=0)
    assert pssl_label_space(space) == space
    assert [target_index(index, space=space, num_scores=3) for index in (1, 2)] == [1, 2]
    assert [target_index(index, space=space, num_scores=2) for index in (1, 2)] == [0, 1]
    with pytest.raises(ValueError, match="class 0 is no image-level class"):
        target_index(0, space=space, num_scores=2)
    added = pssl_label_space(SPACE)
    assert [target_index(index, space=added, num_scores=3) for index in range(3)] == [0, 1, 2]


def test_pseudo_labels_keep_the_classes_that_change_places_in_a_mirrored_image() -> None:
    space = LabelSpace(names=("left", "right"), mirror_pairs=((0, 1),))
    assert pssl_label_space(space).mirrored == (1, 0, 2)


def test_classifiers_of_another_class_list_are_refused(tmp_path: Path) -> None:
    specs = classifiers(tmp_path, num_classes=5).resolve()
    with pytest.raises(ValueError, match="scores 5 classes, the dataset has 3"):
        check_scores(specs, space=SPACE)
    mixed = (specs[0].model_copy(update={"num_classes": 2}), specs[1].model_copy(update={"num_classes": 3}))
    with pytest.raises(ValueError, match="score the background and others do not"):
        check_scores(mixed, space=LabelSpace(names=CLASSES, background=0))


def test_missing_weights_stop_the_job_before_anything_is_written(tmp_path: Path) -> None:
    dataset = write_images(tmp_path / "data", [[row(0)]])
    gone = ClassifierSpec(name="test_resnet", weights=str(tmp_path / "gone.safetensors"), num_classes=3)
    with pytest.raises(ValueError, match=r"'gone\.safetensors' are missing: put the file at"):
        plan_pssl(dataset.root, labels="pssl", pssl=QUICK, ensemble=EnsembleSpec(classifiers=(gone,)))
    assert dataset.label_sets() == []
    with pytest.raises(ValueError, match=r"no split 'tran'.*did you mean 'train'"):
        plan_pssl(dataset.root, labels="pssl", pssl=QUICK, ensemble=classifiers(tmp_path), split="tran")
    with pytest.raises(ValueError, match=r"split 'test' .* has no images"):
        plan_pssl(dataset.root, labels="pssl", pssl=QUICK, ensemble=classifiers(tmp_path), split="test")
    threads = QUICK.model_copy(update={"threads": 4})
    with pytest.raises(ValueError, match=r"threads = 4 needs compute\.cpus = 4"):
        plan_pssl(dataset.root, labels="pssl", pssl=threads, ensemble=classifiers(tmp_path))


def test_ensembles_are_named_or_listed_and_ordered_by_size(tmp_path: Path) -> None:
    assert EnsembleSpec.model_validate("efficientnet_lite") == EnsembleSpec(presets=("efficientnet_lite",))
    both = EnsembleSpec.model_validate({"classifiers": "efficientnet_lite"})
    assert [spec.size for spec in both.resolve()] == [224, 240, 260]
    mixed = EnsembleSpec(presets=("efficientnet_lite",), classifiers=classifiers(tmp_path).classifiers)
    assert [spec.size for spec in mixed.resolve()] == [32, 40, 224, 240, 260]
    with pytest.raises(ValueError, match="unknown ensemble"):
        EnsembleSpec(presets=("efficientnet",))


def test_a_label_set_is_not_continued_under_another_plan(tmp_path: Path) -> None:
    dataset, ensemble = write_images(tmp_path / "data", [[row(0)]]), classifiers(tmp_path)
    plan_pssl(dataset.root, labels="pssl", pssl=QUICK, ensemble=ensemble).open()
    plan_pssl(dataset.root, labels="pssl", pssl=QUICK, ensemble=ensemble).open()
    other = QUICK.model_copy(update={"seed": 1, "numerics": Numerics(chunk=3)})
    with pytest.raises(
        ValueError, match=r"plan\.classifiers\.0\.numerics\.chunk: now 3, there 2.*plan\.settings\.seed: now 1, there 0"
    ):
        plan_pssl(dataset.root, labels="pssl", pssl=other, ensemble=ensemble)


def test_the_plan_follows_the_weights_and_not_their_place(tmp_path: Path) -> None:
    ensemble = classifiers(tmp_path)
    plan = make_plan(QUICK, ensemble.resolve(), images="x")
    assert LabelPlan.model_validate_json(plan.model_dump_json()) == plan
    (tmp_path / "moved").mkdir()

    def move(spec: ClassifierSpec) -> ClassifierSpec:
        old = Path(str(spec.weights))
        return spec.model_copy(update={"weights": str(old.rename(tmp_path / "moved" / old.name))})

    moved = [move(spec) for spec in ensemble.resolve()]
    assert make_plan(QUICK, tuple(moved), images="x") == plan
    save_file(timm.create_model("test_resnet", num_classes=3).state_dict(), str(moved[0].weights))
    assert make_plan(QUICK, tuple(moved), images="x") != plan


def test_a_machine_that_cannot_follow_the_plan_is_refused(tmp_path: Path) -> None:
    plan = make_plan(QUICK, classifiers(tmp_path).resolve(), images="x")
    check_machine(plan)
    changes = {"torch": "1.0", "instruction_set": "SSE", "threads": 4096}
    with pytest.raises(ValueError, match=r"torch is .*plan says 1\.0.*instruction_set.*SSE.*4096 threads"):
        check_machine(plan.model_copy(update=changes))


def test_a_worker_refuses_weights_that_are_not_the_planned_ones(tmp_path: Path) -> None:
    dataset, ensemble = write_images(tmp_path / "data", [[row(0)]]), classifiers(tmp_path)
    work = plan_pssl(dataset.root, labels="pssl", pssl=QUICK, ensemble=ensemble)
    save_file(timm.create_model("test_resnet", num_classes=3).state_dict(), str(ensemble.classifiers[0].weights))
    with pytest.raises(ValueError, match="SHA-256"):
        PsslWorker(**work.worker_args, labels_uri=work.open().uri)


def twelve_images(root: Path) -> Dataset:
    rows = [row(number) for number in range(12)]
    rows[5] = row(5, image=None, reason="empty file")
    return write_images(root, [rows[:3], rows[3:6], rows[6:9], rows[9:]])


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards are worked on one after the other in this process, in reverse order."""

    def run_here(worker: type, *, tasks: Sequence[ShardTask], worker_args: dict[str, Any], **other: Any) -> RunStats:
        working = worker(**worker_args) if tasks else None
        for task in reversed(tasks):
            assert working is not None
            other["on_result"](task.key, working(task.payload))
        return RunStats(tasks=len(tasks), actors=1)

    monkeypatch.setattr(label_run, "run_shards", run_here)


@pytest.mark.usefixtures("without_ray")
def test_the_result_accounts_for_every_image_and_pixel(tmp_path: Path) -> None:
    dataset, ensemble = twelve_images(tmp_path / "data"), classifiers(tmp_path)
    seen: list[tuple[dict[str, float], int]] = []
    result = make_pssl(
        dataset.root,
        labels="pssl",
        pssl=QUICK,
        ensemble=ensemble,
        on_progress=lambda metrics, step: seen.append((metrics, step)),
    )
    assert (result.images_in, result.labelled, result.rejected) == (12, 11, 1)
    assert result.reasons == {"image was rejected: empty file": 1}
    assert sum(result.class_pixels.values()) == 11 * 36 * 48
    assert result.class_pixels["background"] == 11 * (36 * 48 - 36 * 48 // 10)
    assert result.skipped_maps == {"test_resnet": 0, "test_resnet (2)": 0}
    assert result.phases.keys() == {"read", "decode", "explain", "label", "encode", "write"}
    assert len(result.examples) == 8
    assert "train/a/img_5" not in result.examples
    assert [step for _, step in seen] == [3, 6, 9, 12]
    assert json.loads(json.dumps(result.as_dict()))["digest"] == dataset.labels("pssl").label_digest()


@pytest.mark.usefixtures("without_ray")
@pytest.mark.parametrize("installed", [True, False])
def test_deciles_are_kept_where_asked_for_and_hold_the_label(
    tmp_path: Path, installed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(codecs, "find_spec", lambda _: installed or None)
    dataset, ensemble = twelve_images(tmp_path / "data"), classifiers(tmp_path)
    without = make_pssl(dataset.root, labels="plain", pssl=QUICK, ensemble=ensemble)
    work = plan_pssl(dataset.root, labels="kept", pssl=QUICK, ensemble=ensemble, keep_deciles=True)
    kept = run_work(work, compute=ComputeSpec())
    assert kept.digest == without.digest
    assert dataset.labels("kept").info["codecs"]["deciles"] == ("jpegls" if installed else "nibble-zstd")
    for shard in range(4):
        for one in labels_of(dataset, "kept", shard):
            assert (one["deciles"] is None) == (one["label"] is None)
            if one["label"] is not None:
                assert np.array_equal(decode_deciles(one["deciles"]) == 9, decode_label(one["label"]) != 3)
    assert all(one["deciles"] is None for one in labels_of(dataset, "plain"))
    with pytest.raises(ValueError, match=r"codecs\.deciles: now null"):
        plan_pssl(dataset.root, labels="kept", pssl=QUICK, ensemble=ensemble)
    monkeypatch.setattr(codecs, "find_spec", lambda _: None)
    again = plan_pssl(dataset.root, labels="kept", pssl=QUICK, ensemble=ensemble, keep_deciles=True)
    assert again.codecs == work.codecs


@pytest.mark.usefixtures("without_ray")
def test_a_run_stopped_half_way_continues_to_equal_bytes(tmp_path: Path) -> None:
    dataset, ensemble = twelve_images(tmp_path / "data"), classifiers(tmp_path)
    whole = make_pssl(dataset.root, labels="whole", pssl=QUICK, ensemble=ensemble)
    work = stop_half_way(dataset, ensemble)
    resumed = make_pssl(dataset.root, labels="half", pssl=QUICK, ensemble=ensemble)
    assert (resumed.resumed_shards, resumed.num_shards) == (2, 4)
    assert (resumed.digest, resumed.class_pixels, resumed.reasons) == (whole.digest, whole.class_pixels, whole.reasons)
    files = dataset.labels("half").files()
    again = run_work(work, compute=ComputeSpec())
    assert (again.resumed_shards, again.digest, again.images_per_s) == (4, whole.digest, 0.0)
    assert dataset.labels("half").files() == files


def stop_half_way(dataset: Dataset, ensemble: EnsembleSpec) -> LabelWork:
    """What a killed driver leaves: two shards of the set `half` committed, one written and not committed."""
    work = plan_pssl(dataset.root, labels="half", pssl=QUICK, ensemble=ensemble)
    worker = PsslWorker(**work.worker_args, labels_uri=work.open().uri)
    receipts = [worker(ImageShard(file.key, file.path)) for file in reversed(work.shards[:3])]
    dataset.labels("half").commit(receipts[:2])
    return work


@pytest.mark.usefixtures("ray_local")
def test_labels_are_equal_bytes_for_one_process_two_actors_and_a_resumed_actor(tmp_path: Path) -> None:
    dataset, ensemble = twelve_images(tmp_path / "data"), classifiers(tmp_path)
    work = plan_pssl(dataset.root, labels="here", pssl=QUICK, ensemble=ensemble)
    worker = PsslWorker(**work.worker_args, labels_uri=work.open().uri)
    dataset.labels("here").commit([worker(ImageShard(file.key, file.path)) for file in work.shards])
    stop_half_way(dataset, ensemble)
    for labels, actors in (("two", 2), ("half", 1)):
        compute = ComputeSpec(actors=actors, cpus=0.5)
        found = make_pssl(dataset.root, labels=labels, pssl=QUICK, ensemble=ensemble, compute=compute)
        assert (found.labelled, found.actors) == (11, actors)
        assert found.digest == dataset.labels("here").label_digest()


@pytest.mark.usefixtures("without_ray")
def test_too_many_rejected_rows_stop_the_job_with_their_most_frequent_reason(tmp_path: Path) -> None:
    rows = [row(number, **{"class": None}) for number in range(4)]
    dataset = write_images(tmp_path / "data", [rows[:2], rows[2:], [row(4)]])
    with pytest.raises(ValueError, match=r"4 of 5 rows have no label.*most frequent reason: no image-level class"):
        make_pssl(dataset.root, labels="pssl", pssl=QUICK, ensemble=classifiers(tmp_path), max_rejected=0.5)
    result = make_pssl(dataset.root, labels="pssl", pssl=QUICK, ensemble=classifiers(tmp_path), max_rejected=0.8)
    assert (result.labelled, result.rejected) == (1, 4)


def write_mask(folder: Path, image_id: str, mask: NDArray[Any]) -> None:
    """A released label: <folder>/train/<wnid>/<image>.JPEG_eiseg.npz."""
    wnid, name = image_id.split("/")[-2:]
    place = folder / "train" / wnid / f"{name}.JPEG_eiseg.npz"
    place.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(place, mask)


def test_damage_anywhere_in_a_released_label_is_a_reason_of_that_row() -> None:
    mask = np.random.default_rng(0).integers(-1, 2, (20, 30)).astype(np.int32)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, mask)
    for place in range(len(buffer.getvalue())):
        damaged = bytearray(buffer.getvalue())
        damaged[place] ^= 0x41
        try:
            found = read_mask(bytes(damaged), height=20, width=30)
        except RowError:
            continue
        assert np.array_equal(found, mask), f"byte {place}"


@pytest.mark.usefixtures("without_ray")
def test_released_labels_are_imported_beside_their_images(tmp_path: Path) -> None:
    rows = [row(number) for number in range(6)]
    dataset, folder = write_images(tmp_path / "data", [rows[:3], rows[3:]]), tmp_path / "released"
    mask = np.zeros((36, 48), np.int32)
    mask[:6], mask[6:9] = 1, -1
    for number in (0, 1, 2):
        write_mask(folder, rows[number]["id"], mask)
    write_mask(folder, rows[3]["id"], mask.T)
    (folder / "train" / "a" / "img_4.JPEG_eiseg.npz").write_bytes(b"PK torn")
    result = import_npz(dataset.root, folder=str(folder), labels="released")
    assert (result.images_in, result.labelled, result.rejected) == (6, 3, 3)
    assert result.class_pixels == {"disc": 288, "ring": 288, "bar": 288, "background": 3 * 27 * 48, "(void)": 3 * 144}
    label = decode_label(labels_of(dataset, "released")[1]["label"])
    assert (label[0, 0], label[7, 0], label[20, 0]) == (1, 255, 3)
    reasons = [one["reason"] for one in labels_of(dataset, "released", 1)]
    assert reasons[0] == "released label has shape (48, 36), the image (36, 48)"
    assert reasons[1] == "released label cannot be read (BadZipFile)"
    assert reasons[2] == "no released label for this image"

    parity = import_npz(dataset.root, folder=str(folder), labels="parity", minus_one="background")
    assert parity.class_pixels["background"] == 3 * 30 * 48
    (folder / "imagenet_lsvrc_2015_synsets.txt").write_text("b\na\n")
    with pytest.raises(ValueError, match="released label is of class 1, the image of class"):
        import_npz(dataset.root, folder=str(folder), labels="other")


def test_minus_one_is_void_unless_the_released_loader_is_followed() -> None:
    mask = np.array([[1, 0], [-1, 5]])
    space = pssl_label_space(SPACE)
    assert mask_to_label(mask, class_index=2, space=space, minus_one="void").tolist() == [[2, 3], [255, 3]]
    assert mask_to_label(mask, class_index=2, space=space, minus_one="background").tolist() == [[2, 3], [3, 3]]


def test_released_labels_are_found_by_folder_or_by_the_synset_in_the_name() -> None:
    path = "train/n01440764/n01440764_18.JPEG_eiseg.npz"
    assert npz_paths("train/n01440764/n01440764_18") == [("n01440764", path)]
    assert npz_paths("n01440764_18.JPEG") == [("n01440764", path)]


def test_a_folder_without_released_labels_is_refused(tmp_path: Path) -> None:
    dataset = write_images(tmp_path / "data", [[row(0)]])
    with pytest.raises(ValueError, match="no folder 'train' inside"):
        import_npz(dataset.root, folder=str(tmp_path), labels="released")
