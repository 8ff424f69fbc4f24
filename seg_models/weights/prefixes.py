"""Tensors under other names: a table of prefixes says which part of theirs is which part of ours."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


def rename(tensors: Mapping[str, Tensor], prefixes: Mapping[str, str]) -> dict[str, Tensor]:
    """Replace the longest prefix of every name that the table holds; a name without one stays as it is.

    What stays is then refused by `load_by_name` as left over, under its published name.
    """
    longest_first = sorted(prefixes, key=len, reverse=True)
    return {_renamed(name, prefixes, longest_first): tensor for name, tensor in tensors.items()}


def inverse(prefixes: Mapping[str, str]) -> dict[str, str]:
    """The table of the way back."""
    table = {ours: theirs for theirs, ours in prefixes.items()}
    assert len(table) == len(prefixes), "two parts of theirs cannot be one of ours"
    return table


def _renamed(name: str, prefixes: Mapping[str, str], longest_first: list[str]) -> str:
    found = next((prefix for prefix in longest_first if name.startswith(prefix)), "")
    return prefixes[found] + name.removeprefix(found) if found else name
