"""Lookups between cells and deformable convolutions against loops written from the formulas, and torchvision."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import DeformConv2d  # type: ignore[import-untyped]

from seg_models.parts.sampling import deform_conv, fused_deform_conv, plain_deform_conv, sample


def look_up(x: Tensor, row: float, column: float) -> Tensor:
    """Σ over cells of x·max(0, 1 − |Δrow|)·max(0, 1 − |Δcolumn|) for one map (C, h, w)."""
    total = torch.zeros(x.shape[0])
    for i in range(x.shape[1]):
        for j in range(x.shape[2]):
            total += x[:, i, j] * max(0.0, 1 - abs(row - i)) * max(0.0, 1 - abs(column - j))
    return total


@pytest.mark.parametrize("size", [(4, 5), (1, 3), (1, 1)])
def test_a_lookup_is_bilinear_and_fades_to_zero_beyond_the_map(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, *size)
    rows, columns = torch.rand(2, 2, 6, 4) * 8 - 2
    found = sample(x, rows, columns)
    assert found.shape == (2, 3, 6, 4)
    for n in range(2):
        for r in range(6):
            for s in range(4):
                expected = look_up(x[n], float(rows[n, r, s]), float(columns[n, r, s]))
                torch.testing.assert_close(found[n, :, r, s], expected, rtol=1e-4, atol=1e-5)


def slow_deform_conv(x: Tensor, conv: nn.Conv2d, *, offsets: Tensor, masks: Tensor) -> Tensor:
    """y(p) = b + Σ_k w_k · x(p + p_k + Δp_k)·Δm_k, tap by tap and group by group, for one map (C, h, w)."""
    channels, height, width = x.shape
    taps = math.prod(conv.kernel_size)
    groups = masks.shape[0] // taps
    assert conv.bias is not None
    out = conv.bias.detach().view(-1, 1, 1).repeat(1, height, width)
    for i in range(height):
        for j in range(width):
            for group in range(groups):
                some = slice(group * channels // groups, (group + 1) * channels // groups)
                for tap in range(taps):
                    at = group * taps + tap
                    row = i + tap // conv.kernel_size[1] - conv.kernel_size[0] // 2 + float(offsets[2 * at, i, j])
                    column = j + tap % conv.kernel_size[1] - conv.kernel_size[1] // 2 + float(offsets[2 * at + 1, i, j])
                    seen = look_up(x[some], row, column) * masks[at, i, j]
                    weight = conv.weight.detach()[:, some, tap // conv.kernel_size[1], tap % conv.kernel_size[1]]
                    out[:, i, j] += weight @ seen
    return out


def inputs(
    size: tuple[int, int], *, channels: int = 4, groups: int = 2, reach: float = 2.0
) -> tuple[Tensor, nn.Conv2d, Tensor, Tensor]:
    torch.manual_seed(1)
    conv = nn.Conv2d(channels, 3, kernel_size=3, padding=1)
    offsets = (torch.rand(2, 18 * groups, *size) - 0.5) * 2 * reach
    return torch.randn(2, channels, *size), conv, offsets, torch.rand(2, 9 * groups, *size)


@pytest.mark.parametrize("size", [(3, 4), (1, 2)])
def test_both_forms_of_deformable_convolution_follow_the_formula(size: tuple[int, int]) -> None:
    x, conv, offsets, masks = inputs(size)
    expected = torch.stack(
        [slow_deform_conv(x[n], conv, offsets=offsets[n], masks=masks[n]) for n in range(x.shape[0])]
    )
    assert conv.bias is not None
    for form in (plain_deform_conv, fused_deform_conv):
        with torch.no_grad():
            found = form(x, conv.weight, conv.bias, offsets=offsets, masks=masks)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("size", "groups"), [((7, 9), 1), ((6, 5), 4), ((1, 1), 2)])
def test_plain_operations_equal_torchvisions_kernel_with_gradients(size: tuple[int, int], groups: int) -> None:
    x, conv, offsets, masks = inputs(size, groups=groups, reach=3.0)
    theirs = DeformConv2d(4, 3, kernel_size=3, padding=1)
    theirs.load_state_dict(conv.state_dict())
    tensors = [value.requires_grad_() for value in (x, offsets, masks)]
    expected, found = theirs(x, offsets, masks), deform_conv(x, conv, offsets=offsets, masks=masks)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    direction = torch.randn(found.shape, generator=torch.Generator().manual_seed(2))
    for ours, other in zip(
        torch.autograd.grad(found, [*tensors, conv.weight], direction),
        torch.autograd.grad(expected, [*tensors, theirs.weight], direction),
        strict=True,
    ):
        torch.testing.assert_close(ours, other, rtol=1e-4, atol=1e-4)


def test_without_offsets_and_with_whole_masks_it_is_an_ordinary_convolution() -> None:
    x, conv, offsets, masks = inputs((5, 6))
    found = deform_conv(x, conv, offsets=torch.zeros_like(offsets), masks=torch.ones_like(masks))
    torch.testing.assert_close(found, conv(x), rtol=1e-4, atol=1e-5)


class Deformable(nn.Module):
    """As a network has it."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor, offsets: Tensor, masks: Tensor) -> Tensor:
        return deform_conv(x, self.conv, offsets=offsets, masks=masks)


def test_an_exported_program_holds_plain_operations_only() -> None:
    x, conv, offsets, masks = inputs((5, 6))
    network = Deformable(conv)
    program = torch.export.export(network, (x, offsets, masks), strict=False)
    names = [str(node.target) for node in program.graph.nodes]
    assert not [name for name in names if "torchvision" in name]
    assert any("grid_sampler" in name for name in names)
    with torch.no_grad():
        torch.testing.assert_close(
            program.module()(x, offsets, masks), network(x, offsets, masks), rtol=1e-4, atol=1e-5
        )


def test_mixed_precision_is_left_for_the_lookup_and_its_kernel() -> None:
    x, conv, offsets, masks = inputs((5, 6))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = deform_conv(x.bfloat16(), conv, offsets=offsets, masks=masks)
    assert found.dtype == torch.float32
    expected = deform_conv(x.bfloat16().float(), conv, offsets=offsets, masks=masks)
    assert torch.equal(found, expected)
