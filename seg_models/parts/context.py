"""Context modules: every cell of a map is told what lies around it.

Shapes: N batch, C channels, h w cells, b bins a side.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor, nn

from seg_models.parts.layers import ConvNormAct
from seg_models.parts.resample import enlarge, pooling_matrix, resample


class PyramidPooling(nn.Module):
    """Averages over grids of several sizes, laid beside the features (Zhao et al., arXiv 1612.01105, section 3.2).

    Args:
        in_channels: channels of the features.
        bins: cells a side of each grid.
        channels: channels of each branch; default in_channels // number of bins.
        conv_bias: give the 1×1 convolutions a bias.
        align_corners: match the corners of a grid and of the map it is enlarged to, as the authors' code does.
    """

    def __init__(
        self,
        in_channels: int,
        *,
        bins: tuple[int, ...],
        channels: int | None = None,
        conv_bias: bool = False,
        align_corners: bool = False,
    ) -> None:
        super().__init__()
        width = channels or max(1, in_channels // len(bins))
        self.bins = bins
        self.align_corners = align_corners
        self.out_channels = in_channels + width * len(bins)
        self.branches = nn.ModuleList(ConvNormAct(in_channels, width, kernel_size=1, bias=conv_bias) for _ in bins)

    def forward(self, features: Tensor) -> Tensor:
        """(N, C, h, w) to (N, C + branches, h, w).

        Raises:
            ValueError: one image in training: a batch norm over a grid of one cell has nothing to average.
        """
        if 1 in self.bins:
            _refuse_one_image(self, features)
        height, width = features.shape[-2:]
        levels = [features]
        for size, branch in zip(self.bins, self.branches, strict=True):
            pooled = resample(
                features,
                rows=pooling_matrix(height, size, device=features.device).to(features.dtype),
                columns=pooling_matrix(width, size, device=features.device).to(features.dtype),
            )
            context = enlarge(branch(pooled), (height, width), align_corners=self.align_corners)
            levels.append(context.to(features.dtype))
        return torch.cat(levels, dim=1)


ConvBlock = Callable[[int, int, int], nn.Module]
"""A 3×3 convolution with norm and activation from input channels, output channels and dilation."""


def dilated_conv(in_channels: int, out_channels: int, dilation: int) -> nn.Module:
    """A 3×3 convolution with gaps, batch norm, ReLU."""
    return ConvNormAct(in_channels, out_channels, kernel_size=3, dilation=dilation)


def separable_conv(in_channels: int, out_channels: int, dilation: int) -> nn.Module:
    """Depthwise 3×3, then 1×1, each with batch norm and ReLU (DeepLabV3+, the authors' code)."""
    return nn.Sequential(
        ConvNormAct(in_channels, in_channels, kernel_size=3, dilation=dilation, groups=in_channels),
        ConvNormAct(in_channels, out_channels, kernel_size=1),
    )


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling (Chen et al., arXiv 1706.05587, section 3.3), its branches side by side.

    A 1×1 convolution, a 3×3 convolution for every dilation, and the mean of the whole map.

    Args:
        in_channels: channels of the features.
        channels: channels of each branch.
        dilations: of the 3×3 convolutions.
        conv: makes a 3×3 branch.
    """

    def __init__(
        self, in_channels: int, channels: int, *, dilations: tuple[int, ...], conv: ConvBlock = dilated_conv
    ) -> None:
        super().__init__()
        self.out_channels = channels * (len(dilations) + 2)
        self.point = ConvNormAct(in_channels, channels, kernel_size=1)
        self.dilated = nn.ModuleList(conv(in_channels, channels, dilation) for dilation in dilations)
        self.image = ConvNormAct(in_channels, channels, kernel_size=1)

    def forward(self, features: Tensor) -> Tensor:
        """(N, C, h, w) to (N, branches, h, w).

        Raises:
            ValueError: one image in training: a batch norm over one cell has nothing to average.
        """
        _refuse_one_image(self, features)
        pooled = self.image(features.mean(dim=(2, 3), keepdim=True))
        branches = [self.point(features), *(conv(features) for conv in self.dilated)]
        return torch.cat([*branches, pooled.expand(-1, -1, *features.shape[-2:])], dim=1)


def projected_aspp(
    in_channels: int,
    channels: int,
    *,
    dilations: tuple[int, ...],
    dropout: float,
    conv: ConvBlock = dilated_conv,
) -> nn.Sequential:
    """ASPP, its branches brought to `channels` by a 1×1 convolution, and dropout of whole channels."""
    aspp = ASPP(in_channels, channels, dilations=dilations, conv=conv)
    project = ConvNormAct(aspp.out_channels, channels, kernel_size=1)
    return nn.Sequential(OrderedDict(aspp=aspp, project=project, dropout=nn.Dropout2d(dropout)))


ONE_IMAGE = (
    "training needs at least 2 images per worker and micro-batch, found 1; use a larger recipe.global_batch, "
    "or less of workers and accumulate"
)
"""What is wrong with a batch of one where a norm has one value per image and channel."""


def _refuse_one_image(module: nn.Module, features: Tensor) -> None:
    """Batch norm over one cell of one image is an error, unless it averages over workers."""
    is_local = any(type(part) is nn.BatchNorm2d for part in module.modules())
    if module.training and features.shape[0] == 1 and is_local:
        raise ValueError(f"pooling to one cell: {ONE_IMAGE}")
