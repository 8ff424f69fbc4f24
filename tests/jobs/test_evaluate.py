"""Evaluation against a loop over pixels, on a model whose answers are known."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from jobs import evaluate
from jobs.specs import EvaluateJob, TrackingSpec
from pipelines.codecs import encode_label
from pipelines.evaluation import EvaluationResult, evaluate_checkpoint, plan_evaluation, run_evaluation
from pipelines.evaluation_worker import EvaluationWorker
from pipelines.labels import LabelSpace
from pipelines.measures import MetricsSpec
from pipelines.schema import ShardKey
from pipelines.shards import ComputeSpec
from pipelines.tables import Dataset, write_shard
from seg_models.boundaries import BoundaryScore
from seg_models.predictor import PredictorSpec
from tests.inline_shards import inline_shards
from tests.oracle_model import OracleSpec, publish
from tests.tiny_data import SPACE, image_rows, label_rows, scene, write_dataset

WRONG = OracleSpec(answers=(0, 1, 1))  # takes green for red
UNTRACKED = TrackingSpec(enabled=False)
SIZES = (5, 4, 3)


def truth_of(number: int) -> np.ndarray[Any, Any]:
    """The label of a scene: as drawn, with a void border of three pixels."""
    label: np.ndarray[Any, Any] = scene(number, space=SPACE, size=(36, 44))["label"].copy()
    label[:3] = SPACE.void
    return label


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Twelve scenes; image 2 and label 6 are rejected, image 10 is torn; labels `bordered` have void."""
    root = tmp_path_factory.mktemp("scenes")
    made = write_dataset(root, shard_sizes=SIZES, split="test", bad_images=[2], bad_labels=[6], damaged=[10])
    bordered = made.create_labels("bordered", label_space=SPACE, plan={})
    first = 0
    for shard, count in enumerate(SIZES):
        rows = [scene(number, space=SPACE, size=(36, 44)) for number in range(first, first + count)]
        rows = [{**row, "label": truth_of(first + i), "bad_label": first + i == 6} for i, row in enumerate(rows)]
        bordered.commit([write_shard(bordered.uri, ShardKey("test", shard), label_rows(rows))])
        first += count
    return made


def evaluated_numbers() -> list[int]:
    return [number for number in range(sum(SIZES)) if number not in (2, 6, 10)]


def slow_metrics(numbers: list[int]) -> tuple[list[float | None], float, float]:
    """IoU per class, mIoU and pixel accuracy of WRONG by looking at every pixel in turn."""
    hits, unions = [0, 0, 0], [0, 0, 0]
    right = total = 0
    for number in numbers:
        drawn = scene(number, space=SPACE, size=(36, 44))["label"]
        for truth, seen in zip(truth_of(number).ravel().tolist(), drawn.ravel().tolist(), strict=True):
            if truth == SPACE.void:
                continue
            answer = WRONG.answers[seen]
            total, right = total + 1, right + (answer == truth)
            for index in range(3):
                hits[index] += truth == index and answer == index
                unions[index] += truth == index or answer == index
    ious = [hit / union if union else None for hit, union in zip(hits, unions, strict=True)]
    known = [iou for iou in ious if iou is not None]
    return ious, sum(known) / len(known), right / total


@pytest.fixture(scope="module")
def wrong(tmp_path_factory: pytest.TempPathFactory) -> str:
    return publish(tmp_path_factory.mktemp("wrong"), spec=WRONG)


@pytest.fixture(scope="module")
def result(dataset: Dataset, wrong: str) -> EvaluationResult:
    with inline_shards():
        return evaluate_checkpoint(
            wrong, dataset=dataset.root, labels="bordered", split="test", num_pictures=4, num_worst=2
        )


def test_metrics_over_the_whole_split_equal_a_loop_over_pixels(result: EvaluationResult) -> None:
    ious, miou, accuracy = slow_metrics(evaluated_numbers())
    assert [row["iou"] for row in result.classes] == pytest.approx(ious)
    assert result.miou == pytest.approx(miou)
    assert result.pixel_accuracy == pytest.approx(accuracy)
    assert 0 < result.miou < 1
    assert result.confusion.dtype == np.int64
    assert result.confusion.sum() == len(evaluated_numbers()) * 33 * 44


def test_every_image_is_counted_once_and_what_is_left_out_has_a_reason(result: EvaluationResult) -> None:
    assert [score.id for score in result.scores] == [f"scene-{number:04d}" for number in evaluated_numbers()]
    assert (result.images_in, result.evaluated, result.skipped) == (12, 9, 3)
    assert result.reasons["planted"] == 2
    assert sum(result.reasons.values()) == 3


def test_a_perfect_model_scores_one(dataset: Dataset, tmp_path: Path) -> None:
    with inline_shards():
        found = evaluate_checkpoint(publish(tmp_path / "model"), dataset=dataset.root, labels="human", split="test")
    assert found.miou == 1.0
    assert found.pixel_accuracy == 1.0


def test_fixed_pictures_depend_on_the_ids_alone_and_worst_ones_on_the_scores(result: EvaluationResult) -> None:
    import hashlib

    fixed = [picture.id for picture in result.pictures if picture.name.startswith("fixed")]
    ids = [score.id for score in result.scores]
    assert fixed == sorted(ids, key=lambda name: hashlib.sha256(name.encode()).hexdigest())[:4]
    worst = [(picture.id, picture.miou) for picture in result.pictures if picture.name.startswith("worst")]
    by_score = sorted(result.scores, key=lambda score: (score.miou or 0, score.id))
    assert worst == [(score.id, score.miou) for score in by_score[:2]]
    per_image = slow_metrics([int(worst[0][0].removeprefix("scene-"))])
    assert worst[0][1] == pytest.approx(per_image[1])


def test_pictures_show_image_truth_and_prediction_in_the_colours_of_the_classes(result: EvaluationResult) -> None:
    picture = result.pictures[0]
    number = int(picture.id.removeprefix("scene-"))
    truth = np.asarray(Image.open(io.BytesIO(picture.views["truth"])))
    prediction = np.asarray(Image.open(io.BytesIO(picture.views["prediction"])))
    assert np.array_equal(truth, SPACE.colorize(truth_of(number)))
    drawn = scene(number, space=SPACE, size=(36, 44))["label"]
    assert np.array_equal(prediction, SPACE.colorize(np.array(WRONG.answers, np.uint8)[drawn]))
    assert picture.strip().shape == (36, 3 * 44, 3)


def test_the_number_of_actors_does_not_change_the_counts(
    dataset: Dataset, wrong: str, result: EvaluationResult
) -> None:
    work = plan_evaluation(wrong, dataset=dataset.root, labels="bordered", split="test")
    worker = EvaluationWorker(
        checkpoint=work.checkpoint,
        images_uri=work.images.uri,
        labels_uri=work.truth.uri,
        predictor=PredictorSpec(),
        metrics=MetricsSpec(),
        device="cpu",
        threads=1,
        num_fixed=1,
        num_worst=1,
    )
    matrices = [worker(shard).measured.matrix(3) for shard in reversed(work.shards)]
    assert np.array_equal(sum(matrices), result.confusion)


METRICS = MetricsSpec(boundary_px=(1, 3), calibration_bins=10)


@pytest.fixture(scope="module")
def measured(dataset: Dataset, wrong: str) -> EvaluationResult:
    with inline_shards():
        return evaluate_checkpoint(wrong, dataset=dataset.root, labels="bordered", split="test", metrics=METRICS)


def test_boundaries_and_calibration_are_those_of_all_images_together(measured: EvaluationResult) -> None:
    expected = BoundaryScore(3, SPACE.void, widths_px=METRICS.boundary_px)
    for number in evaluated_numbers():
        drawn = scene(number, space=SPACE, size=(36, 44))["label"]
        expected.update(np.array(WRONG.answers)[drawn], truth_of(number))
    assert [row["px"] for row in measured.boundary] == [1, 3]
    assert [row["f"] for row in measured.boundary] == expected.mean_f()
    assert [row["published_f"] for row in measured.boundary] == expected.published_f()
    assert [measured.figures[f"boundary_f_{width}px"] for width in (1, 3)] == expected.mean_f()
    assert [row["boundary_f_3px"] for row in measured.classes] == [None if np.isnan(f) else f for f in expected.f()[1]]
    assert measured.calibration is not None
    bins = measured.calibration["bins"]
    assert sum(row["pixels"] for row in bins) == measured.confusion.sum()
    right = sum(row["pixels"] * row["accuracy"] for row in bins if row["pixels"])
    assert right / measured.confusion.sum() == pytest.approx(measured.pixel_accuracy)
    gaps = [row["pixels"] * abs(row["confidence"] - row["accuracy"]) for row in bins if row["pixels"]]
    assert measured.figures["ece"] == measured.calibration["ece"] == pytest.approx(sum(gaps) / measured.confusion.sum())


def test_what_is_not_asked_for_is_not_measured(result: EvaluationResult, measured: EvaluationResult) -> None:
    assert list(result.figures) == ["miou", "fwiou", "pixel_accuracy", "mean_accuracy"]
    assert (result.boundary, result.calibration) == ((), None)
    assert not {"boundary", "calibration"} & result.as_dict().keys()
    assert {name: measured.figures[name] for name in result.figures} == result.figures


def test_every_figure_is_the_same_to_the_last_bit_however_the_shards_are_dealt(
    dataset: Dataset, wrong: str, measured: EvaluationResult
) -> None:
    work = plan_evaluation(wrong, dataset=dataset.root, labels="bordered", split="test")
    dealt = replace(work, shards=work.shards[::-1])
    with inline_shards():
        again = run_evaluation(dealt, metrics=METRICS, compute=ComputeSpec(), num_pictures=0, num_worst=0)
    assert again.figures == measured.figures
    assert (again.classes, again.boundary, again.calibration) == (
        measured.classes,
        measured.boundary,
        measured.calibration,
    )
    assert again.scores == measured.scores


def test_single_images_have_every_figure(measured: EvaluationResult) -> None:
    score = measured.scores[3]
    number = int(score.id.removeprefix("scene-"))
    assert list(score.figures) == list(measured.figures)
    assert score.miou == pytest.approx(slow_metrics([number])[1])
    drawn = scene(number, space=SPACE, size=(36, 44))["label"]
    alone = BoundaryScore(3, SPACE.void, widths_px=(1, 3))
    alone.update(np.array(WRONG.answers)[drawn], truth_of(number))
    assert [score.figures[f"boundary_f_{width}px"] for width in (1, 3)] == alone.mean_f()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"boundary_px": (3, 2)}, r"boundary_px\n.*widths must rise and be at least 1 pixel, found \(3, 2\)"),
        ({"calibration_bins": 1}, "calibration_bins"),
    ],
)
def test_measures_that_cannot_be_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MetricsSpec(**settings)


def test_what_is_printed_has_every_figure_and_a_table_of_the_classes(
    dataset: Dataset, wrong: str, measured: EvaluationResult
) -> None:
    work = plan_evaluation(wrong, dataset=dataset.root, labels="bordered", split="test")
    table = evaluate.result_table(measured, work)
    assert json.loads(json.dumps(table)) == table
    lines = evaluate.summary(table).splitlines()
    assert lines[1].startswith(f"frequency-weighted IoU {measured.figures['fwiou']:.4f}, mean accuracy ")
    assert lines[2].startswith(f"boundary F within  1 px {measured.boundary[0]['f']:.4f} (precision ")
    assert lines[4].startswith(f"calibration error {measured.figures['ece']:.4f}, largest ")
    head, *rows = [line.split() for line in lines[-4:]]
    assert head == ["class", "IoU", "accuracy", "F", "1px", "F", "3px"]
    assert [row[0] for row in rows] == list(SPACE.names)
    assert rows[0][1] == f"{measured.classes[0]['iou']:.4f}"


def test_other_classes_are_refused_with_the_first_differing_names(dataset: Dataset, tmp_path: Path) -> None:
    other = LabelSpace(names=("ground", "rot", "green"))
    with pytest.raises(ValueError, match="class 1 is 'rot' and 'red'"):
        plan_evaluation(publish(tmp_path, space=other), dataset=dataset.root, labels="human", split="test")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split": "tset"}, r"no images in split 'tset' \(did you mean 'test'\?\)"),
        ({"labels": "humann"}, "no label set 'humann'.*did you mean 'human'"),
        ({"labels": "half"}, "lacks 2 of 3 shards"),
        ({"checkpoint": "nowhere"}, "checkpoint: .*nowhere.*model.json"),
        ({"predictor": PredictorSpec(hierarchical=True)}, r"^predictor\.hierarchical = true: .* does not weigh scales"),
    ],
)
def test_what_does_not_fit_is_named_before_work_starts(
    dataset: Dataset, wrong: str, changes: dict[str, Any], message: str
) -> None:
    half = dataset.create_labels("half", label_space=SPACE, plan={})
    rows = [scene(number, space=SPACE, size=(36, 44)) | {"bad_label": False} for number in range(5)]
    half.commit([write_shard(half.uri, ShardKey("test", 0), label_rows(rows))])
    asked = {"labels": "human", "split": "test", **changes}
    with pytest.raises(ValueError, match=message):
        plan_evaluation(asked.pop("checkpoint", wrong), dataset=dataset.root, **asked)


def test_a_split_of_void_alone_is_an_error_and_no_nan(tmp_path: Path, wrong: str) -> None:
    dataset = write_dataset(tmp_path, shard_sizes=(2,), split="test")
    void = dataset.create_labels("void", label_space=SPACE, plan={})
    empty = encode_label(np.full((36, 44), SPACE.void, np.uint8))
    rows = [{**scene(number, space=SPACE, size=(36, 44)), "bad_label": False} for number in range(2)]
    table = label_rows(rows)
    place = table.schema.get_field_index("label")
    table = table.set_column(place, table.schema.field(place), pa.array([empty] * 2, pa.binary()))
    void.commit([write_shard(void.uri, ShardKey("test", 0), table)])
    with inline_shards(), pytest.raises(ValueError, match="no pixel of split 'test' has a known class"):
        evaluate_checkpoint(wrong, dataset=str(tmp_path), labels="void", split="test")


def test_an_image_of_another_size_than_its_label_is_skipped(tmp_path: Path, wrong: str) -> None:
    dataset = write_dataset(tmp_path, shard_sizes=(1,), split="test")
    for table, rows in (
        (dataset.images, image_rows([{**scene(1, space=SPACE, size=(20, 30)), "bad_image": False}])),
        (dataset.labels("human"), label_rows([{**scene(1, space=SPACE, size=(36, 44)), "bad_label": False}])),
    ):
        table.commit([write_shard(table.uri, ShardKey("test", 1), rows)])
    with inline_shards():
        found = evaluate_checkpoint(wrong, dataset=str(tmp_path), labels="human", split="test")
    assert found.reasons == {"image and label differ in size": 1}
    assert found.evaluated == 1


def test_an_evaluation_that_breaks_off_while_it_is_written_leaves_no_result_of_an_earlier_one(
    dataset: Dataset, wrong: str, measured: EvaluationResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pictures").mkdir()
    for name in ("result.json", "job.json", "pictures/fixed-07.png"):
        (tmp_path / name).write_text("{}")
    job = EvaluateJob(
        checkpoint=wrong,
        dataset=dataset.root,
        labels="bordered",
        output=str(tmp_path),
        tracking=TrackingSpec(enabled=False),
    )

    def full(result: EvaluationResult, *, output: str) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(evaluate, "run_evaluation", lambda *_, **__: measured)
    monkeypatch.setattr(evaluate, "ray_session", lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setattr(evaluate, "preflight", lambda *_: None)
    monkeypatch.setattr(evaluate, "write_evaluation", full)
    with pytest.raises(OSError, match="No space left"):
        evaluate.run(job)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["job.json"]
    assert EvaluateJob.model_validate_json((tmp_path / "job.json").read_text()) == job


def test_the_job_writes_figures_pictures_and_tables_and_a_run_in_mlflow(
    dataset: Dataset, wrong: str, measured: EvaluationResult, tmp_path: Path, mlflow_database: str, ray_local: None
) -> None:
    out = tmp_path / "out"
    job = EvaluateJob(
        checkpoint=wrong,
        dataset=dataset.root,
        labels="bordered",
        output=str(out),
        metrics=METRICS,
        num_pictures=3,
        num_worst=1,
        compute=ComputeSpec(actors=2, cpus=1),
        tracking=TrackingSpec(uri=mlflow_database),
        report=False,
    )
    table = evaluate.run(job)
    ious, miou, _ = slow_metrics(evaluated_numbers())
    stored = json.loads((out / "result.json").read_text())
    assert stored == json.loads(json.dumps(table))
    assert stored["miou"] == pytest.approx(miou)
    assert {name: stored[name] for name in measured.figures} == measured.figures, (
        "as one worker has them, to the last bit"
    )
    assert EvaluateJob.model_validate_json((out / "job.json").read_text()) == job
    rows = list(csv.DictReader((out / "per_class.csv").open()))
    assert [float(row["iou"]) for row in rows] == pytest.approx(ious)
    assert len(list(csv.reader((out / "per_image.csv").open()))) == 1 + 9
    for picture in stored["pictures"]:
        assert all((out / "pictures" / picture[view]).is_file() for view in ("image", "truth", "prediction"))

    from mlflow import MlflowClient

    client = MlflowClient(mlflow_database)
    run = client.get_run(stored["mlflow"]["run_id"])
    assert run.data.metrics["val/miou"] == pytest.approx(miou)
    assert run.data.metrics["val/iou/red"] == pytest.approx(ious[1])
    figures = ("fwiou", "mean_accuracy", "boundary_f_1px", "boundary_f_3px", "ece")
    assert {name: run.data.metrics[f"val/{name}"] for name in figures} == {name: stored[name] for name in figures}
    assert client.get_metric_history(run.info.run_id, "val/miou")[0].step == 7
    assert run.data.tags["architecture"] == "tests.oracle_model:OracleSpec"
    assert run.inputs.dataset_inputs[0].dataset.digest == stored["dataset"]["fingerprint"][:36]
    images = [item.path for item in client.list_artifacts(run.info.run_id, "images")]
    assert len([path for path in images if path.endswith(".png")]) == 3
    assert "per_class.json" in {item.path for item in client.list_artifacts(run.info.run_id)}


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(
    dataset: Dataset, wrong: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = EvaluateJob(checkpoint=wrong, dataset=dataset.root, output=str(tmp_path / "out"))
    plan = evaluate.run(job, dry_run=True)["plan"]
    assert (plan["images"], plan["shards"], plan["classes"]) == (12, 3, 3)
    assert json.loads(capsys.readouterr().out)["plan"] == plan
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("compute", "message"),
    [
        ({"actors": 500}, "compute.cpus: 500 actors x 1 CPUs, this machine has"),
        ({"gpus": 64}, "compute.gpus: 1 actors x 64"),
    ],
)
def test_a_dry_run_says_when_this_machine_is_too_small(
    dataset: Dataset,
    wrong: str,
    tmp_path: Path,
    compute: dict[str, Any],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    job = EvaluateJob(checkpoint=wrong, dataset=dataset.root, output=str(tmp_path), compute=ComputeSpec(**compute))
    with pytest.raises(ValueError, match=message):
        evaluate.run(job, dry_run=True)
    elsewhere = job.model_copy(update={"compute": ComputeSpec(**compute, address="ray://head:10001")})
    assert evaluate.run(elsewhere, dry_run=True)["plan"]["compute"]["where"] == "ray://head:10001"


def test_an_output_that_cannot_be_written_is_an_error_before_work_starts(
    dataset: Dataset, wrong: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    job = EvaluateJob(checkpoint=wrong, dataset=dataset.root, output=str(tmp_path / "file" / "out"), tracking=UNTRACKED)
    with pytest.raises(ValueError, match="cannot be written"):
        evaluate.run(job)


def test_classes_that_never_occur_have_no_iou_and_do_not_lower_the_mean(tmp_path: Path) -> None:
    space = LabelSpace(names=("ground", "red", "green", "unicorn"))
    dataset = write_dataset(tmp_path / "data", shard_sizes=(2,), split="test", space=space)
    checkpoint = publish(tmp_path / "model", space=space)
    with inline_shards():
        found = evaluate_checkpoint(checkpoint, dataset=dataset.root, labels="human", split="test")
    assert found.classes[3]["iou"] is None
    assert found.miou == 1.0
    assert not math.isnan(found.pixel_accuracy)
