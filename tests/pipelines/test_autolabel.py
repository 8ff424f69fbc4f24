"""Teacher labels: classes, threshold, confidence, rejected rows, resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs import autolabel
from jobs.specs import AutolabelJob, TrackingSpec
from pipelines import label_run
from pipelines.autolabel import AutolabelResult, plan_autolabel, run_autolabel
from pipelines.autolabel_worker import AutolabelWorker
from pipelines.images import decode_image
from pipelines.labels import decode_confidence, decode_label
from pipelines.machine import check_machine
from pipelines.samples import Part, build_index
from pipelines.shards import ComputeSpec
from pipelines.tables import Dataset
from seg_models.predictor import Predictor, PredictorSpec
from tests.inline_shards import inline_shards, run_inline
from tests.oracle_model import OracleSpec, publish
from tests.tiny_data import SPACE, scene, write_dataset

# With this sharpness a pixel's confidence depends on how near its colour is to the class colour: 0.55 to 0.7.
UNSURE = OracleSpec(sharpness=1.8)
THRESHOLD = 0.6


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """Seven scenes in three shards; image 1 is rejected, image 4 is torn."""
    return write_dataset(tmp_path / "data", shard_sizes=(3, 2, 2), bad_images=[1], damaged=[4])


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    return publish(tmp_path_factory.mktemp("teacher"), spec=UNSURE)


def label(dataset: Dataset, teacher: str, **changes: Any) -> AutolabelResult:
    settings = {"labels": "teacher", "threshold": THRESHOLD, **changes}
    with inline_shards():
        return run_autolabel(plan_autolabel(teacher, dataset=dataset.root, **settings), compute=ComputeSpec())


def rows_of(dataset: Dataset, table: str) -> list[dict[str, Any]]:
    labels = dataset.labels(table)
    return [row for file in labels.files() for row in labels.read(file.key).to_pylist()]


def test_labels_are_the_teachers_classes_and_void_below_the_threshold(dataset: Dataset, teacher: str) -> None:
    label(dataset, teacher)
    good = [row for row in rows_of(dataset, "teacher") if row["reason"] is None]
    assert [row["id"] for row in good] == [f"scene-{number:04d}" for number in (0, 2, 3, 5, 6)]
    predictor = Predictor(UNSURE.build(3))
    for row in good:
        number = int(row["id"].removeprefix("scene-"))
        found = predictor.predict(decode_image(scene(number, space=SPACE, size=(36, 44))["image"]))
        expected = np.where(found.confidence < THRESHOLD, SPACE.void, found.label)
        stored = decode_label(row["label"])
        assert np.array_equal(stored, expected)
        assert stored.dtype == SPACE.dtype
        kept = stored != SPACE.void
        assert 0 < kept.mean() < 1
        drawn = scene(number, space=SPACE, size=(36, 44))["label"]
        assert np.array_equal(stored[kept], drawn[kept])


def test_confidence_is_kept_for_every_pixel_so_that_a_higher_threshold_needs_no_second_run(
    dataset: Dataset, teacher: str, tmp_path: Path
) -> None:
    label(dataset, teacher, threshold=0.0, labels="all")
    label(dataset, teacher, threshold=0.65, labels="strict")
    for low, high in zip(rows_of(dataset, "all"), rows_of(dataset, "strict"), strict=True):
        if low["reason"] is None:
            everything, confidence = decode_label(low["label"]), decode_confidence(low["confidence"])
            assert not (everything == SPACE.void).any()
            strict = np.where(confidence < np.float32(0.65), SPACE.void, everything)
            assert np.array_equal(strict, decode_label(high["label"]))
            assert low["confidence"] == high["confidence"]


def test_rows_that_cannot_be_labelled_keep_their_place_with_a_reason(dataset: Dataset, teacher: str) -> None:
    result = label(dataset, teacher)
    rows = rows_of(dataset, "teacher")
    assert [row["id"] for row in rows] == [f"scene-{number:04d}" for number in range(7)]
    assert rows[1]["reason"] == "image was rejected: planted"
    assert (rows[4]["label"], rows[4]["confidence"]) == (None, None)
    assert rows[4]["reason"]
    assert (result.images_in, result.labelled, result.rejected) == (7, 5, 2)
    assert sum(result.reasons.values()) == 2


def test_the_kept_share_of_each_class_is_what_reaches_the_threshold(dataset: Dataset, teacher: str) -> None:
    result = label(dataset, teacher)
    kept: dict[str, list[float]] = {name: [] for name in SPACE.names}
    for row in rows_of(dataset, "teacher"):
        if row["reason"] is None:
            drawn = scene(int(row["id"].removeprefix("scene-")), space=SPACE, size=(36, 44))["label"]
            for index, name in enumerate(SPACE.names):
                kept[name] += (decode_label(row["label"])[drawn == index] != SPACE.void).tolist()
    assert result.kept_share == pytest.approx({name: float(np.mean(values)) for name, values in kept.items()})
    assert result.kept == pytest.approx(float(np.mean([v for values in kept.values() for v in values])))
    assert result.class_pixels["red"] == sum(kept["red"])


def test_a_broken_run_continues_to_the_same_bytes_as_an_undisturbed_one(
    dataset: Dataset, teacher: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = label(dataset, teacher, labels="whole")

    def first_shard_only(worker: type, *, tasks: Any, on_result: Any, **rest: Any) -> Any:
        run_inline(worker, tasks=tasks[:1], on_result=on_result, **rest)
        raise KeyboardInterrupt

    monkeypatch.setattr(label_run, "run_shards", first_shard_only)
    work = plan_autolabel(teacher, dataset=dataset.root, labels="broken", threshold=THRESHOLD)
    with pytest.raises(KeyboardInterrupt):
        run_autolabel(work, compute=ComputeSpec())
    assert len(dataset.labels("broken").committed()) == 1
    monkeypatch.undo()
    continued = label(dataset, teacher, labels="broken")
    assert (continued.resumed_shards, continued.num_shards) == (1, 3)
    assert continued.digest == whole.digest
    assert continued.kept_share == whole.kept_share
    again = label(dataset, teacher, labels="broken")
    assert (again.resumed_shards, again.digest) == (3, whole.digest)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"threshold": 0.9}, "threshold"),
        ({"predictor": PredictorSpec(flip=True)}, "predictor.flip"),
        ({"compute": ComputeSpec(cpus=2)}, "threads"),
    ],
)
def test_other_settings_do_not_continue_a_label_set(
    dataset: Dataset, teacher: str, changes: dict[str, Any], key: str
) -> None:
    label(dataset, teacher)
    with pytest.raises(ValueError, match=rf"made with other settings \(plan\.{key}"):
        label(dataset, teacher, **changes)


def test_another_teacher_does_not_continue_a_label_set(dataset: Dataset, teacher: str, tmp_path: Path) -> None:
    label(dataset, teacher)
    model = UNSURE.build(3)
    model.colors.data += 0.01
    from seg_models.checkpoints import save_model

    save_model(tmp_path / "other", model=model, spec=UNSURE, label_space=SPACE.model_dump(mode="json"))
    with pytest.raises(ValueError, match=r"plan\.checkpoint_sha256"):
        label(dataset, str(tmp_path / "other"))


def test_a_machine_with_another_torch_is_refused(dataset: Dataset, teacher: str) -> None:
    plan = plan_autolabel(teacher, dataset=dataset.root, labels="x").worker_args["plan"]
    check_machine(plan)
    with pytest.raises(ValueError, match=r"torch is .*, the plan says 0\.4"):
        check_machine(plan.model_copy(update={"torch": "0.4"}))


def test_a_teacher_whose_weights_change_under_way_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    work = plan_autolabel(publish(tmp_path / "m", spec=UNSURE), dataset=dataset.root, labels="x")
    model = UNSURE.build(3)
    model.colors.data += 0.01
    from seg_models.checkpoints import save_model

    save_model(tmp_path / "m", model=model, spec=UNSURE, label_space=SPACE.model_dump(mode="json"))
    with pytest.raises(ValueError, match="other weights than when the job started"):
        AutolabelWorker(**work.worker_args, labels_uri=str(tmp_path))


def test_too_many_rejected_rows_stop_the_run(dataset: Dataset, teacher: str) -> None:
    work = plan_autolabel(teacher, dataset=dataset.root, labels="x")
    with inline_shards(), pytest.raises(ValueError, match=r"max_rejected = 0\.1"):
        run_autolabel(work, compute=ComputeSpec(), max_rejected=0.1)


def test_human_and_teacher_labels_can_be_trained_on_together(dataset: Dataset, teacher: str) -> None:
    label(dataset, teacher)
    parts = [Part(dataset=dataset.root, labels=name, split="train") for name in ("human", "teacher")]
    index = build_index(parts)
    assert index.num_samples == 6 + 5
    assert index.label_space.names == SPACE.names


def test_the_job_runs_on_ray_writes_its_result_and_equals_the_run_without_ray(
    dataset: Dataset, teacher: str, ray_local: None, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = label(dataset, teacher, labels="alone")
    job = AutolabelJob(
        checkpoint=teacher,
        dataset=dataset.root,
        threshold=THRESHOLD,
        tracking=TrackingSpec(enabled=False),
        report=False,
    )
    plan = autolabel.run(job, dry_run=True)["plan"]
    assert (plan["images"], plan["shards"], plan["shards_done"]) == (7, 3, 0)
    assert dataset.label_sets() == ["alone", "human"]
    capsys.readouterr()
    table = autolabel.run(job)
    output = Path(dataset.root) / "runs" / "autolabel-teacher"
    assert json.loads((output / "result.json").read_text()) == json.loads(json.dumps(table))
    assert AutolabelJob.model_validate_json((output / "job.json").read_text()) == job
    assert table["digest"] == alone.digest
    assert (table["images_in"], table["labelled"], table["rejected"]) == (7, 5, 2)
    assert "image was rejected" in capsys.readouterr().out
