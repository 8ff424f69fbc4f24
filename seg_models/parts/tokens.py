"""Tokens of a map: what finer cells can attend to in its place.

Each module returns tokens (N, T, D) and, where there are masks, their scores.

Shapes: N batch, D width, K classes, h w cells, T tokens.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from seg_models.parts.resample import pooling_matrix, resample


class CategoryTokens(nn.Module):
    """Category feature embedding: one token per class, the mean of the map under the class's mask.

    Tang et al., arXiv 2308.05581: E_k = Σ_n softmax_n(M_k)(n) · Z(n) over the positions n; masks M and features Z are
    1×1 convolutions of the map without activation.

    Args:
        width: channels of map and tokens.
        num_classes: number of tokens.
        groups: groups of the convolutions before masks and of features.
    """

    def __init__(self, width: int, *, num_classes: int, groups: int) -> None:
        super().__init__()
        self.mask_features = nn.Conv2d(width, width, kernel_size=1, groups=groups, bias=False)
        self.masks = nn.Conv2d(width, num_classes, kernel_size=1, bias=False)
        self.features = nn.Conv2d(width, width, kernel_size=1, groups=groups, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, D, h, w) to tokens (N, K, D) and mask scores (N, K, h, w)."""
        masks: Tensor = self.masks(self.mask_features(x))
        features: Tensor = self.features(x)
        with full_precision(x.device):
            share = masks.flatten(2).float().softmax(dim=-1)
            return share @ features.flatten(2).transpose(1, 2).float(), masks


class CellTokens(nn.Module):
    """Every cell a token."""

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        """(N, D, h, w) to (N, h·w, D)."""
        return x.flatten(2).transpose(1, 2), None


class GridTokens(nn.Module):
    """Averages over a grid of `cells` a side."""

    def __init__(self, cells: int) -> None:
        super().__init__()
        self.cells = cells

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        """(N, D, h, w) to (N, cells², D)."""
        rows, columns = (pooling_matrix(side, self.cells, device=x.device).to(x.dtype) for side in x.shape[-2:])
        return resample(x, rows=rows, columns=columns).flatten(2).transpose(1, 2), None


class WindowTokens(nn.Module):
    """Averages over windows of `window` cells a side; those at the far edges may be smaller."""

    def __init__(self, window: int) -> None:
        super().__init__()
        self.window = window

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        """(N, D, h, w) to (N, ⌈h/window⌉·⌈w/window⌉, D)."""
        pooled = functional.avg_pool2d(x, self.window, ceil_mode=True, count_include_pad=False)
        return pooled.flatten(2).transpose(1, 2), None


def full_precision(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Leave mixed precision for a softmax over many positions; elsewhere, and in exports, it is nothing at all."""
    if device.type != "meta" and torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return contextlib.nullcontext()
