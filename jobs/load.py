"""Job files and flags -> a checked job, with errors a person can act on."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from seg_models.spec import did_you_mean, merge

JobType = TypeVar("JobType", bound=BaseModel)


def read_table(path: str) -> dict[str, Any]:
    """The table in a job file: TOML, or the resolved job.json that every run leaves beside its result.

    Raises:
        ValueError: no such file, or it cannot be read (with line and column).
    """
    file = Path(path)
    if not file.is_file():
        beside = [other.name for other in file.parent.glob("*.toml")] if file.parent.is_dir() else []
        raise ValueError(f"{path}: no such job file{did_you_mean(file.name, beside)}")
    try:
        text = file.read_text(encoding="utf-8")
        table = json.loads(text) if file.suffix == ".json" else tomllib.loads(text)
    except (tomllib.TOMLDecodeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read as {file.suffix.lstrip('.').upper() or 'TOML'}: {error}") from error
    if not isinstance(table, dict):
        raise ValueError(f"{path}: a table of settings is needed, found {type(table).__name__}")
    return table


def parse_flags(arguments: Sequence[str]) -> dict[str, Any]:
    """Flags -> nested table: `--recipe.optimizer.lr 0.02 --recipe.augment.crop 240 320 --no-report`.

    A value is read as TOML where it is TOML, else as text; several values make a list.

    Raises:
        ValueError: a value without a flag before it.
    """
    table: dict[str, Any] = {}
    position = 0
    while position < len(arguments):
        flag = arguments[position]
        if not flag.startswith("--") or flag == "--":
            raise ValueError(f"unexpected argument {flag!r}; settings are given as --key value")
        key, given, inline = flag[2:].partition("=")
        position += 1
        values = [inline] if given else []
        while not given and position < len(arguments) and not arguments[position].startswith("--"):
            values.append(arguments[position])
            position += 1
        _put(table, key.replace("-", "_"), values)
    return table


def _put(table: dict[str, Any], key: str, values: list[str]) -> None:
    *above, last = key.split(".")
    value: Any = True
    if not values and last.startswith("no_"):
        last, value = last.removeprefix("no_"), False
    elif len(values) == 1:
        value = _value(values[0])
    elif values:
        value = [_value(text) for text in values]
    for name in above:
        table = table.setdefault(name, {})
    table[last] = value


def _value(text: str) -> Any:
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
    return value if isinstance(value, (bool, int, float, str, list, dict)) else text


def load_job(kind: type[JobType], *, path: str | None, flags: Mapping[str, Any]) -> JobType:
    """A checked job from a file and flags; flags win.

    Raises:
        ValueError: one line per problem, with file, key, value found, what is allowed and the nearest valid name.
    """
    table = merge(read_table(path) if path else {}, flags)
    try:
        return kind.model_validate(table)
    except ValidationError as error:
        lines = [_problem(kind, dict(problem)) for problem in error.errors()]
        raise ValueError("\n".join(f"{path or 'flags'}: {line}" for line in dict.fromkeys(lines))) from error


def _problem(kind: type[BaseModel], problem: dict[str, Any]) -> str:
    place = [part for part in problem["loc"] if not _is_branch(part)]
    dotted = ".".join(str(part) for part in place)
    found = problem["input"]
    match problem["type"]:
        case "extra_forbidden":
            known = _keys_at(kind, place[:-1])
            return f"{dotted}: unknown key{did_you_mean(str(place[-1]), known)}; allowed: {', '.join(known) or 'none'}"
        case "missing":
            return f"{dotted}: is needed and not given"
        case "union_tag_invalid":
            allowed = problem["ctx"]["expected_tags"].replace("'", "")
            tag = str(problem["ctx"]["tag"])
            return f"{dotted}.kind: found {tag!r}{did_you_mean(tag, allowed.split(', '))}; allowed: {allowed}"
        case "union_tag_not_found":
            return f"{dotted}.kind: is needed and not given"
        case "literal_error":
            allowed = problem["ctx"]["expected"].replace("'", "")
            options = allowed.replace(" or ", ", ").split(", ")
            return f"{dotted}: found {found!r}{did_you_mean(str(found), options)}; allowed: {allowed}"
        case "value_error":
            return f"{dotted}: {problem['msg'].removeprefix('Value error, ')}" if dotted else problem["msg"]
    return f"{dotted}: found {_short(found)}; {problem['msg'][0].lower()}{problem['msg'][1:]}"


def _is_branch(part: Any) -> bool:
    """Whether a part of a pydantic location is no key but the name of a union's branch."""
    return isinstance(part, str) and ("[" in part or part.startswith("function-"))


def _keys_at(kind: type[BaseModel], place: Sequence[Any]) -> list[str]:
    """Names of the fields of the settings class at a place inside a job; none where it cannot be told."""
    current: Any = kind
    for part in place:
        options = [option for option in _classes(current) if isinstance(part, str) and part in option.model_fields]
        if not options:
            tagged = [option for option in _classes(current) if _tag(option) == part]
            if not tagged:
                continue
            current = tagged[0]
            continue
        current = options[0].model_fields[part].annotation
    return sorted({name for option in _classes(current) for name in option.model_fields})


def _tag(kind: type[BaseModel]) -> Any:
    field = kind.model_fields.get("kind")
    return field.default if field else None


def _classes(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for inner in getattr(annotation, "__args__", ()) for found in _classes(inner)]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
