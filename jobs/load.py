"""Job files and flags -> a checked job, with errors a person can act on."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from seg_models.spec import ModelSpec, did_you_mean, preset, spec_class

JobType = TypeVar("JobType", bound=BaseModel)
# A name stands for a whole table; when a flag changes one key of it, the name moves to this key of the table.
NAME_KEYS = {"recipe": "base", "model": "preset", "ensemble": "presets", "pssl": "base"}


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

    A value is read as TOML where it is TOML, else as text; several values make a list. A number among the dotted names
    counts the entries of a list: `--data.0.labels teacher`. A flag for a key inside another flag's value changes that
    value, whichever comes first: `--recipe NAME --recipe.steps 100`.

    Raises:
        ValueError: a value without a flag before it.
    """
    given_values: list[tuple[list[str], Any]] = []
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
        given_values.append(_flag(key.replace("-", "_"), values))
    table: dict[str, Any] = {}
    for names, value in sorted(given_values, key=lambda item: len(item[0])):
        _put(table, names, value)
    return table


def _flag(key: str, values: list[str]) -> tuple[list[str], Any]:
    *above, last = key.split(".")
    if not values and last.startswith("no_"):
        return [*above, last.removeprefix("no_")], False
    if len(values) == 1:
        return [*above, last], _value(values[0])
    return [*above, last], [_value(text) for text in values] or True


def _put(table: dict[str, Any], names: list[str], value: Any) -> None:
    first, *inside = names
    if not inside:
        table[first] = value
    elif isinstance(table.setdefault(first, {}), dict):
        _put(table[first], inside, value)
    else:
        for name in reversed(inside):
            value = {name: value}
        table[first] = lay_over(table[first], value, key=first)


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
    table = lay_over(read_table(path) if path else {}, flags)
    try:
        return kind.model_validate(table)
    except ValidationError as error:
        problems = [_Problem(kind, detail, table) for detail in error.errors()]
        told = [problem for problem in problems if not problem.follows_from(problems)]
        lines = [f"{problem.origin(path, flags)}: {problem.text()}" for problem in told]
        raise ValueError("\n".join(dict.fromkeys(lines))) from error


def lay_over(below: Any, above: Any, *, key: str = "") -> Any:
    """Settings of a file with those of flags laid over them, key by key.

    Raises:
        ValueError: a flag names an entry that a list does not have.
    """
    if not isinstance(above, Mapping):
        return above
    if isinstance(below, str) and key in NAME_KEYS:
        below = {NAME_KEYS[key]: below}
    if isinstance(below or [], list) and above and all(name.isdigit() for name in above):
        return _change_entries(below or [], above, key)
    if not isinstance(below, Mapping):
        return dict(above)
    return {**below, **{name: lay_over(below.get(name), value, key=name) for name, value in above.items()}}


def _change_entries(entries: list[Any], changes: Mapping[str, Any], key: str) -> list[Any]:
    changed = list(entries)
    for name, value in sorted(changes.items(), key=lambda item: int(item[0])):
        if int(name) > len(changed):
            raise ValueError(f"{key}.{name}: there are {len(changed)} entries, counted from 0")
        changed[int(name) :] = [lay_over(next(iter(changed[int(name) :]), None), value), *changed[int(name) + 1 :]]
    return changed


class _Problem:
    """One thing that is wrong, in words for the person who wrote the file."""

    def __init__(self, kind: type[BaseModel], detail: Any, table: Any) -> None:
        self.detail = detail
        self.keys, self.known = _follow(kind, detail["loc"], table)
        self.dotted = ".".join(self.keys)

    def origin(self, path: str | None, flags: Mapping[str, Any]) -> str:
        """The job file, or `flags` where a flag gave the value."""
        place: Any = flags
        for key in self.keys or self._words()[:1]:  # a check of the whole job begins with the key that it is about
            if isinstance(place, list):  # a flag gives a list as a whole
                return "flags"
            if not isinstance(place, Mapping) or key not in place:
                return path or "flags"
            place = place[key]
        return "flags"

    def follows_from(self, problems: Sequence[_Problem]) -> bool:
        """Whether a list only counts as too short because its entries are wrong, or a value that may be one of two
        things is what another problem takes it for.
        """
        inside = [problem for problem in problems if problem.dotted.startswith(f"{self.dotted}.")]
        if self.detail["type"] == "too_short":
            return bool(inside)
        same = [problem for problem in problems if problem.dotted == self.dotted]
        return any(problem._type_mismatch < self._type_mismatch for problem in (*inside, *same))

    @property
    def _type_mismatch(self) -> int:
        """How little the value looks like what was wanted: 0 not its type is wrong, 1 its type, 2 it is no table."""
        kind: str = self.detail["type"]
        return 2 if kind == "model_type" else int(kind.endswith("_type"))

    def _words(self) -> list[str]:
        words: list[str] = self.detail["msg"].removeprefix("Value error, ").split()
        return words

    def text(self) -> str:
        """Key, value found, what is allowed, nearest valid name."""
        found, context = self.detail["input"], self.detail.get("ctx", {})
        match self.detail["type"]:
            case "extra_forbidden":
                hint = did_you_mean(self.keys[-1], self.known)
                return f"{self.dotted}: unknown key{hint}; allowed: {', '.join(self.known) or 'none'}"
            case "missing":
                return f"{self.dotted}: is needed and not given"
            case "union_tag_invalid":
                allowed = context["expected_tags"].replace("'", "")
                hint = did_you_mean(str(context["tag"]), allowed.split(", "))
                return f"{self.dotted}.kind: found {context['tag']!r}{hint}; allowed: {allowed}"
            case "union_tag_not_found":
                return f"{self.dotted}.kind: is needed and not given"
            case "literal_error":
                allowed = context["expected"].replace("'", "")
                hint = did_you_mean(str(found), allowed.replace(" or ", ", ").split(", "))
                return f"{self.dotted}: found {found!r}{hint}; allowed: {allowed}"
            case "value_error":
                text = self.detail["msg"].removeprefix("Value error, ")
                return f"{self.dotted}: {text}" if self.dotted else text
            case "tuple_type" | "list_type":
                return f"{self.dotted}: found {_short(found)}; should be a list, in [ ]"
            case "model_type" | "dict_type":
                return f"{self.dotted}: found {_short(found)}; should be a table of keys, in {{ }}"
        message = self.detail["msg"]
        return f"{self.dotted}: found {_short(found)}; {message[0].lower()}{message[1:]}"


def _follow(kind: type[BaseModel], place: Sequence[Any], table: Any) -> tuple[list[str], list[str]]:
    """The dotted key of a pydantic location without the names of union branches, and the keys allowed beside it."""
    keys: list[str] = []
    current: Any = kind
    beside: list[type[BaseModel]] = []
    found, above, held = table, None, None
    for part in place:
        options = _classes(current)
        if ModelSpec in options and isinstance(found, Mapping):
            held = _meant(found, above, held)
            options = [_kind(held) if option is ModelSpec else option for option in options]
        holders = [option for option in options if part in option.model_fields]
        tagged = [option for option in options if _tag(option) == part]
        if holders:
            beside, current = holders, holders[0].model_fields[part].annotation
        elif tagged:
            current = tagged[0]
            continue
        elif _is_branch(part):
            continue
        elif not isinstance(part, int):
            beside = options
        keys.append(str(part))
        found, above, held = _inside(found, part), found, getattr(held, str(part), None)
    return keys, sorted({name for option in beside for name in option.model_fields})


def _inside(value: Any, part: Any) -> Any:
    """What a file holds at a key or number, or None."""
    if isinstance(value, Mapping):
        return value.get(part)
    return value[part] if isinstance(value, list) and isinstance(part, int) and part < len(value) else None


def _meant(found: Mapping[str, Any], above: Any, held: Any) -> Any:
    """The model whose settings a file's table changes, or their class; `held` is the one that a preset has there."""
    try:
        if "preset" in found:
            return preset(str(found["preset"]))
        if "arch" in found:
            return spec_class(str(found["arch"]))
        if isinstance(held, ModelSpec):
            return held
        from seg_models.recipes import resolve_recipe  # torch, which only an error about a model needs

        return resolve_recipe(above["base"]).model
    except (KeyError, TypeError, ValueError):
        return ModelSpec


def _kind(model: Any) -> type[BaseModel]:
    kind: type[BaseModel] = model if isinstance(model, type) else type(model)
    return kind


def _is_branch(part: Any) -> bool:
    """Whether a part of a location is no key but the type of a union's branch."""
    types = ("str", "int", "float", "bool", "none", "constrained-int")
    return isinstance(part, str) and ("[" in part or part.startswith("function-") or part in types)


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
