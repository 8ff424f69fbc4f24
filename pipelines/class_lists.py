"""Class lists as users write them: names, a table, or a file of either."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator

from pipelines.labels import LabelSpace
from pipelines.sources.base import read_lines, read_text


def read_classes(value: Any) -> Any:
    """Names -> a table of classes; a path or address -> what the file holds.

    Args:
        value: a list of names; a `.json` file such as the `classes.json` that `export` and `unpack` write; a text file
            with one name a line; or a table, which is handed on.

    Raises:
        ValueError: the file cannot be read or holds no class list.
    """
    if isinstance(value, str) and value.endswith(".json"):
        return LabelSpace.model_validate_json(read_text(value))
    names = _lines(value) if isinstance(value, str) else value
    if not isinstance(names, list | tuple):
        return names
    if twice := [name for place, name in enumerate(names) if name in names[:place]]:
        raise ValueError(f"{twice[0]!r} is listed twice")
    return {"names": tuple(names)}


def _lines(value: str) -> list[str]:
    try:
        return read_lines(value)
    except ValueError as error:
        names = value.split(",")
        hint = f"; several names are given with blanks between: {' '.join(names)}" if len(names) > 1 else ""
        raise ValueError(f"{error}{hint}") from None


AnyClasses = Annotated[LabelSpace, BeforeValidator(read_classes)]
"""Field type for a class list: names, a table, or the path of a file that holds either."""
