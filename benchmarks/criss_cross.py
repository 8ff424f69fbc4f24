"""CCNet's attention against the published formulation, which lays all scores of a position side by side, and non-local.

    python -m benchmarks.criss_cross

Forward and backward pass of the block with its three projections, applied twice (R = 2; non-local once), one map of
97x97 cells and 512 channels (a crop of 769 pixels), float32. Each gets the features in the layout that it works in:
ours channels last, as training has them, the peers channels first. Memory is what a fresh process with one torch thread
grows by at most. `cca_nonlocal_time` is of the attention alone, without the projections, which cost both the same each
time; `cca_nonlocal_block_time` counts them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.measure import Effort, Entries, Measured, command, cpu_pairs
from benchmarks.resident import peak_bytes
from seg_models.architectures.ccnet import CrissCrossAttention, NonLocalAttention
from seg_models.parts.criss_cross import criss_cross

MEASURED = ("prepare_ours", "prepare_concatenated", "prepare_non_local")
Step = Callable[[], Tensor]


def entries(effort: Effort) -> Entries:
    """Time and memory of a step against both peers."""
    side, channels = (16, 32) if effort.tiny else (97, 512)
    ours, concatenated = prepare_ours(side, channels), prepare_concatenated(side, channels)
    note = f"largest difference of a gradient {float((ours() - concatenated()).abs().max()):.1e}"
    own, beside, non_local = (peak(name, side, channels) for name in MEASURED)
    return {
        "cca_time": cpu_pairs(ours, concatenated, effort=effort, note=note),
        "cca_memory": Measured(own, beside, unit="bytes"),
        "cca_nonlocal_time": cpu_pairs(*prepare_cores(side, channels), effort=effort.few),
        "cca_nonlocal_block_time": cpu_pairs(ours, prepare_non_local(side, channels), effort=effort.few),
        "cca_nonlocal_memory": Measured(own, non_local, unit="bytes"),
    }


def peak(name: str, side: int, channels: int) -> float:
    """Bytes by which a fresh process grows while it does what a function of this module prepares."""
    return peak_bytes(f"benchmarks.criss_cross:{name}", side, channels)


def prepare_ours(side: int, channels: int) -> Step:
    """A step of ours, to be called any number of times."""
    block = weighted(CrissCrossAttention(channels))
    return step(lambda features: block(block(features)), block, side, channels, torch.channels_last)


def prepare_concatenated(side: int, channels: int) -> Step:
    """A step of the published formulation with the same weights and input."""
    block = weighted(CrissCrossAttention(channels))
    return step(lambda features: concatenated(block, concatenated(block, features)), block, side, channels)


def prepare_non_local(side: int, channels: int) -> Step:
    """A step of attention over all pairs with the same weights and input, applied once."""
    block = weighted(NonLocalAttention(channels))
    return step(block, block, side, channels)


def prepare_cores(side: int, channels: int) -> tuple[Step, Step]:
    """Steps of ours and of non-local attention from queries, keys and values that are there already."""
    generator, keys = torch.Generator().manual_seed(0), channels // 8
    tokens = torch.randn(1, side, side, channels, generator=generator).requires_grad_()
    projected = torch.randn(1, side, side, channels + 2 * keys, generator=generator).requires_grad_()
    gamma = torch.ones(1, requires_grad=True)
    leaves = (tokens, projected, gamma)

    def attend(features: Tensor) -> Tensor:
        return criss_cross(features, projected, gamma, key_channels=keys, masked_axes=(0,))

    def ours() -> Tensor:
        return torch.autograd.grad(attend(attend(tokens)), leaves, torch.ones_like(tokens))[0]

    def peer() -> Tensor:
        queries, others, values = projected.flatten(1, 2).split((keys, keys, channels), dim=2)
        gathered = torch.softmax(queries @ others.mT, dim=-1) @ values
        return torch.autograd.grad(gamma * gathered.view_as(tokens) + tokens, leaves, torch.ones_like(tokens))[0]

    return ours, peer


def weighted(block: nn.Module) -> nn.Module:
    """The same weights for every block, and attention switched on."""
    generator = torch.Generator().manual_seed(0)
    for name, value in block.named_parameters():
        nn.init.normal_(value, std=0.02, generator=generator) if name != "gamma" else nn.init.ones_(value)
    return block


def step(
    attention: Callable[[Tensor], Tensor],
    block: nn.Module,
    side: int,
    channels: int,
    layout: torch.memory_format = torch.contiguous_format,
) -> Step:
    """A forward and backward pass that returns the gradient of the features; all is warmed up on a small map."""
    parameters = list(block.parameters())

    def work(features: Tensor) -> Tensor:
        out = attention(features)
        gradient, *_ = torch.autograd.grad(out, (features, *parameters), torch.ones_like(out))
        return gradient

    work(torch.randn(1, channels, 4, 4).requires_grad_())
    features = torch.randn(1, channels, side, side, generator=torch.Generator().manual_seed(1))
    leaf = features.to(memory_format=layout).requires_grad_()
    return lambda: work(leaf)


def concatenated(block: nn.Module, features: Tensor) -> Tensor:
    """The published formulation: one softmax over the H + W scores of a position, held as one map (N, h, w, h + w)."""
    n, _, h, w = features.shape
    queries, keys, values = (block.get_submodule(name)(features) for name in ("query", "key", "value"))
    own = torch.diag(torch.full((h,), torch.inf, device=features.device))
    in_column = torch.bmm(columns(queries).mT, columns(keys)) - own
    in_row = torch.bmm(rows(queries).mT, rows(keys))
    scores = torch.cat([in_column.view(n, w, h, h).transpose(1, 2), in_row.view(n, h, w, w)], dim=3)
    shares = torch.softmax(scores, dim=3)
    of_column = shares[..., :h].transpose(1, 2).reshape(n * w, h, h)
    of_row = shares[..., h:].reshape(n * h, w, w)
    gathered = torch.bmm(columns(values), of_column.mT).view(n, w, -1, h).permute(0, 2, 3, 1)
    gathered = gathered + torch.bmm(rows(values), of_row.mT).view(n, h, -1, w).permute(0, 2, 1, 3)
    return block.get_parameter("gamma") * gathered + features


def columns(maps: Tensor) -> Tensor:
    """(N, C, h, w) to (N·w, C, h)."""
    return maps.permute(0, 3, 1, 2).reshape(-1, maps.shape[1], maps.shape[2])


def rows(maps: Tensor) -> Tensor:
    """(N, C, h, w) to (N·h, C, w)."""
    return maps.permute(0, 2, 1, 3).reshape(-1, maps.shape[1], maps.shape[3])


if __name__ == "__main__":
    command(__doc__, entries)
