"""Bilinear interpolation and average pooling as small matrices.

A resampling of rows and columns is `rows @ map @ columns.T`. Written so, it can be done strip by strip, its gradient
is a matrix product too (deterministic on every device, unlike torch's `upsample_bilinear2d` and adaptive pooling on
CUDA), and every exporter knows it.

Shapes: K channels, h w cells, H W pixels, r rows of a strip.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional

CPU_STRIP_ELEMENTS = 1 << 20
"""Elements of a strip on a CPU: near enough to the cores, and enough work for each of their threads."""
DEVICE_STRIP_ELEMENTS = 1 << 26
"""Elements of a strip that keep an accelerator busy."""


def bilinear_matrix(
    num_in: int, num_out: int, *, ratio: float | None = None, device: torch.device | None = None
) -> Tensor:
    """(num_out, num_in) float32 weights of linear interpolation between cell centres (align_corners=False).

    Output i looks at the input coordinate (i + 0.5) * ratio - 0.5, clamped to the outermost centres.

    Args:
        num_in: input samples along this axis.
        num_out: output samples along this axis.
        ratio: input samples per output sample; default num_in / num_out.
        device: where the matrix is made.
    """
    step = num_in / num_out if ratio is None else ratio
    centers = (torch.arange(num_out, device=device, dtype=torch.float64) + 0.5) * step - 0.5
    inputs = torch.arange(num_in, device=device, dtype=torch.float64)
    distance = (centers.clamp(0, num_in - 1)[:, None] - inputs[None, :]).abs()
    return (1 - distance).clamp_min(0).float()


def interpolation(
    outputs: slice,
    *,
    num_in: int,
    ratio: float,
    offset: float = 0.0,
    reach: float = 1.0,
    device: torch.device | None = None,
) -> tuple[slice, Tensor]:
    """The inputs near some outputs, and the float32 weights (outputs, inputs) of linear interpolation between them.

    Output i looks at the input coordinate (i + 0.5) * ratio - 0.5 - offset; beyond the outermost inputs, at these.

    Args:
        outputs: of which outputs.
        num_in: input samples along this axis.
        ratio: input samples per output sample.
        offset: where the first input lies, in inputs from the beginning of the axis.
        reach: distance in inputs at which the weight is nothing; more than 1 averages (antialiasing).
        device: where the weights are made.
    """
    first, last = ((place + 0.5) * ratio - 0.5 - offset for place in (outputs.start, outputs.stop - 1))
    start = min(max(math.floor(first - reach), 0), num_in - 1)
    stop = min(max(math.ceil(last + reach) + 1, start + 1), num_in)
    places = torch.arange(outputs.start, outputs.stop, device=device, dtype=torch.float64)
    centers = ((places + 0.5) * ratio - 0.5 - offset).clamp(start - reach / 2, stop - 1 + reach / 2)
    inputs = torch.arange(start, stop, device=device, dtype=torch.float64)
    weights = (1 - (centers[:, None] - inputs[None, :]).abs() / reach).clamp_min(0)
    return slice(start, stop), (weights / weights.sum(dim=1, keepdim=True)).float()


def pooling_matrix(num_in: int, num_out: int, *, device: torch.device | None = None) -> Tensor:
    """(num_out, num_in) float32 weights of adaptive average pooling: bin i is [⌊i·in/out⌋, ⌈(i+1)·in/out⌉)."""
    bins = torch.arange(num_out, device=device)[:, None]
    inputs = torch.arange(num_in, device=device)[None, :]
    start = bins * num_in // num_out
    stop = ((bins + 1) * num_in + num_out - 1) // num_out
    inside = ((inputs >= start) & (inputs < stop)).float()
    return inside / inside.sum(dim=1, keepdim=True)


def strips(num_out: int, *, rows: int) -> Iterator[slice]:
    """Cut `num_out` rows into slices of at most `rows`."""
    for start in range(0, num_out, rows):
        yield slice(start, min(start + rows, num_out))


def near_inputs(outputs: slice, *, num_in: int, ratio: float) -> slice:
    """The input samples that `bilinear_matrix` may give weight to for these outputs."""
    first = math.floor((outputs.start + 0.5) * ratio - 0.5) - 1
    last = math.floor((outputs.stop - 0.5) * ratio - 0.5) + 3
    return slice(min(max(first, 0), num_in - 1), min(max(last, 1), num_in))


def rows_per_strip(num_channels: int, width: int, *, device: torch.device, max_elements: int | None = None) -> int:
    """Rows of a strip (num_channels, rows, width) that stays under the device's strip size; at least one."""
    limit = max_elements or (CPU_STRIP_ELEMENTS if device.type == "cpu" else DEVICE_STRIP_ELEMENTS)
    return max(1, limit // (num_channels * width))


def resample(cells: Tensor, *, rows: Tensor, columns: Tensor) -> Tensor:
    """Resample the last two axes: (..., h, w) with rows (r, h) and columns (W, w) to (..., r, W)."""
    return torch.matmul(torch.matmul(rows, cells), columns.t())


def aligned_matrix(num_in: int, num_out: int, *, device: torch.device | None = None) -> Tensor:
    """(num_out, num_in) float32 weights of interpolation that matches the outermost centres (align_corners=True)."""
    step = (num_in - 1) / (num_out - 1) if num_out > 1 else 0.0
    centers = torch.arange(num_out, device=device, dtype=torch.float64) * step
    inputs = torch.arange(num_in, device=device, dtype=torch.float64)
    return (1 - (centers[:, None] - inputs[None, :]).abs()).clamp_min(0).float()


def enlarge(cells: Tensor, size: Sequence[int], *, align_corners: bool = False) -> Tensor:
    """Interpolate (..., h, w) bilinearly to (..., *size), in the type of the cells."""
    matrix = aligned_matrix if align_corners else bilinear_matrix
    rows, columns = (
        matrix(num_in, num_out, device=cells.device).to(cells.dtype)
        for num_in, num_out in zip(cells.shape[-2:], size, strict=True)
    )
    return resample(cells, rows=rows, columns=columns).to(cells.dtype)


def upsample_to(x: Tensor, size: Sequence[int], *, align_corners: bool = False) -> Tensor:
    """(N, C, h, w) to (N, C, *size), bilinear, by torch's kernel: no matrices, and nothing to do at its own size."""
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    return functional.interpolate(x, size=tuple(size), mode="bilinear", align_corners=align_corners)
