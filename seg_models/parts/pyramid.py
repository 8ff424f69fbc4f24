"""Decoders over a pyramid of features: enlarging levels, adding them up.

Shapes: N batch, C channels, h w cells; levels go from fine to coarse.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from seg_models.parts.layers import ConvNormAct
from seg_models.parts.resample import upsample_to


def top_down(levels: Sequence[Tensor]) -> list[Tensor]:
    """Every level plus what lies coarser, enlarged by repetition: (N, C, h, w) each, fine to coarse, to the same."""
    summed = list(levels)
    for i in reversed(range(len(summed) - 1)):
        summed[i] = summed[i] + functional.interpolate(summed[i + 1], size=summed[i].shape[-2:], mode="nearest")
    return summed


class FeaturePyramid(nn.Module):
    """Levels of one width that take in what lies coarser (Lin et al., CVPR 2017, arXiv 1612.03144, section 3).

    Args:
        channels: channels of the backbone's levels, fine to coarse.
        width: channels of every level of the pyramid.
    """

    def __init__(self, channels: Sequence[int], width: int) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(nn.Conv2d(level, width, kernel_size=1) for level in channels)
        self.convs = nn.ModuleList(nn.Conv2d(width, width, kernel_size=3, padding=1) for _ in channels)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """One (N, C, h, w) per level, fine to coarse, to as many (N, width, h, w)."""
        levels = top_down([lateral(level) for lateral, level in zip(self.laterals, features, strict=True)])
        return [conv(level) for conv, level in zip(self.convs, levels, strict=True)]


class ScaleHeads(nn.Module):
    """Convolutions that bring every level to the finest by doublings, and their sum.

    Kirillov, Girshick, He, Dollár: Panoptic Feature Pyramid Networks, CVPR 2019, arXiv 1901.02446, section 3.1: a level
    k doublings away has k times a 3×3 convolution, batch norm, ReLU and bilinear enlarging by two; the finest has the
    convolution once. Sides that do not double end at the size of the level there.

    Args:
        in_channels: channels of every level.
        channels: channels of the sum.
        strides: pixels per cell of each level, each the one before or twice that.
    """

    def __init__(self, in_channels: int, channels: int, *, strides: Sequence[int]) -> None:
        super().__init__()
        if any(coarse not in (fine, 2 * fine) for fine, coarse in itertools.pairwise(strides)):
            raise ValueError(f"strides of a pyramid must stay or double from level to level, found {tuple(strides)}")
        self.strides = tuple(strides)
        doublings = [(stride // strides[0]).bit_length() - 1 for stride in strides]
        self.heads = nn.ModuleList(
            nn.ModuleList(
                ConvNormAct(in_channels if step == 0 else channels, channels, kernel_size=3)
                for step in range(max(1, count))
            )
            for count in doublings
        )

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """One (N, C, h, w) per level to (N, channels, h, w) of the finest."""
        sizes = {stride: tuple(level.shape[-2:]) for stride, level in zip(self.strides, levels, strict=True)}
        brought = []
        for stride, x, convs in zip(self.strides, levels, self.heads, strict=True):
            assert isinstance(convs, nn.ModuleList)
            for conv in convs:
                stride = max(stride // 2, self.strides[0])
                x = upsample_to(conv(x), sizes[stride])
            brought.append(x)
        total = brought[0]
        for x in brought[1:]:
            total = total + x
        return total
