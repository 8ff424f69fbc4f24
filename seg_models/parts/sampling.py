"""Looking up a map between its cells: what pyramids align their levels by.

Shapes: N batch, C channels, h w cells, r s places looked up, G groups of channels, T taps of a kernel.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import deform_conv2d  # type: ignore[import-untyped]

from seg_models.parts.attention import energy_type
from seg_models.parts.tokens import full_precision


def sample(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Look up a map at places between its cells, bilinearly; beyond the outermost cells it fades to zero.

    Args:
        x: (N, C, h, w).
        rows: (N, r, s) in cells, 0 at the centre of the first.
        columns: (N, r, s) likewise.

    Returns:
        (N, C, r, s) in float32 at least.
    """
    height, width = x.shape[-2:]
    # Coordinates from edge to edge: those from centre to centre do not exist for a map of one cell.
    grid = torch.stack(((2 * columns + 1) / width - 1, (2 * rows + 1) / height - 1), dim=-1)
    with full_precision(x.device):
        wide = x.to(energy_type(x))
        return functional.grid_sample(wide, grid.to(wide.dtype), padding_mode="zeros", align_corners=False)


def deform_conv(x: Tensor, conv: nn.Conv2d, *, offsets: Tensor, masks: Tensor) -> Tensor:
    """A convolution whose taps look beside their places, each with a weight of its own per cell.

    Zhu, Hu, Lin, Dai: Deformable ConvNets v2, CVPR 2019, arXiv 1811.11168, equation 1:
    y(p) = Σ_k w_k · x(p + p_k + Δp_k) · Δm_k, with offsets and weights for each of G groups of channels.

    On CUDA torchvision's kernel, which keeps no lookups for the backward pass. Elsewhere the same in plain operations:
    on a CPU a step takes less than half of the kernel's time, and runtimes of exported files and torch's counter of
    operations need not know that kernel.

    Args:
        x: (N, C, h, w).
        conv: the kernel, of odd sides, and its bias; stride 1.
        offsets: (N, 2·G·T, h, w), for every group and tap a row and a column, in cells.
        masks: (N, G·T, h, w) weights of the taps.

    Returns:
        (N, C', h, w) in float32 at least.
    """
    assert conv.bias is not None
    with full_precision(x.device):
        x, offsets, masks, weight, bias = (
            value.to(energy_type(x)) for value in (x, offsets, masks, conv.weight, conv.bias)
        )
        form = fused_deform_conv if x.is_cuda and not torch.compiler.is_exporting() else plain_deform_conv
        return form(x, weight, bias, offsets=offsets, masks=masks)


def fused_deform_conv(x: Tensor, weight: Tensor, bias: Tensor, *, offsets: Tensor, masks: Tensor) -> Tensor:
    """`deform_conv` by torchvision's kernel; weight (C', C, H, W) and bias (C')."""
    padding = weight.shape[2] // 2, weight.shape[3] // 2
    convolved: Tensor = deform_conv2d(x, offsets, weight, bias, padding=padding, mask=masks)
    return convolved


def plain_deform_conv(x: Tensor, weight: Tensor, bias: Tensor, *, offsets: Tensor, masks: Tensor) -> Tensor:
    """`deform_conv` as a lookup of every tap and one matrix product; weight (C', C, H, W) and bias (C')."""
    (n, channels, height, width), taps = x.shape, weight.shape[2] * weight.shape[3]
    groups = masks.shape[1] // taps
    beside = offsets.reshape(n * groups, taps, 2, height, width)
    own_rows, own_columns = _tap_places(weight.shape[2:], height, width, device=x.device)
    looked_up = sample(
        x.reshape(n * groups, channels // groups, height, width),
        (own_rows + beside[:, :, 0]).flatten(1, 2),
        (own_columns + beside[:, :, 1]).flatten(1, 2),
    )
    weighted = looked_up.unflatten(2, (taps, height)) * masks.reshape(n * groups, 1, taps, height, width)
    out = torch.matmul(weight.flatten(1), weighted.reshape(n, channels * taps, height * width))
    convolved: Tensor = out.unflatten(2, (height, width))
    return convolved + bias.view(-1, 1, 1)


def _tap_places(sides: Sequence[int], height: int, width: int, *, device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows (T, h, 1) and columns (T, 1, w) of every tap before its offset."""
    tap_rows, tap_columns = torch.meshgrid(
        *(torch.arange(side, device=device) - side // 2 for side in sides), indexing="ij"
    )
    rows = torch.arange(height, device=device).view(1, -1, 1) + tap_rows.reshape(-1, 1, 1)
    columns = torch.arange(width, device=device).view(1, 1, -1) + tap_columns.reshape(-1, 1, 1)
    return rows, columns
