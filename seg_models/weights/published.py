"""Put the tensors of a published checkpoint into our network and account for every one of them.

A `Layout` says which of our modules each published one is, and what differs beyond names. It reads both ways, so that
tensors can be handed back. One file per architecture holds its layouts; `layouts.LAYOUTS` names them all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn

from seg_models.names import did_you_mean

COUNTER = ".num_batches_tracked"  # batch norm's step counter: of no use in eval mode, left out by older files
WRAPPER = "module."  # what torch's DataParallel puts before every name
NUM_LISTED = 5
"""Names of each kind that an account lists."""
Change = Callable[[str, Tensor], Tensor]
"""Our name and a tensor -> the tensor in another form; one of an unexpected shape is handed back as it is."""


def keep(name: str, value: Tensor) -> Tensor:
    """No change."""
    return value


@dataclass(frozen=True)
class Layout:
    """How the tensors of one kind of published file correspond to ours."""

    origin: str
    """What messages call the layout."""
    modules: Mapping[str, str]
    """Published module or tensor -> ours; of several that begin a name the longest counts."""
    presets: tuple[str, ...]
    """Named models whose networks such files fit."""
    never_used: tuple[str, ...] = ()
    """Published modules that take no part in the network."""
    stacked: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Our module -> the modules whose tensors, one above the other, make it up; `modules` leads to these."""
    adapt: Change = keep
    """A published tensor in our form, where it differs."""
    restore: Change = keep
    """The way back."""
    counters: bool = True
    """Whether files hold batch norm's step counters."""

    def __post_init__(self) -> None:
        if len(self._back) < len(self.modules):
            raise ValueError(f"{self.origin}: two published modules cannot be one of ours")

    @cached_property
    def _back(self) -> dict[str, str]:
        return {ours: theirs for theirs, ours in self.modules.items()}

    def ours(self, name: str) -> str | None:
        """Our name of a published tensor, with or without what DataParallel puts before it; None without a place."""
        if self.leaves_behind(name):
            return None
        return _renamed(name, self.modules) or _renamed(name.removeprefix(WRAPPER), self.modules)

    def theirs(self, name: str) -> str | None:
        """The published name of one of our tensors, or None."""
        return _renamed(name, self._back)

    def leaves_behind(self, name: str) -> bool:
        """Whether a published tensor takes no part in the network."""
        return any(name.removeprefix(WRAPPER).startswith(f"{module}.") for module in self.never_used)

    def sources(self, names: Iterable[str]) -> dict[str, tuple[str, ...]]:
        """Our name -> the published names, of these, that make up its tensor."""
        found: dict[str, str] = {}
        for theirs in names:
            if (ours := self.ours(theirs)) is not None:
                found.setdefault(ours, theirs)
        wholes = {name: self.parts(name) for name in dict.fromkeys(map(self._whole, found))}
        return {
            name: tuple(found[part] for part in parts)
            for name, parts in wholes.items()
            if all(part in found for part in parts)
        }

    def to_ours(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Published tensors under our names and in our form; those without a place are left out."""
        return {
            name: self.adapt(name, _stack([tensors[one] for one in theirs]))
            for name, theirs in self.sources(tensors).items()
        }

    def to_published(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Our tensors under the published names and in the published form.

        Raises:
            ValueError: the layout has no name for some of them.
        """
        given = {name: value for name, value in tensors.items() if self.counters or not name.endswith(COUNTER)}
        named: dict[str, Tensor] = {}
        nameless: list[str] = []
        for name, value in given.items():
            parts = self.parts(name)
            for part, piece in zip(parts, _split(self.restore(name, value), len(parts)), strict=True):
                if (theirs := self.theirs(part)) is None:
                    nameless.append(name)
                else:
                    named[theirs] = piece
        if nameless:
            listed = ", ".join(nameless[:NUM_LISTED])
            raise ValueError(f"{self.origin} has no name for {len(nameless)} tensors: {listed}")
        return named

    def parts(self, name: str) -> tuple[str, ...]:
        """The names, as `modules` leads to them, that make up one of our tensors: one, unless it is stacked."""
        for whole, parts in self.stacked.items():
            if f".{whole}." in name:
                return tuple(name.replace(f".{whole}.", f".{part}.") for part in parts)
        return (name,)

    def _whole(self, name: str) -> str:
        for whole, parts in self.stacked.items():
            for part in parts:
                name = name.replace(f".{part}.", f".{whole}.")
        return name


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
    left_behind: tuple[str, ...] = ()
    """Published names that take no part in the network, by the layout."""

    @property
    def complete(self) -> bool:
        """True if every tensor of either side has its counterpart."""
        return not (self.unused or self.missing or self.misshapen)

    def text(self) -> str:
        """One line."""
        parts = [f"{self.origin}: {len(self.used)} tensors used"]
        kinds = (
            ("unused", self.unused),
            ("missing", self.missing),
            ("of another shape", self.misshapen),
            ("left behind on purpose", self.left_behind),
        )
        for word, names in kinds:
            if names:
                more = f" and {len(names) - NUM_LISTED} more" if len(names) > NUM_LISTED else ""
                parts.append(f"{len(names)} {word} ({', '.join(names[:NUM_LISTED])}{more})")
        return "; ".join(parts)


def import_tensors(
    model: nn.Module, tensors: Mapping[str, Tensor], layout: Layout, *, partial: bool = False
) -> ImportAccount:
    """Copy published tensors into the model.

    Args:
        model: a network of the same settings.
        tensors: published name -> tensor, as `load_tensors` reads them.
        layout: what they are called and how they are laid out.
        partial: accept tensors without a place and places without a tensor; those of another shape are left out.

    Raises:
        ValueError: something is left over, missing or of another shape; nothing has been copied then.
    """
    account = compare_tensors(model, tensors, layout)
    if not account.used or not (account.complete or partial):
        hint = _hint(account, layout)
        raise ValueError(f"the checkpoint does not fit {type(model).__name__}: {account.text()}{hint}")
    fits = {ours for _, ours in account.used}
    placed = {name: value for name, value in layout.to_ours(tensors).items() if name in fits}
    model.load_state_dict(placed, strict=False)
    return account


def compare_tensors(model: nn.Module, tensors: Mapping[str, Tensor], layout: Layout) -> ImportAccount:
    """The account of `import_tensors`, without copying anything."""
    wanted = model.state_dict()
    given = layout.to_ours(tensors)
    sources = {name: theirs for name, theirs in layout.sources(tensors).items() if name in wanted}
    pairs = [(one, name) for name, theirs in sources.items() for one in theirs]
    fits = {name for name in sources if given[name].shape == wanted[name].shape}
    placed = {theirs for theirs, _ in pairs}
    return ImportAccount(
        layout.origin,
        used=tuple(pair for pair in pairs if pair[1] in fits),
        unused=_without_counters(name for name in tensors if name not in placed and not layout.leaves_behind(name)),
        missing=_without_counters(name for name in wanted if name not in sources),
        misshapen=tuple(
            f"{theirs} {tuple(tensors[theirs].shape)} for {ours} {tuple(wanted[ours].shape)}"
            for theirs, ours in pairs
            if ours not in fits
        ),
        left_behind=tuple(name for name in tensors if layout.leaves_behind(name)),
    )


def export_tensors(model: nn.Module, layout: Layout) -> dict[str, Tensor]:
    """The model's tensors under the published names.

    Raises:
        ValueError: the layout has no name for some of them.
    """
    return layout.to_published(model.state_dict())


def _renamed(name: str, modules: Mapping[str, str]) -> str | None:
    """`name` with the longest module that begins it replaced."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        if (found := modules.get(".".join(parts[:length]))) is not None:
            return ".".join([found, *parts[length:]])
    return None


def _stack(values: Sequence[Tensor]) -> Tensor:
    """One tensor above the other; of tensors that do not fit together the first, which then has another shape."""
    fitting = len({(value.ndim, value.shape[1:]) for value in values}) == 1 and values[0].ndim > 0
    return torch.cat(list(values)) if len(values) > 1 and fitting else values[0]


def _split(value: Tensor, parts: int) -> Sequence[Tensor]:
    return value.chunk(parts) if parts > 1 else (value,)


def _without_counters(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(name for name in names if not name.endswith(COUNTER))


def _hint(account: ImportAccount, layout: Layout) -> str:
    """The nearest published name for the first missing tensor, if any is near."""
    if not account.missing or not account.unused:
        return ""
    expected = layout.theirs(layout.parts(account.missing[0])[0])
    return "" if expected is None else f"; expected {expected}{did_you_mean(expected, account.unused)}"
