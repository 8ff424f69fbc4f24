"""Edges of images and of label maps, computed on the device where these are.

Shapes: N batch, C channels, H W pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

HYSTERESIS_STEPS = 64
"""Pixels that an edge is followed from where it is strong; a fixed number, so that the graph can be exported."""
TAN_22_5 = 13573
"""tan(22.5°) · 2¹⁵: directions are told apart in whole numbers, as OpenCV does."""
OUTSIDE = -1
"""The region around a label map."""


def canny(images: Tensor, *, low: int = 10, high: int = 100, steps: int = HYSTERESIS_STEPS) -> Tensor:
    """Canny's edges of colour images (Canny 1986) in the form of OpenCV: Sobel 3×3, L1 magnitude, whole numbers.

    The channel with the largest magnitude speaks for a pixel. Pixels above `low` that are no smaller than their two
    neighbours along the gradient stay; of them, those above `high` are edges, and those that touch edges.

    Args:
        images: (N, C, H, W), integer values of 0..255 in any type.
        low: magnitude that an edge must exceed.
        high: magnitude at which an edge begins.
        steps: how many pixels an edge is followed from where it begins. OpenCV follows it without end.

    Returns:
        (N, 1, H, W) float32, 1 on edges, else 0.
    """
    dx, dy = _strongest(*_sobel(images.to(torch.int32)))
    magnitude = dx.abs() + dy.abs()
    thin = _is_ridge(dx, dy) & (magnitude > low)
    candidates = thin.float()
    edges = (thin & (magnitude > high)).float()
    for _ in range(steps):
        edges = functional.max_pool2d(edges, 3, stride=1, padding=1) * candidates
    return edges


def region_borders(regions: Tensor, *, radius: int = 2) -> Tensor:
    """Pixels with a pixel of another region, or of the outside of the map, at most `radius` away.

    The same as, for every region, Euclidean distance transforms of its mask and of the complement, each padded by one
    background pixel, added and compared with `radius` (specs: Gated-SCNN section 2), without a loop over regions.

    Args:
        regions: (N, H, W) integers; OUTSIDE is one with what lies around the map.
        radius: largest Euclidean distance, in pixels.

    Returns:
        (N, H, W) bool.
    """
    height, width = regions.shape[-2:]
    padded = functional.pad(regions, (radius,) * 4, value=OUTSIDE)
    borders = torch.zeros_like(regions, dtype=torch.bool)
    for row in range(-radius, radius + 1):
        for column in range(-radius, radius + 1):
            if 0 < row**2 + column**2 <= radius**2:
                top, left = radius + row, radius + column
                borders = borders | (padded[:, top : top + height, left : left + width] != regions)
    return borders


def _sobel(images: Tensor) -> tuple[Tensor, Tensor]:
    """Derivatives (N, C, H, W) to the right and downwards; outside the image its outermost pixels continue."""
    wide = torch.cat([images[..., :1], images, images[..., -1:]], dim=-1)
    padded = torch.cat([wide[..., :1, :], wide, wide[..., -1:, :]], dim=-2)
    across = padded[..., 2:] - padded[..., :-2]
    down = padded[..., 2:, :] - padded[..., :-2, :]
    dx = across[..., :-2, :] + 2 * across[..., 1:-1, :] + across[..., 2:, :]
    dy = down[..., :-2] + 2 * down[..., 1:-1] + down[..., 2:]
    return dx, dy


def _strongest(dx: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
    """(N, 1, H, W) derivatives of the channel that changes most; of equal ones the first."""
    best_dx, best_dy = dx[:, :1], dy[:, :1]
    for channel in range(1, dx.shape[1]):
        next_dx, next_dy = dx[:, channel : channel + 1], dy[:, channel : channel + 1]
        larger = next_dx.abs() + next_dy.abs() > best_dx.abs() + best_dy.abs()
        best_dx, best_dy = torch.where(larger, next_dx, best_dx), torch.where(larger, next_dy, best_dy)
    return best_dx, best_dy


def _is_ridge(dx: Tensor, dy: Tensor) -> Tensor:
    """True where the magnitude is largest along the gradient, whose direction is rounded to 45°.

    Of two equal neighbours in a row or column the first one stays; across a diagonal neither does.
    """
    height, width = dx.shape[-2:]
    magnitude = dx.abs() + dy.abs()
    padded = functional.pad(magnitude, (1, 1, 1, 1))

    def neighbour(down: int, right: int) -> Tensor:
        return padded[..., 1 + down : 1 + down + height, 1 + right : 1 + right + width]

    run, rise = dx.abs() * TAN_22_5, dy.abs() * (1 << 15)
    horizontal, vertical = rise < run, rise > run + dx.abs() * (1 << 16)
    falling = (dx < 0) == (dy < 0)  # to the lower right
    before = torch.where(falling, neighbour(-1, -1), neighbour(-1, 1))
    before = torch.where(horizontal, neighbour(0, -1), torch.where(vertical, neighbour(-1, 0), before))
    after = torch.where(falling, neighbour(1, 1), neighbour(1, -1))
    after = torch.where(horizontal, neighbour(0, 1), torch.where(vertical, neighbour(1, 0), after))
    not_smaller = (magnitude > after) | ((magnitude == after) & (horizontal | vertical))
    return (magnitude > before) & not_smaller
