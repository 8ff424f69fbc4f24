"""Which settings of a job are places, and how they travel to another machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.places import absolute, absolute_database, places
from jobs.specs import EvaluateJob, IngestJob, PredictJob, PsslJob, TrainJob


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
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


def test_local_weights_are_places_and_those_of_packages_and_hubs_are_not(here: str) -> None:
    classifiers = [
        {"name": "a", "weights": "w/a.pth"},
        {"name": "b", "weights": "package:geffnet/x.pth"},
        {"name": "c", "weights": "https://example.org/c.pth"},
        {"name": "d"},
    ]
    job = PsslJob.model_validate({"dataset": "s3://b/d", "ensemble": {"classifiers": classifiers}})
    assert places(job) == ["s3://b/d", f"{here}/w/a.pth"]


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
