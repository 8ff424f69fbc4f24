"""Context modules: every cell of a map is told what lies around it.

Shapes: N batch, C channels, h w cells.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from seg_models.parts.layers import ConvNormAct


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling (Chen et al., arXiv 1706.05587, section 3.3), its branches side by side.

    A 1×1 convolution, a 3×3 convolution for every dilation, and the mean of the whole map.

    Args:
        in_channels: channels of the features.
        channels: channels of each branch.
        dilations: of the 3×3 convolutions.
    """

    def __init__(self, in_channels: int, channels: int, *, dilations: tuple[int, ...]) -> None:
        super().__init__()
        self.out_channels = channels * (len(dilations) + 2)
        self.point = ConvNormAct(in_channels, channels, kernel_size=1)
        self.dilated = nn.ModuleList(
            ConvNormAct(in_channels, channels, kernel_size=3, dilation=dilation) for dilation in dilations
        )
        self.image = ConvNormAct(in_channels, channels, kernel_size=1)

    def forward(self, features: Tensor) -> Tensor:
        """(N, C, h, w) to (N, branches, h, w).

        Raises:
            ValueError: one image in training: a batch norm over one cell has nothing to average.
        """
        is_local = any(type(module) is nn.BatchNorm2d for module in self.modules())
        if self.training and features.shape[0] == 1 and is_local:
            raise ValueError("pooling to one cell: training needs at least 2 images per worker and micro-batch")
        pooled = self.image(features.mean(dim=(2, 3), keepdim=True))
        branches = [self.point(features), *(conv(features) for conv in self.dilated)]
        return torch.cat([*branches, pooled.expand(-1, -1, *features.shape[-2:])], dim=1)


def projected_aspp(in_channels: int, channels: int, *, dilations: tuple[int, ...], dropout: float) -> nn.Sequential:
    """ASPP, its branches brought to `channels` by a 1×1 convolution, and dropout of whole channels."""
    aspp = ASPP(in_channels, channels, dilations=dilations)
    project = ConvNormAct(aspp.out_channels, channels, kernel_size=1)
    return nn.Sequential(OrderedDict(aspp=aspp, project=project, dropout=nn.Dropout2d(dropout)))
