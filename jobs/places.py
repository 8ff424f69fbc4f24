"""Which settings of a job are places: folders, files and addresses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from pydantic import BaseModel

from pipelines import storage
from seg_models.weights.ensembles import COLLECTED
from seg_models.weights.files import PACKAGE

JobType = TypeVar("JobType", bound=BaseModel)
KEYS = {"dataset", "output", "checkpoint", "init_from", "import_from", "run", "data", "weights"}
SOURCE_KEYS = {"root", "images", "labels", "classes", "index", "synsets"}
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


def absolute(job: JobType) -> JobType:
    """The same job with absolute places, for a process that runs in another folder."""
    table = _change(job.model_dump(mode="json"), (), lambda place: place)
    uri = (table.get("tracking") or {}).get("uri")
    if uri:
        table["tracking"]["uri"] = absolute_database(uri)
    return type(job).model_validate(table)


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
    if path[-2:] == ("presets", "*") and value.startswith(COLLECTED):
        return f"{COLLECTED}{change(storage.normalise(value.removeprefix(COLLECTED)))}"
    return change(storage.normalise(value)) if _is_place(path, value) else value


def _is_place(path: tuple[str, ...], text: str) -> bool:
    if text.startswith((PACKAGE, "http://", "https://")):
        return False
    in_source = len(path) == 2 and path[0] == "source" and path[1] in SOURCE_KEYS
    return path[-1] in KEYS or in_source or path == ("images",)
