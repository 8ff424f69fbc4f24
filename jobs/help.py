"""Help texts generated from the settings classes: one line per key with type, default and its docstring."""

from __future__ import annotations

import textwrap
import types
import typing
from typing import Any, Literal, Union

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

WIDTH = 100


def settings_help(kind: type[BaseModel]) -> str:
    """Every key of a settings class, nested ones with dots, in the order of declaration."""
    return "\n".join(_lines(kind, prefix=""))


def _lines(kind: type[BaseModel], *, prefix: str) -> list[str]:
    lines: list[str] = []
    for name, field in kind.model_fields.items():
        lines += _field_lines(f"{prefix}{name}", field)
    return lines


def _field_lines(key: str, field: FieldInfo) -> list[str]:
    lines = [f"  --{key} {_type(field.annotation)}{_default(field)}"]
    if field.description:
        lines += textwrap.wrap(field.description, WIDTH, initial_indent="      ", subsequent_indent="      ")
    branches = _classes(field.annotation)
    for branch in branches:
        if len(branches) > 1:
            lines.append(f"    with {key}.kind = {branch.model_fields['kind'].default!r}:")
        lines += [line for line in _lines(branch, prefix=f"{key}.") if ".kind " not in line or len(branches) == 1]
    return lines


def _default(field: FieldInfo) -> str:
    if field.default is PydanticUndefined:
        return "  (needed)" if field.is_required() else ""
    if isinstance(field.default, BaseModel):
        return ""
    return f"  (default {field.default!r})"


def _type(annotation: Any) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _type(arguments[0])
    if origin is Literal:
        return "|".join(map(str, arguments))
    if origin in (Union, types.UnionType):
        return "|".join(dict.fromkeys(_type(argument) for argument in arguments))
    if origin is not None:
        inner = ",".join("…" if argument is Ellipsis else _type(argument) for argument in arguments)
        return f"{origin.__name__}[{inner}]"
    if annotation is type(None):
        return "none"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "table"
    return getattr(annotation, "__name__", str(annotation))


def _classes(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type):
        nested = issubclass(annotation, BaseModel) and not getattr(annotation, "__abstractmethods__", None)
        return [annotation] if nested else []
    if typing.get_origin(annotation) is tuple:
        return []
    return [found for inner in typing.get_args(annotation) for found in _classes(inner)]
