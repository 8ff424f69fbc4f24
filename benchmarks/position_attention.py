"""DANet's position attention in blocks against the published formulation, which holds all pairs of positions.

    python -m benchmarks.position_attention

Forward and backward pass of the module with its three convolutions, one map of 97x97 cells and 512 channels (a crop
of 769 pixels), float32. Memory is what a fresh process with one torch thread grows by at most.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.measure import Effort, Entries, Measured, command, cpu_pairs
from benchmarks.resident import peak_bytes
from seg_models.architectures.danet import PositionAttention

Attention = Callable[[PositionAttention, Tensor], Tensor]


def entries(effort: Effort) -> Entries:
    """Time and memory of a step."""
    side, channels = (16, 32) if effort.tiny else (97, 512)
    ours, peer = prepare_ours(side, channels), prepare_peer(side, channels)
    small = min(side, 33)
    difference = float((prepare_ours(small, channels)() - prepare_peer(small, channels)()).abs().max())
    note = f"largest difference of a gradient {difference:.1e} at {small}×{small}"
    return {"pam_time": cpu_pairs(ours, peer, effort=effort.few, note=note), "pam_memory": memory(side, channels)}


def memory(side: int, channels: int) -> Measured:
    """Peak growth of a process for ours and of one for the peer."""
    ours, peer = (
        peak_bytes(f"benchmarks.position_attention:prepare_{kind}", side, channels) for kind in ("ours", "peer")
    )
    return Measured(ours, peer, unit="bytes")


def prepare_ours(side: int, channels: int) -> Callable[[], Tensor]:
    """A step of ours, to be called any number of times."""
    return prepare(PositionAttention.forward, side, channels)


def prepare_peer(side: int, channels: int) -> Callable[[], Tensor]:
    """A step of the published formulation, with the same weights and input."""
    return prepare(all_pairs, side, channels)


def prepare(attention: Attention, side: int, channels: int) -> Callable[[], Tensor]:
    """A forward and backward pass that returns the gradient of the features; all is warmed up on a small map."""
    torch.manual_seed(0)
    module = PositionAttention(channels, key_channels=channels // 8)
    nn.init.ones_(module.gamma)
    features = torch.randn(1, channels, side, side, requires_grad=True)

    def step(features: Tensor = features) -> Tensor:
        (gradient, *_) = torch.autograd.grad(attention(module, features).sum(), (features, *module.parameters()))
        return gradient

    step(torch.randn(1, channels, 4, 4, requires_grad=True))
    return step


def all_pairs(module: PositionAttention, features: Tensor) -> Tensor:
    """Equations 1 and 2 of DANet as its code computes them: S = softmax of the rows of Qᵀ·K, out = γ·V·Sᵀ + x."""
    queries, keys, values = (conv(features).flatten(2) for conv in (module.query, module.key, module.value))
    weights = torch.softmax(torch.bmm(queries.transpose(1, 2), keys), dim=-1)
    return module.gamma * torch.bmm(values, weights.transpose(1, 2)).view_as(features) + features


if __name__ == "__main__":
    command(__doc__, entries)
