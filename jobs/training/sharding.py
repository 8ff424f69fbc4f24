"""Fully sharded data parallel training (FSDP2): every worker holds a part of the weights, gradients and optimizer.

A unit of the network (a block of its backbone) is gathered before it computes and dropped afterwards. Checkpoints hold
whole tensors, so a run may go on with another number of workers, or without sharding.

Zhao et al.: PyTorch FSDP, VLDB 2023; torch.distributed.fsdp.fully_shard.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

UNIT_PARAMETERS = 100_000
"""A smaller block is not worth a message of its own: it travels with what is around it."""


def shard(model: nn.Module, device: torch.device) -> None:
    """Replace the parameters of a network by this worker's part of them, in place."""
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for unit in list(units(model)):
        fully_shard(unit, mesh=mesh)
    fully_shard(model, mesh=mesh)


def units(module: nn.Module) -> Iterator[nn.Module]:
    """The outermost blocks of some size that stand in a sequence or list: what is gathered together.

    A parameter must be used by the module that holds it, or by one around it inside the same unit.
    """
    for child in module.children():
        if isinstance(module, nn.Sequential | nn.ModuleList) and _is_block(child):
            yield child
        else:
            yield from units(child)


def _is_block(module: nn.Module) -> bool:
    """Something that is called and has layers of its own: a layer's weights may be read by the block around it."""
    size = sum(parameter.numel() for parameter in module.parameters())
    has_layers = next(module.children(), None) is not None
    return size >= UNIT_PARAMETERS and has_layers and not isinstance(module, nn.ModuleList | nn.ModuleDict)


def set_reduction(model: nn.Module, *, on: bool) -> None:
    """Whether the next backward pass of a sharded network reduces its gradients or adds them up locally."""
    model.set_requires_gradient_sync(on)  # type: ignore[operator]  # fully_shard gives the network this method


def broadcast_buffers(model: nn.Module) -> None:
    """Give every worker the buffers of rank 0, as DDP does where batch norm is not synchronised."""
    for buffer in model.buffers():
        dist.broadcast(buffer, src=0)


def local(tensor: Tensor) -> Tensor:
    """This worker's part of a sharded tensor; any other tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of a sharded tensor, on the CPU; any other tensor as it is. Every worker takes part."""
    return tensor.full_tensor().cpu() if isinstance(tensor, DTensor) else tensor


def sharded_like(tensor: Tensor, example: Tensor) -> Tensor:
    """This worker's part of a whole tensor that every worker has, where `example` is sharded."""
    if not isinstance(example, DTensor):
        return tensor
    return distribute_tensor(tensor.to(example.device), example.device_mesh, example.placements, src_data_rank=None)


def whole_optimizer_state(optimizer: Optimizer) -> dict[str, Any]:
    """The optimizer's `state_dict` with whole tensors. Every worker takes part."""
    state = optimizer.state_dict()
    packed = {
        number: {key: whole(value) if isinstance(value, Tensor) else value for key, value in one.items()}
        for number, one in state["state"].items()
    }
    return {**state, "state": packed}


def load_optimizer_state(optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    """Fill an optimizer with what `whole_optimizer_state` returned."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    packed = {
        number: {key: _part(value, parameters[number]) for key, value in one.items()}
        for number, one in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": packed})


def _part(value: Any, parameter: Tensor) -> Any:
    """A tensor of the parameter's shape is split like it; a count stays whole."""
    if isinstance(value, Tensor) and value.shape == parameter.shape:
        return sharded_like(value, parameter)
    return value
