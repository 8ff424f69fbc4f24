"""Which settings of a job are places, and how they travel to another machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.places import absolute, absolute_database, places
from jobs.specs import DemoJob, EvaluateJob, IngestJob, Job, PredictJob, PsslJob, ReportJob, TrackingSpec, TrainJob
from pipelines.pssl_spec import EnsembleSpec


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return str(tmp_path)


def test_places_are_absolute_and_named_once(here: str) -> None:
    job = EvaluateJob(checkpoint="s3://b/c", dataset="d", output="d")
    assert places(job) == ["s3://b/c", f"{here}/d"]


def test_the_source_of_an_ingest_and_the_parts_of_training_data_are_places(here: str) -> None:
    ingest = IngestJob.model_validate(
        {"source": {"kind": "folder", "images": "in/images", "labels": "in/labels"}, "dataset": "d"}
    )
    assert {f"{here}/in/images", f"{here}/in/labels", f"{here}/d"} <= set(places(ingest))
    train = TrainJob.model_validate(
        {"name": "x", "recipe": "pspnet_resnet50_voc", "data": [{"dataset": "a"}, {"dataset": "b"}], "output": "o"}
    )
    assert places(train) == [f"{here}/a", f"{here}/b", f"{here}/o"]
    assert f"{here}/photos" in places(PredictJob(checkpoint="c", images="photos"))


def test_list_files_of_splits_and_classes_are_places_and_folder_names_are_not(here: str) -> None:
    source = {"kind": "folder", "images": "in", "classes": ["in/classes.txt"]}
    splits = {"train": "lists/train.txt", "val": "later"}
    job = absolute(IngestJob.model_validate({"source": {**source, "splits": splits}, "dataset": "d"}))
    assert {f"{here}/in/classes.txt", f"{here}/lists/train.txt"} <= set(places(job))
    found = job.source.model_dump()["splits"]
    assert found == {"train": f"{here}/lists/train.txt", "val": "later"}


def test_local_weights_are_places_and_those_of_packages_and_hubs_are_not(here: str) -> None:
    classifiers = [
        {"name": "a", "weights": "w/a.pth"},
        {"name": "b", "weights": "package:geffnet/x.pth"},
        {"name": "c", "weights": "https://example.org/c.pth"},
        {"name": "d"},
    ]
    job = PsslJob.model_validate({"dataset": "s3://b/d", "ensemble": {"classifiers": classifiers}})
    assert places(job) == ["s3://b/d", f"{here}/w/a.pth"]


def test_folders_of_named_ensembles_are_places(here: str) -> None:
    presets = ["timm15", "timm15:w/fifteen", "collected:s3://b/w", "efficientnet_lite"]
    job = PsslJob.model_validate({"dataset": "d", "ensemble": presets[1]})
    assert places(job) == [f"{here}/d", f"{here}/w/fifteen"]
    several = absolute(job.model_copy(update={"ensemble": EnsembleSpec(presets=tuple(presets))}))
    assert several.ensemble.presets == ("timm15", f"timm15:{here}/w/fifteen", "collected:s3://b/w", "efficientnet_lite")


def test_a_job_for_another_folder_keeps_everything_but_its_relative_paths(here: str) -> None:
    job = EvaluateJob.model_validate(
        {"checkpoint": "s3://b/c", "dataset": "d", "split": "val", "tracking": {"uri": "sqlite:///runs.db"}}
    )
    found = absolute(job)
    assert (found.checkpoint, found.dataset, found.output) == ("s3://b/c", f"{here}/d", f"{here}/out/evaluate")
    assert found.tracking.uri == f"sqlite:///{here}/runs.db"
    assert found.model_copy(update={"dataset": "d", "output": job.output, "tracking": job.tracking}) == job


def test_a_tracking_server_keeps_its_address() -> None:
    assert absolute_database("http://host:5000") == "http://host:5000"


def test_the_default_database_of_a_job_for_another_folder_lies_in_this_one(
    here: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = EvaluateJob(checkpoint="s3://b/c", dataset="s3://b/d")
    assert absolute(job).tracking.uri == f"sqlite:///{here}/out/mlflow.db"
    off = TrackingSpec(enabled=False)
    for other in (DemoJob(), ReportJob(run="s3://b/run"), job.model_copy(update={"tracking": off})):
        assert absolute(other).tracking == other.tracking
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host:5000")
    assert absolute(job).tracking.uri is None, "the variable travels with the job"


@pytest.mark.parametrize(
    "job",
    [
        EvaluateJob(checkpoint="c", dataset="d", output="s3://b/out"),
        PsslJob.model_validate({"dataset": "s3://b/out", "ensemble": {"classifiers": [{"name": "a"}]}}),
    ],
)
def test_a_job_for_an_object_store_is_told_to_name_a_tracking_server(
    job: Job, here: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        ValueError, match=r"s3://b/out.*MLFLOW_TRACKING_URI or tracking\.uri.*tracking\.enabled = false"
    ):
        absolute(job)
    for tracking in (TrackingSpec(enabled=False), TrackingSpec(uri="http://host:5000")):
        assert absolute(job.model_copy(update={"tracking": tracking})).tracking == tracking
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host:5000")
    assert absolute(job).tracking.uri is None
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@host:5000")
    with pytest.raises(ValueError, match="MLFLOW_TRACKING_PASSWORD"):
        absolute(job)
