"""Help texts generated from the settings classes: one line per key with type, default and its docstring.

With a job file the values of the file stand in the place of the defaults, and the keys are those of its model and
explainer.
"""

from __future__ import annotations

import textwrap
import types
import typing
from typing import Any, Literal, Union

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

WIDTH = 100


def settings_help(kind: type[BaseModel], *, job: BaseModel | None = None) -> str:
    """Every key of a settings class, nested ones with dots; single values first, then table by table.

    Args:
        job: a checked job whose values are shown as the defaults.
    """
    return "\n".join(_table(kind, prefix="", value=job))


def _table(kind: type[BaseModel], *, prefix: str, value: BaseModel | None) -> list[str]:
    single: list[str] = []
    nested: list[str] = []
    for name, field in kind.model_fields.items():
        inside = getattr(value, name, None)
        if isinstance(inside, BaseModel) or _classes(field.annotation):
            nested += _section(f"{prefix}{name}", field, inside)
        else:
            single += _key(f"{prefix}{name}", field, shown=_shown(field, value, name))
    return [*single, *nested]


def _section(key: str, field: FieldInfo, value: Any) -> list[str]:
    """The keys of a nested table; of each alternative where it may be of several kinds."""
    several = _is_tuple(field.annotation)
    title = f"[[{key}]] (any number of tables)" if several else f"[{key}]"
    needed = " (needed)" if field.is_required() and value is None else ""
    lines = ["", *_wrap(f"{title}{needed} {field.description or ''}".rstrip(), indent="  ")]
    if isinstance(value, BaseModel):
        return lines + _table(type(value), prefix=f"{key}.", value=value)
    kinds = _classes(field.annotation)
    place = f"{key}.0." if several else f"{key}."
    for kind in kinds:
        if len(kinds) > 1:
            lines.append(f'  with {key}.kind = "{kind.model_fields["kind"].default}":')
        table = _table(kind, prefix=place, value=None)
        lines += [line for line in table if len(kinds) == 1 or not line.startswith(f"  --{key}.kind ")]
    return lines


def _key(key: str, field: FieldInfo, *, shown: str) -> list[str]:
    line = f"  --{key} {_type(field.annotation)}{shown}"
    return [line, *_wrap(field.description or "", indent="      ")]


def _wrap(text: str, *, indent: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=indent)


def _shown(field: FieldInfo, value: BaseModel | None, name: str) -> str:
    if value is not None:
        return f"  (here {_text(getattr(value, name))})"
    if field.default is not PydanticUndefined:
        return f"  (default {_text(field.default)})"
    return "  (needed)" if field.is_required() else ""


def _text(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(map(_text, value))}]"
    return f'"{value}"' if isinstance(value, str) else str(value)


def _type(annotation: Any) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _type(arguments[0])
    if origin is Literal:
        return "|".join(map(str, arguments))
    if origin in (Union, types.UnionType):
        return "|".join(dict.fromkeys(_type(argument) for argument in arguments))
    if origin is tuple:
        return " ".join("..." if argument is Ellipsis else _type(argument) for argument in arguments)
    if origin is not None:
        return f"{origin.__name__}[{', '.join(map(_type, arguments))}]"
    if annotation is type(None):
        return "none"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "name|table"
    return getattr(annotation, "__name__", str(annotation))


def _is_tuple(annotation: Any) -> bool:
    return typing.get_origin(annotation) is tuple


def _classes(annotation: Any) -> list[type[BaseModel]]:
    """The settings classes a field may hold; none for an abstract one, whose keys depend on its name."""
    if isinstance(annotation, type):
        nested = issubclass(annotation, BaseModel) and not getattr(annotation, "__abstractmethods__", None)
        return [annotation] if nested else []
    return [found for inner in typing.get_args(annotation) for found in _classes(inner)]
