"""Put the tensors of a published checkpoint into our network and account for every one of them.

A name map says which of our modules each of theirs is. It is a table of prefixes, so that it reads both ways: tensors
can be handed back under the published names. One file per origin holds the tables.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn

from seg_models.names import did_you_mean

COUNTER = ".num_batches_tracked"  # batch norm's step counter: of no use in eval mode, left out by older files
NUM_LISTED = 5
"""Names of each kind that an account lists."""


class NameMap(NamedTuple):
    """Which of our modules each published one is."""

    origin: str
    """What messages call the layout."""
    modules: Mapping[str, str]
    """Published module -> ours; of several that begin a name the longest counts."""

    def ours(self, name: str) -> str | None:
        """Our name of a published tensor, or None."""
        return _renamed(name, self.modules)

    def theirs(self, name: str) -> str | None:
        """The published name of one of our tensors, or None."""
        return _renamed(name, {ours: theirs for theirs, ours in self.modules.items()})


@dataclass(frozen=True)
class ImportAccount:
    """What became of every tensor."""

    origin: str
    used: tuple[tuple[str, str], ...]
    """(published name, our name) of tensors that have a place of their shape."""
    unused: tuple[str, ...]
    """Published names without a place."""
    missing: tuple[str, ...]
    """Our names that nothing fills."""
    misshapen: tuple[str, ...]
    """Names with both shapes."""

    @property
    def complete(self) -> bool:
        """True if every tensor of either side has its counterpart."""
        return not (self.unused or self.missing or self.misshapen)

    def text(self) -> str:
        """One line."""
        parts = [f"{self.origin}: {len(self.used)} tensors used"]
        for word, names in (("unused", self.unused), ("missing", self.missing), ("of another shape", self.misshapen)):
            if names:
                more = f" and {len(names) - NUM_LISTED} more" if len(names) > NUM_LISTED else ""
                parts.append(f"{len(names)} {word} ({', '.join(names[:NUM_LISTED])}{more})")
        return "; ".join(parts)


def import_tensors(
    model: nn.Module, tensors: Mapping[str, Tensor], names: NameMap, *, partial: bool = False
) -> ImportAccount:
    """Copy published tensors into the model.

    Args:
        model: a network of the same settings.
        tensors: published name -> tensor, as `load_tensors` reads them.
        names: the layout.
        partial: accept tensors without a place and places without a tensor; those of another shape are left out.

    Raises:
        ValueError: something is left over, missing or of another shape; nothing has been copied then.
    """
    account = compare_tensors(model, tensors, names)
    if not account.used or not (account.complete or partial):
        raise ValueError(f"the checkpoint does not fit {type(model).__name__}: {account.text()}{_hint(account, names)}")
    model.load_state_dict({ours: tensors[theirs] for theirs, ours in account.used}, strict=False)
    return account


def compare_tensors(model: nn.Module, tensors: Mapping[str, Tensor], names: NameMap) -> ImportAccount:
    """The account of `import_tensors`, without copying anything."""
    wanted = model.state_dict()
    pairs = {theirs: ours for theirs in tensors if (ours := names.ours(theirs)) in wanted and ours is not None}
    fits = {theirs: ours for theirs, ours in pairs.items() if tensors[theirs].shape == wanted[ours].shape}
    filled = set(pairs.values())
    return ImportAccount(
        names.origin,
        used=tuple(fits.items()),
        unused=_without_counters(name for name in tensors if name not in pairs),
        missing=_without_counters(name for name in wanted if name not in filled),
        misshapen=tuple(
            f"{theirs} {tuple(tensors[theirs].shape)} for {ours} {tuple(wanted[ours].shape)}"
            for theirs, ours in pairs.items()
            if theirs not in fits
        ),
    )


def export_tensors(model: nn.Module, names: NameMap) -> dict[str, Tensor]:
    """The model's tensors under the published names.

    Raises:
        ValueError: the layout has no name for some of them.
    """
    state = model.state_dict()
    named = {theirs: value for name, value in state.items() if (theirs := names.theirs(name)) is not None}
    if len(named) < len(state):
        nameless = [name for name in state if names.theirs(name) is None]
        raise ValueError(f"{names.origin} has no name for {len(nameless)} tensors: {', '.join(nameless[:NUM_LISTED])}")
    return named


def _renamed(name: str, modules: Mapping[str, str]) -> str | None:
    """`name` with the longest module that begins it replaced."""
    parts = name.split(".")
    for length in range(len(parts) - 1, 0, -1):
        if (found := modules.get(".".join(parts[:length]))) is not None:
            return ".".join([found, *parts[length:]])
    return None


def _without_counters(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(name for name in names if not name.endswith(COUNTER))


def _hint(account: ImportAccount, names: NameMap) -> str:
    """The nearest published name for the first missing tensor, if any is near."""
    if not account.missing or not account.unused:
        return ""
    expected = names.theirs(account.missing[0])
    return "" if expected is None else f"; expected {expected}{did_you_mean(expected, account.unused)}"
