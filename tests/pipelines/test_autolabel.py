"""Teacher labels: classes, confidence, thresholds without a teacher, coarse labels, rejected rows, resume, rounds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from jobs import autolabel
from jobs.report_pictures import label_examples
from jobs.specs import AutolabelJob, TrackingSpec
from pipelines import label_run
from pipelines.autolabel import AutolabelResult, run_autolabel
from pipelines.autolabel_plan import plan_autolabel, plan_derived
from pipelines.autolabel_worker import TeacherWorker
from pipelines.codecs import decode_label
from pipelines.confidence import decode_confidence, decode_steps
from pipelines.images import decode_image
from pipelines.keep import BorderSpec, CoarseSpec, KeepSpec
from pipelines.labels import LabelSpace
from pipelines.machine import check_machine
from pipelines.samples import Part, build_index
from pipelines.schema import ShardKey
from pipelines.shards import ComputeSpec, ShardError
from pipelines.tables import Dataset
from seg_models.checkpoints import save_model
from seg_models.predictor import Predictor, PredictorSpec
from tests.inline_shards import inline_shards, run_inline
from tests.oracle_model import Oracle, OracleSpec, publish
from tests.tiny_data import SPACE, add_labels, scene, write_dataset

# With this sharpness a pixel's confidence depends on how near its colour is to the class colour: 0.55 to 0.7.
UNSURE = OracleSpec(sharpness=1.8)
KEEP = KeepSpec(threshold=0.6)
# The teacher sees red where there is green and the other way round.
CONFUSED = OracleSpec(answers=(0, 2, 1), sharpness=1.8)


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """Seven scenes in three shards; image 1 is rejected, image 4 is torn."""
    return write_dataset(tmp_path / "data", shard_sizes=(3, 2, 2), bad_images=[1], damaged=[4])


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    return publish(tmp_path_factory.mktemp("teacher"), spec=UNSURE)


def label(dataset: Dataset, teacher: str, **changes: Any) -> AutolabelResult:
    settings = {"labels": "teacher", "keep": KEEP, **changes}
    with inline_shards():
        return run_autolabel(plan_autolabel(teacher, dataset=dataset.root, **settings), compute=ComputeSpec())


def derive(dataset: Dataset, source: str, *, labels: str, keep: KeepSpec) -> AutolabelResult:
    with inline_shards():
        work = plan_derived(source, dataset=dataset.root, labels=labels, keep=keep)
        return run_autolabel(work, compute=ComputeSpec())


def paths(dataset: Dataset, table: str) -> list[str]:
    """Files of a label set: each is named by the SHA-256 of its bytes."""
    return [file.path for file in dataset.labels(table).files()]


def drawn(row: dict[str, Any]) -> Any:
    """The true label of a row."""
    return scene(int(row["id"].removeprefix("scene-")), space=SPACE, size=(36, 44))["label"]


def stop_after(shards: int) -> Any:
    """Runs that many shards in this process, in one call or several, then breaks off."""
    left = shards

    def run(worker: type, *, tasks: Any, on_result: Any, **rest: Any) -> Any:
        nonlocal left
        some = tasks[:left]
        left -= len(some)
        stats = run_inline(worker, tasks=some, on_result=on_result, **rest)
        if not left:
            raise KeyboardInterrupt
        return stats

    return run


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
        expected = np.where(found.confidence < KEEP.threshold, SPACE.void, found.label)
        stored = decode_label(row["label"])
        assert np.array_equal(stored, expected)
        assert stored.dtype == SPACE.dtype
        kept = stored != SPACE.void
        assert 0 < kept.mean() < 1
        assert np.array_equal(stored[kept], drawn(row)[kept])


def test_the_teachers_own_label_set_keeps_every_pixel_with_its_confidence(dataset: Dataset, teacher: str) -> None:
    label(dataset, teacher)
    predictor = Predictor(UNSURE.build(3))
    for row in rows_of(dataset, "teacher-raw"):
        if row["reason"] is None:
            number = int(row["id"].removeprefix("scene-"))
            found = predictor.predict(decode_image(scene(number, space=SPACE, size=(36, 44))["image"]))
            assert np.array_equal(decode_label(row["label"]), found.label)
            assert np.array_equal(decode_steps(row["confidence"]), np.floor(found.confidence * 20 + 1e-6))
            assert decode_confidence(row["confidence"]).max() < 1


@pytest.mark.parametrize(
    "keep",
    [
        KeepSpec(threshold=0.65),
        KeepSpec(threshold=0.0),
        KeepSpec(threshold=1.0),
        KeepSpec(class_thresholds={"red": 0.65, "ground": 0.0}, border=BorderSpec(top=3, right=5)),
    ],
    ids=["higher", "none", "all", "by class"],
)
def test_another_threshold_gives_the_bytes_of_a_direct_run_after_the_teacher_is_gone(
    dataset: Dataset, teacher: str, tmp_path: Path, keep: KeepSpec
) -> None:
    other = write_dataset(tmp_path / "other", shard_sizes=(3, 2, 2), bad_images=[1], damaged=[4])
    direct = label(other, teacher, labels="direct", keep=keep)
    gone = Path(shutil.copytree(teacher, tmp_path / "gone"))
    label(dataset, str(gone))
    shutil.rmtree(gone)
    derived = derive(dataset, "teacher-raw", labels="again", keep=keep)
    assert paths(dataset, "again") == paths(other, "direct")
    assert derived.digest == direct.digest
    assert (derived.kept_share, derived.class_pixels, derived.cut) == (
        direct.kept_share,
        direct.class_pixels,
        direct.cut,
    )
    assert derived.teacher == {"labels": "teacher-raw", "shards_labelled": 0}


def test_the_same_teacher_is_not_asked_twice(dataset: Dataset, teacher: str, monkeypatch: pytest.MonkeyPatch) -> None:
    label(dataset, teacher)

    def refuse(*_: Any) -> None:
        raise AssertionError("the teacher was asked")

    monkeypatch.setattr(Oracle, "forward", refuse)
    strict = label(dataset, teacher, labels="strict", keep=KeepSpec(threshold=0.65))
    assert strict.teacher == {"labels": "teacher-raw", "shards_labelled": 0}
    assert dataset.label_sets() == ["human", "strict", "teacher", "teacher-raw"]
    with pytest.raises(ShardError, match="the teacher was asked"):
        label(dataset, teacher, labels="flipped", predictor=PredictorSpec(flip=True))


def test_a_derived_label_set_names_the_one_it_came_from_and_stands_for_it(dataset: Dataset, teacher: str) -> None:
    label(dataset, teacher)
    derive(dataset, "teacher", labels="strict", keep=KeepSpec(threshold=0.65))
    plan = dataset.labels("strict").info["plan"]
    assert plan["source"] == "teacher-raw"
    assert plan["teacher"] == dataset.labels("teacher-raw").info["plan"]
    assert plan["keep"]["threshold"] == 0.65


@pytest.mark.parametrize(
    ("source", "labels", "message"),
    [
        ("human", "x", "label set 'human' was not written by a teacher, it has no confidence"),
        ("teacher-row", "x", r"no label set 'teacher-row'.*did you mean 'teacher-raw'"),
        ("teacher", "teacher-raw", "holds what the teacher said of every pixel; choose another name"),
    ],
)
def test_what_cannot_be_derived_from_is_refused(
    dataset: Dataset, teacher: str, source: str, labels: str, message: str
) -> None:
    label(dataset, teacher)
    with pytest.raises(ValueError, match=message):
        plan_derived(source, dataset=dataset.root, labels=labels)


def test_a_teachers_label_set_that_is_not_whole_is_not_derived_from(
    dataset: Dataset, teacher: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(label_run, "run_shards", stop_after(1))
    with pytest.raises(KeyboardInterrupt):
        run_autolabel(plan_autolabel(teacher, dataset=dataset.root, labels="teacher"), compute=ComputeSpec())
    with pytest.raises(ValueError, match=r"'teacher-raw' lacks 2 of 3 shards"):
        plan_derived("teacher-raw", dataset=dataset.root, labels="x")


def test_classes_are_taken_from_coarse_labels_and_counted_apart(dataset: Dataset, tmp_path: Path) -> None:
    """The teacher takes red for green and green for red; people drew red right."""
    confused = publish(tmp_path / "confused", spec=CONFUSED)
    keep = KeepSpec(threshold=0.0, coarse=CoarseSpec(labels="human", classes=("red",)))
    result = label(dataset, confused, keep=keep)
    for row in rows_of(dataset, "teacher"):
        if row["reason"] is None:
            true = drawn(row)
            expected = np.select([true == 1, true == 2], [1, 2], 0)  # where either says red, people are right
            assert np.array_equal(decode_label(row["label"]), expected)
    red, green = (result.class_pixels[name] for name in ("red", "green"))
    assert result.coarse_pixels == {"red": red, "green": green}
    assert result.kept_pixels["red"] == result.kept_pixels["green"] == 0
    assert result.kept_share["ground"] == 1.0


def test_a_row_without_a_coarse_label_is_rejected_with_the_reason(tmp_path: Path, teacher: str) -> None:
    dataset = write_dataset(tmp_path / "data", shard_sizes=(3, 2), bad_labels=[3])
    keep = KeepSpec(coarse=CoarseSpec(labels="human", classes=("red",)))
    result = label(dataset, teacher, keep=keep)
    assert (result.labelled, result.rejected) == (4, 1)
    assert dataset.labels("teacher").reasons() == {"scene-0003": "no coarse label (planted)"}


def test_coarse_labels_that_do_not_fit_are_refused_before_work_starts(dataset: Dataset, teacher: str) -> None:
    other = LabelSpace(names=("ground", "blue", "green"))
    add_labels(dataset, "others", space=other, shards={ShardKey("train", 0): (0, 1, 2)})
    add_labels(dataset, "part", space=SPACE, shards={ShardKey("train", 0): (0, 1, 2)})
    for name, message in (
        ("others", "'others' has another class list than the teacher"),
        ("part", r"'part' lacks 2 shards \(train/00001, train/00002"),
        ("humann", "did you mean 'human'"),
    ):
        keep = KeepSpec(coarse=CoarseSpec(labels=name, classes=("red",)))
        with pytest.raises(ValueError, match=message):
            plan_autolabel(teacher, dataset=dataset.root, labels="x", keep=keep)
    assert "x-raw" not in dataset.label_sets()


def test_what_was_cut_is_told_by_cause(dataset: Dataset, teacher: str) -> None:
    result = label(dataset, teacher, keep=KeepSpec(threshold=0.6, border=BorderSpec(left=11)))
    void = total = outside = 0
    for row in rows_of(dataset, "teacher"):
        if row["reason"] is None:
            stored = decode_label(row["label"])
            assert (stored[:, :11] == SPACE.void).all()
            void, total, outside = void + int((stored == SPACE.void).sum()), total + stored.size, outside + 36 * 11
    assert result.cut == pytest.approx({"border": outside / total, "threshold": (void - outside) / total})
    assert result.kept == pytest.approx(1 - void / total)
    assert sum(result.kept_pixels.values()) == total - void


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


@pytest.mark.parametrize("shards", [1, 3, 4], ids=["in the teacher", "between", "in deriving"])
def test_a_broken_run_continues_to_the_same_bytes_as_an_undisturbed_one(
    dataset: Dataset, teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shards: int
) -> None:
    other = write_dataset(tmp_path / "other", shard_sizes=(3, 2, 2), bad_images=[1], damaged=[4])
    whole = label(other, teacher)
    monkeypatch.setattr(label_run, "run_shards", stop_after(shards))
    with pytest.raises(KeyboardInterrupt):
        run_autolabel(plan_autolabel(teacher, dataset=dataset.root, labels="teacher", keep=KEEP), compute=ComputeSpec())
    assert len(dataset.labels("teacher-raw").committed()) == min(shards, 3)
    assert len(dataset.labels("teacher").committed()) == max(shards - 3, 0)
    monkeypatch.undo()
    continued = label(dataset, teacher)
    assert continued.teacher["shards_labelled"] == 3 - min(shards, 3)
    assert (continued.resumed_shards, continued.num_shards) == (max(shards - 3, 0), 3)
    assert (paths(dataset, "teacher"), continued.digest) == (paths(other, "teacher"), whole.digest)
    assert continued.kept_share == whole.kept_share
    again = label(dataset, teacher)
    assert (again.resumed_shards, again.digest) == (3, whole.digest)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"keep": KeepSpec(threshold=0.9)}, "keep.threshold"),
        ({"keep": KeepSpec(threshold=0.6, border=BorderSpec(top=1))}, "keep.border.top"),
        ({"predictor": PredictorSpec(flip=True)}, "teacher.predictor.flip"),
        ({"compute": ComputeSpec(cpus=2)}, "teacher.threads"),
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
    save_model(tmp_path / "other", model=model, spec=UNSURE, label_space=SPACE.model_dump(mode="json"))
    with pytest.raises(ValueError, match=r"plan\.teacher\.checkpoint_sha256"):
        label(dataset, str(tmp_path / "other"))


def test_a_machine_with_another_torch_is_refused(dataset: Dataset, teacher: str) -> None:
    plan = plan_autolabel(teacher, dataset=dataset.root, labels="x").worker_args["plan"].teacher
    check_machine(plan)
    with pytest.raises(ValueError, match=r"torch is .*, the plan says 0\.4"):
        check_machine(plan.model_copy(update={"torch": "0.4"}))


def test_a_teacher_whose_weights_change_under_way_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    work = plan_autolabel(publish(tmp_path / "m", spec=UNSURE), dataset=dataset.root, labels="x")
    assert work.teacher_work is not None
    model = UNSURE.build(3)
    model.colors.data += 0.01
    save_model(tmp_path / "m", model=model, spec=UNSURE, label_space=SPACE.model_dump(mode="json"))
    with pytest.raises(ValueError, match="other weights than when the job started"):
        TeacherWorker(**work.teacher_work.worker_args, labels_uri=str(tmp_path))


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
    dataset: Dataset, teacher: str, ray_local: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_dataset(tmp_path / "other", shard_sizes=(3, 2, 2), bad_images=[1], damaged=[4])
    alone = label(other, teacher)
    quiet: dict[str, Any] = {"tracking": TrackingSpec(enabled=False), "report": False}
    job = AutolabelJob(checkpoint=teacher, dataset=dataset.root, keep=KEEP, **quiet)
    plan = autolabel.run(job, dry_run=True)["plan"]
    assert (plan["images"], plan["shards"], plan["shards_done"], plan["teacher_shards_to_label"]) == (7, 3, 0, 3)
    assert dataset.label_sets() == ["human"]
    capsys.readouterr()
    table = autolabel.run(job)
    output = Path(dataset.root) / "runs" / "autolabel-teacher"
    assert json.loads((output / "result.json").read_text()) == json.loads(json.dumps(table))
    assert AutolabelJob.model_validate_json((output / "job.json").read_text()) == job
    assert table["digest"] == alone.digest
    assert (table["images_in"], table["labelled"], table["rejected"]) == (7, 5, 2)
    said = capsys.readouterr().out
    assert "image was rejected" in said
    assert f"kept of red ({table['kept_pixels']['red']:,} pixels)" in said
    again = AutolabelJob(
        derive_from="teacher", dataset=dataset.root, labels="strict", keep=KeepSpec(threshold=0.65), **quiet
    )
    assert autolabel.run(again, dry_run=True)["plan"]["teacher_labels"] == "teacher-raw"
    strict = autolabel.run(again)
    assert strict["kept"] < table["kept"]
    assert "from the teacher's label set 'teacher-raw'; no teacher ran" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "either `checkpoint`"),
        ({"checkpoint": "a", "derive_from": "b"}, "either `checkpoint`"),
        ({"derive_from": "b", "predictor": {"flip": True}}, "predictor has no effect with derive_from"),
    ],
)
def test_a_job_has_a_teacher_or_a_label_set_to_derive_from(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        AutolabelJob.model_validate({"dataset": "d", **settings})


def test_mlflow_is_told_what_was_kept_of_each_class_and_why_the_rest_is_void(dataset: Dataset, teacher: str) -> None:
    result = label(dataset, teacher, keep=KeepSpec(threshold=0.6, border=BorderSpec(left=11)))
    told = autolabel.metrics(result)
    assert told["kept"] == result.kept
    for name in SPACE.names:
        assert told[f"kept/{name}"] == result.kept_share[name]
        assert told[f"kept_pixels/{name}"] == result.kept_pixels[name] > 0
    assert {key for key in told if key.startswith("cut/")} == {"cut/threshold", "cut/border"}


def test_the_report_of_a_derived_label_set_shows_the_teachers_confidence(tmp_path: Path, teacher: str) -> None:
    dataset = write_dataset(tmp_path / "data", shard_sizes=(2,))
    label(dataset, teacher)
    page = label_examples(dataset.root, labels="teacher")
    assert "confidence: scene-0000" in page
    assert "confidence" not in label_examples(dataset.root, labels="human")
