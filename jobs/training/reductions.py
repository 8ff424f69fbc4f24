"""What the workers exchange: gradients in a fixed order, numbers for the log, random states for checkpoints."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel


def world_size() -> int:
    """Workers of the process group; 1 without one."""
    return dist.get_world_size() if dist.is_initialized() else 1


def reduce_in_rank_order(model: DistributedDataParallel) -> None:
    """Average gradients by gathering them and adding them in rank order.

    gloo's all-reduce of three or more ranks rounds differently with another bucket layout, and DDP builds its buckets
    anew after the first step, so an interrupted run would differ in the last bits. Costs (world - 1) times the traffic.
    """
    # A lambda, because DDP compares annotations and knows no postponed ones.
    model.register_comm_hook(None, lambda state, bucket: _ordered_mean(bucket))


def _ordered_mean(bucket: Any) -> Future[Tensor]:
    local: Tensor = bucket.buffer()
    parts = [torch.empty_like(local) for _ in range(dist.get_world_size())]
    work = dist.all_gather(parts, local, async_op=True)
    assert work is not None

    def add_up(_: object) -> Tensor:
        local.copy_(parts[0])
        for part in parts[1:]:
            local.add_(part)
        return local.div_(len(parts))

    reduced: Future[Tensor] = work.get_future().then(add_up)
    return reduced


def mean_over_workers(values: Tensor) -> Tensor:
    """The mean of a small tensor over all workers."""
    if world_size() == 1:
        return values
    total = values.clone()
    dist.all_reduce(total)
    return total / world_size()


def norm_over_workers(norm: Tensor) -> Tensor:
    """The length of a vector of which every worker holds a part, from the length of its part."""
    parts = [torch.empty_like(norm) for _ in range(world_size())]
    dist.all_gather(parts, norm)
    length: Tensor = torch.linalg.vector_norm(torch.stack(parts))
    return length


def gather_objects(value: Any) -> list[Any]:
    """The value of every worker, in rank order, on every worker."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def broadcast_object(value: Any) -> Any:
    """The value of rank 0, on every worker."""
    if world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]
