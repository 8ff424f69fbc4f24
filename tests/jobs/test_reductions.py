"""Gradients in rank order: the same bits whatever the buckets, also of micro-batches and shared batch norms."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from jobs.training.batchnorm import synchronise_batch_norm
from jobs.training.reductions import gather_objects, norm_over_workers, reduce_in_rank_order
from tests.jobs.ranks import run_ranks
from tests.jobs.tiny_training import CPU, TinySpec


def local_gradients(network: nn.Module, batches: list[Tensor]) -> list[Tensor]:
    for batch in batches:
        torch.autograd.backward(network(batch).logits.square().mean() / len(batches))
    return gradients_of(network)


def gradients_of(network: nn.Module) -> list[Tensor]:
    return [parameter.grad.clone() for parameter in network.parameters() if parameter.grad is not None]


def ordered_gradients(model: nn.Module, batches: list[Tensor], *, bucket_mb: float) -> list[Tensor]:
    """Those of the second step: DDP builds its buckets anew after the first."""
    network = DistributedDataParallel(model, broadcast_buffers=False, bucket_cap_mb=bucket_mb)
    reduce_in_rank_order(network)
    for _ in range(2):
        network.zero_grad()
        with network.no_sync():
            torch.autograd.backward(network(batches[0]).logits.square().mean() / 2)
        torch.autograd.backward(network(batches[1]).logits.square().mean() / 2)
    return gradients_of(network)


def compare(rank: int, world: int) -> list[bool]:
    """Whether reduced gradients are the bits of ((g_0 + g_1) + g_2) / 3, with two layouts of buckets."""
    generator = torch.Generator().manual_seed(rank)
    batches = [torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8, generator=generator) for _ in range(2)]

    def network() -> nn.Module:
        torch.manual_seed(0)
        return synchronise_batch_norm(TinySpec(norm=True, width=33).build(3).train(), CPU)

    parts: list[list[Tensor]] = gather_objects(local_gradients(network(), batches))
    expected = []
    for first, *others in zip(*parts, strict=True):
        total = first.clone()
        for other in others:
            total += other
        expected.append(total / world)
    layouts = [ordered_gradients(network(), batches, bucket_mb=size) for size in (1e-4, 25.0)]
    return [torch.equal(a, b) for found in layouts for a, b in zip(found, expected, strict=True)]


def test_ordered_gradients_are_the_sum_in_rank_order_whatever_the_buckets() -> None:
    for equal in run_ranks(compare, 3):
        assert len(equal) == 12
        assert all(equal)


def length_of_parts(rank: int, world: int) -> float:
    return float(norm_over_workers(torch.arange(4.0)[rank * 2 : rank * 2 + 2].norm()))


def test_the_length_of_a_split_vector_is_that_of_the_whole() -> None:
    assert run_ranks(length_of_parts, 2) == [torch.arange(4.0).norm().item()] * 2
