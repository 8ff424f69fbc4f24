"""Put named tensors into a network, by name or by order, and account for every one of them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

_COUNTER = "num_batches_tracked"  # batch norm's step counter: of no use in eval mode, left out by most exporters


def load_by_name(model: nn.Module, tensors: Mapping[str, Tensor], *, origin: str) -> int:
    """Copy each tensor into the parameter or buffer of the same name.

    Returns:
        The number of tensors copied.

    Raises:
        ValueError: a tensor is missing, left over or of another shape; the message lists them.
    """
    wanted, given = _without_counters(model.state_dict()), _without_counters(tensors)
    problems = [f"missing {name}" for name in wanted if name not in given]
    problems += [f"left over {name}" for name in given if name not in wanted]
    problems += [_shapes(name, wanted[name], given[name]) for name in wanted if name in given]
    _refuse([problem for problem in problems if problem], origin=origin)
    model.load_state_dict(given, strict=False)
    return len(given)


def load_by_order(model: nn.Module, tensors: Mapping[str, Tensor], *, origin: str) -> int:
    """Copy the tensors into the network's own, first to first: the same network under other names.

    Returns:
        The number of tensors copied.

    Raises:
        ValueError: the counts differ, or two tensors at the same place differ in shape.
    """
    wanted, given = _without_counters(model.state_dict()), _without_counters(tensors)
    if len(wanted) != len(given):
        _refuse([f"{len(given)} tensors for a network of {len(wanted)}"], origin=origin)
    pairs = list(zip(wanted.items(), given.items(), strict=True))
    problems = [_shapes(f"{name} <- {other}", own, tensor) for (name, own), (other, tensor) in pairs]
    _refuse([problem for problem in problems if problem], origin=origin)
    model.load_state_dict({name: tensor for (name, _), (_, tensor) in pairs}, strict=False)
    return len(given)


def _without_counters(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if not name.endswith(_COUNTER)}


def _shapes(name: str, wanted: Tensor, given: Tensor) -> str:
    """What is wrong with the shapes, or an empty text."""
    if wanted.shape == given.shape:
        return ""
    return f"{name} has shape {tuple(given.shape)}, the network wants {tuple(wanted.shape)}"


def _refuse(problems: list[str], *, origin: str) -> None:
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise ValueError(f"weights {origin} do not fit the network: {'; '.join(problems[:5])}{more}")
