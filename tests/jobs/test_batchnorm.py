"""Our batch norm over CPU workers equals BatchNorm2d on the whole batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from jobs.training.batchnorm import SharedBatchNorm, synchronise_batch_norm
from tests.jobs.ranks import run_ranks

CPU = torch.device("cpu")

CASES = ("plain", "activated", "cumulative", "bare", "bf16")
SPLIT = (3, 2)  # images of rank 0 and rank 1


def layer_of(case: str) -> nn.Module:
    torch.manual_seed(1)
    if case == "activated":
        layer: nn.Module = BatchNormAct2d(4)
    else:
        layer = nn.BatchNorm2d(4, momentum=None if case == "cumulative" else 0.2, affine=case != "bare")
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, 0.5, 1.5)
    return nn.Sequential(layer)


def batch(case: str) -> tuple[Tensor, Tensor]:
    """Input (5, 4, 6, 7) far from zero, and what the output is multiplied with."""
    torch.manual_seed(2)
    dtype = torch.bfloat16 if case == "bf16" else torch.float32
    return (torch.randn(5, 4, 6, 7) * 3 + 50).to(dtype), torch.randn(5, 4, 6, 7).to(dtype)


def measure(layer: nn.Module, images: Tensor, factors: Tensor) -> dict[str, Tensor]:
    """Two training passes, then outputs, gradients and buffers."""
    layer(images)
    images = images.clone().requires_grad_()
    output = layer(images)
    (output * factors).sum().backward()
    found = {"output": output.detach(), "input_grad": images.grad}
    found |= {f"{name}_grad": parameter.grad for name, parameter in layer.named_parameters()}
    found |= {name: buffer.clone() for name, buffer in layer.named_buffers()}
    layer.eval()
    found["eval"] = layer(images).detach()
    return {name: value.float() for name, value in found.items() if value is not None}


def measure_as_rank(rank: int, world: int) -> dict[str, dict[str, Tensor]]:
    found = {}
    for case in CASES:
        layer = synchronise_batch_norm(layer_of(case), CPU)
        images, factors = batch(case)
        found[case] = measure(layer, images.split(SPLIT)[rank], factors.split(SPLIT)[rank])
    return found


@pytest.fixture(scope="module")
def ranks() -> list[Any]:
    return run_ranks(measure_as_rank, 2)


@pytest.mark.parametrize("case", CASES)
def test_two_workers_compute_what_batch_norm_computes_on_the_whole_batch(case: str, ranks: list[Any]) -> None:
    whole = measure(layer_of(case), *batch(case))
    parts = [rank[case] for rank in ranks]
    tolerance = 5e-2 if case == "bf16" else 2e-4
    for name in ("output", "input_grad", "eval"):
        joined = torch.cat([part[name] for part in parts])
        torch.testing.assert_close(joined, whole[name], atol=tolerance, rtol=tolerance)
    for name in whole.keys() - {"output", "input_grad", "eval"}:
        if name.endswith("_grad"):  # DDP sums these
            torch.testing.assert_close(
                parts[0][name] + parts[1][name], whole[name], atol=1e-3, rtol=max(tolerance, 1e-3)
            )
        else:
            torch.testing.assert_close(parts[0][name], whole[name], atol=1e-4, rtol=tolerance)
            assert torch.equal(parts[0][name], parts[1][name]), "buffers are the same bits on every worker"


def test_the_statistics_of_one_worker_alone_would_differ(ranks: list[Any]) -> None:
    images, factors = batch("plain")
    alone = measure(layer_of("plain"), images.split(SPLIT)[0], factors.split(SPLIT)[0])
    assert not torch.allclose(alone["input_grad"], ranks[0]["plain"]["input_grad"], atol=1e-3)


def test_names_values_and_frozen_layers_survive_the_replacement() -> None:
    norms = nn.Sequential(BatchNormAct2d(4), nn.BatchNorm2d(4))
    model = nn.Sequential(nn.Conv2d(3, 4, 1), norms)
    norms[1].requires_grad_(False).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images = torch.randn(2, 3, 5, 5)
    expected = model(images)
    synchronise_batch_norm(model, CPU)
    after = model.state_dict()
    assert list(after) == list(before)
    assert isinstance(norms[0], SharedBatchNorm)
    assert isinstance(norms[1], SharedBatchNorm)
    assert not norms[1].weight.requires_grad
    assert not norms[1].training
    torch.testing.assert_close(model(images), expected)


def test_a_single_value_per_channel_is_refused() -> None:
    layer = synchronise_batch_norm(nn.Sequential(nn.BatchNorm2d(4)), CPU)
    with pytest.raises(ValueError, match="more than one value per channel"):
        layer(torch.randn(1, 4, 1, 1))


def test_the_gradient_is_that_of_finite_differences() -> None:
    torch.manual_seed(0)
    layer = SharedBatchNorm(2).double()
    nn.init.uniform_(layer.weight, 0.5, 1.5)
    images = torch.randn(2, 2, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (images,))
