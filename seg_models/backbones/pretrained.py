"""Put the tensors of a trained classifier into a backbone, which is the same network without its last layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from torch import Tensor, nn

_COUNTER = "num_batches_tracked"  # batch norm's step counter: many exporters leave it out


def load_backbone(
    network: nn.Module, tensors: Mapping[str, Tensor], *, match: Literal["name", "order"], origin: str
) -> tuple[str, ...]:
    """Fill every parameter and buffer of the backbone from a classifier's tensors.

    Args:
        network: the feature network.
        tensors: the classifier's tensors in file order.
        match: "name": by name; "order": first to first, shapes checked (the same network under other names).
        origin: what an error calls the weights.

    Returns:
        The names in `tensors` that were not used: the classifier's last layers.

    Raises:
        ValueError: a tensor is missing or of another shape, or one of the backbone's own modules has too many.
    """
    wanted = {name: value for name, value in network.state_dict().items() if not name.endswith(_COUNTER)}
    given = {name: value for name, value in tensors.items() if not name.endswith(_COUNTER)}
    pairs = _pair_by_name(wanted, given) if match == "name" else dict(zip(wanted, given, strict=False))
    unused = tuple(name for name in given if name not in set(pairs.values()))
    problems = [f"missing {name}" for name in wanted if name not in pairs]
    problems += [
        f"{name} has shape {tuple(given[other].shape)}, the network wants {tuple(wanted[name].shape)}"
        for name, other in pairs.items()
        if given[other].shape != wanted[name].shape
    ]
    if match == "name":
        problems += [f"left over {name}" for name in unused if _belongs(name, network)]
    _refuse(problems, origin=origin)
    network.load_state_dict({name: given[other] for name, other in pairs.items()}, strict=False)
    return unused


def _pair_by_name(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> dict[str, str]:
    """Backbone name -> classifier name. timm's feature networks flatten `stages.0` to `stages_0`."""
    flat = {name.replace(".", "_"): name for name in given}
    return {name: flat[key] for name in wanted if (key := name.replace(".", "_")) in flat}


def _belongs(name: str, network: nn.Module) -> bool:
    """True if a tensor of this name would lie inside one of the backbone's own modules."""
    flat = name.replace(".", "_")
    return any(flat.startswith(f"{child}_") for child, _ in network.named_children())


def _refuse(problems: list[str], *, origin: str) -> None:
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise ValueError(f"weights {origin} do not fit the backbone: {'; '.join(problems[:5])}{more}")
