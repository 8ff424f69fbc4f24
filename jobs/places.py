"""Which settings of a job are places: folders, files and addresses."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

from pydantic import BaseModel

from jobs.specs import AutolabelJob, DemoJob, IngestJob, Job, PsslJob, RealJob, ReportJob
from jobs.tracking import tracking_uri
from pipelines import storage
from seg_models.weights.ensembles import split_folder
from seg_models.weights.files import PACKAGE

JobType = TypeVar("JobType", bound=BaseModel)
KEYS = {
    "dataset",
    "output",
    "checkpoint",
    "baseline",
    "evaluation",
    "init_from",
    "import_from",
    "run",
    "data",
    "weights",
}
SOURCE_KEYS = {"root", "images", "labels", "classes", "index", "synsets"}
LIST_FILES = {("source", "splits"), ("source", "classes")}  # tables and lists whose entries may be text files
FOREIGN_TABLES = {"model_kwargs", "arguments"}  # their keys belong to other libraries
SQLITE = "sqlite:///"


def places(job: BaseModel) -> list[str]:
    """The folders, files and addresses a job names, absolute, each once, in the order of its settings."""
    found: list[str] = []

    def collect(place: str) -> str:
        found.append(place)
        return place

    _change(job.model_dump(mode="json"), (), collect)
    return list(dict.fromkeys(found))


def output_of(job: Job) -> str:
    """Where a job writes."""
    if isinstance(job, (IngestJob, PsslJob, AutolabelJob)):
        return job.dataset
    return str(getattr(job, "output", "."))


def absolute(job: JobType) -> JobType:
    """The same job with absolute places, its MLflow database among them, for a process that runs in another folder.

    Raises:
        ValueError: the job would lose its MLflow run there, or its tracking address holds a password.
    """
    table = _change(job.model_dump(mode="json"), (), lambda place: place)
    if isinstance(job, Job):
        table["tracking"]["uri"] = _tracking_elsewhere(job)
    return type(job).model_validate(table)


def _tracking_elsewhere(job: Job) -> str | None:
    """The tracking address of a job that starts in another folder; None where it needs none or its environment says.

    The default is a file in the present folder, which the driver sees where it sees local outputs.
    """
    if job.tracking.uri:
        return absolute_database(tracking_uri(job))
    if not job.tracking.enabled or isinstance(job, (DemoJob, RealJob, ReportJob)):  # walks have a file of their own
        return None
    if os.environ.get("MLFLOW_TRACKING_URI"):
        tracking_uri(job)  # refuses a password
        return None
    if storage.is_remote(output_of(job)):
        raise ValueError(
            f"tracking.uri: none given for a job that writes to {output_of(job)}; name the MLflow server in "
            "MLFLOW_TRACKING_URI or tracking.uri, or set tracking.enabled = false"
        )
    return tracking_uri(job)


def absolute_database(uri: str) -> str:
    """A tracking URI whose SQLite file, if it is one, has an absolute path."""
    return f"{SQLITE}{storage.normalise(uri.removeprefix(SQLITE))}" if uri.startswith(SQLITE) else uri


def _change(value: Any, path: tuple[str, ...], change: Callable[[str], str]) -> Any:
    """A copy of a settings table in which `change` has been applied to every place, made absolute."""
    if isinstance(value, dict):
        return {key: _change(inside, (*path, key), change) for key, inside in value.items()}
    if isinstance(value, list):
        return [_change(inside, (*path, "*"), change) for inside in value]
    if not isinstance(value, str) or FOREIGN_TABLES & set(path):
        return value
    if path[-2:] == ("presets", "*"):
        kind, folder = split_folder(value)
        return value if folder is None else f"{kind}:{change(storage.normalise(folder))}"
    return change(storage.normalise(value)) if _is_place(path, value) else value


def _is_place(path: tuple[str, ...], text: str) -> bool:
    if text.startswith((PACKAGE, "http://", "https://")):
        return False
    in_source = len(path) == 2 and path[0] == "source" and path[1] in SOURCE_KEYS
    is_list = path[:2] in LIST_FILES and text.endswith(".txt")
    return path[-1] in KEYS or in_source or is_list or path == ("images",)
