"""Layers that every network uses.

Shapes: N batch, C channels, H W pixels, h w cells.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Normalize(nn.Module):
    """Images in 0..255 to zero mean and unit variance per channel, on the device where the images are.

    The constants belong to the spec, not to the weights: they are in no state dict.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, *, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", 255 * torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W), uint8 or float in 0..255, to float32 of the same shape."""
        return (images.float() - self.mean) / self.std


class ConvNormAct(nn.Sequential):
    """Convolution, batch norm, ReLU (or another activation, or none); the output has the input's size at stride 1.

    Args:
        stride: pixels from one output to the next.
        dilation: pixels from one tap of the kernel to the next.
        groups: 1, or as many as there are channels for a depthwise convolution.
        bias: give the convolution one, though the norm behind it takes its effect away.
        act: an activation of your own; `nn.Identity()` for none.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: int,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = False,
        act: nn.Module | None = None,
    ) -> None:
        conv = nn.Conv2d(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            padding=dilation * (kernel_size // 2),
            dilation=dilation,
            groups=groups,
            bias=bias,
        )
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        if conv.bias is not None:
            nn.init.zeros_(conv.bias)
        super().__init__()
        self.conv = conv
        self.norm = nn.BatchNorm2d(out_channels)
        self.act = act or nn.ReLU(inplace=True)
