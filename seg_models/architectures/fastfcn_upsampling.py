"""What makes the map of stride 8 in FastFCN: JPU and JPU_X, and what the paper compares them with.

Wu et al., arXiv 1903.11816, section 3.3 and table 1.

Shapes: N batch, C channels, h w cells. A pyramid is (C3, C4, C5), fine to coarse.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from seg_models.parts.layers import ConvNormAct
from seg_models.parts.pyramid import top_down
from seg_models.parts.resample import enlarge
from seg_models.spec import Spec


class JPUSpec(Spec):
    """Joint pyramid upsampling (paper section 3.3)."""

    kind: Literal["jpu"] = "jpu"
    width: int = Field(512, gt=0)
    """Channels of each level and of each branch."""
    dilations: tuple[int, ...] = Field((1, 2, 4, 8), min_length=1)
    """Dilation of each branch."""
    align_corners: bool = False
    """Match the corners of maps of different sizes, as the authors' code does."""

    def build(self, channels: Sequence[int]) -> JPU:
        """The module for a pyramid of these channels."""
        return JPU(channels, width=self.width, dilations=self.dilations, align_corners=self.align_corners)


class JPUXSpec(Spec):
    """JPU_X of the authors' repository: two levels at a time, group norm."""

    kind: Literal["jpu_x"] = "jpu_x"
    width: int = Field(512, gt=0, multiple_of=2)
    """Channels of each level and branch of the second step; the first has half of them."""
    groups: int = Field(32, gt=0)
    """Groups of the group norms."""
    align_corners: bool = False
    """Match the corners of maps of different sizes, as the authors' code does."""

    @model_validator(mode="after")
    def _check_groups(self) -> Self:
        if self.width // 2 % self.groups:
            raise ValueError(f"width must be a multiple of 2 * groups = {2 * self.groups}, found {self.width}")
        return self

    def build(self, channels: Sequence[int]) -> JPUX:
        """The module for a pyramid of these channels."""
        return JPUX(channels, width=self.width, groups=self.groups, align_corners=self.align_corners)


class BilinearSpec(Spec):
    """The last level, only enlarged: what JPU is compared with."""

    kind: Literal["bilinear"] = "bilinear"

    def build(self, channels: Sequence[int]) -> BilinearUpsampling:
        """The module for a pyramid of these channels."""
        return BilinearUpsampling(channels)


class FPNSpec(Spec):
    """A feature pyramid, of which the finest level is used: what JPU is compared with."""

    kind: Literal["fpn"] = "fpn"
    width: int = Field(512, gt=0)
    """Channels of every level; JPU's levels have as many, the paper does not say."""

    def build(self, channels: Sequence[int]) -> FPNUpsampling:
        """The module for a pyramid of these channels."""
        return FPNUpsampling(channels, width=self.width)


UpsamplingSpec = Annotated[JPUSpec | JPUXSpec | BilinearSpec | FPNSpec, Field(discriminator="kind")]


class SeparableConv(nn.Sequential):
    """Depthwise 3×3, norm, 1×1, norm, ReLU: no activation between (paper figure 4 and the authors' code)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        dilation: int,
        norm: Callable[[int], nn.Module] = nn.BatchNorm2d,
    ) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(
            in_channels, in_channels, 3, padding=dilation, dilation=dilation, groups=in_channels, bias=False
        )
        self.depthwise_norm = norm(in_channels)
        self.pointwise = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.norm = norm(out_channels)
        self.act = nn.ReLU(inplace=True)


class JPU(nn.Module):
    """Three levels to one map at the size of the finest (paper section 3.3)."""

    def __init__(
        self, channels: Sequence[int], *, width: int, dilations: tuple[int, ...], align_corners: bool = False
    ) -> None:
        super().__init__()
        self.align_corners = align_corners
        self.out_channels = width * len(dilations)
        self.levels = nn.ModuleList(ConvNormAct(level, width, kernel_size=3) for level in channels)
        joint = width * len(channels)
        self.branches = nn.ModuleList(SeparableConv(joint, width, dilation=dilation) for dilation in dilations)

    def forward(self, pyramid: Sequence[Tensor]) -> Tensor:
        """(C3, C4, C5) to (N, branches, h, w) at the size of C3."""
        size = pyramid[0].shape[-2:]
        finest, *coarser = [conv(level) for conv, level in zip(self.levels, pyramid, strict=True)]
        enlarged = [enlarge(level, size, align_corners=self.align_corners) for level in coarser]
        joint = torch.cat([finest, *enlarged], dim=1)
        return torch.cat([branch(joint) for branch in self.branches], dim=1)


class JointUpsampling(nn.Module):
    """One step of JPU_X: a coarse and a fine level to one map at the size of the fine one."""

    def __init__(
        self, coarse: int, fine: int, *, width: int, dilation: int, groups: int, align_corners: bool = False
    ) -> None:
        super().__init__()
        self.align_corners = align_corners
        self.out_channels = 4 * width
        self.coarse = ConvNormAct(coarse, width, kernel_size=3)
        self.fine = ConvNormAct(fine, width, kernel_size=3)
        norm = partial(nn.GroupNorm, groups)
        self.branches = nn.ModuleList(
            SeparableConv(2 * width, width, dilation=factor * dilation, norm=norm) for factor in (1, 2, 4)
        )

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        """(N, C, h', w') and (N, C', h, w) to (N, 4·width, h, w): the enlarged coarse level and three branches."""
        enlarged = enlarge(self.coarse(coarse), fine.shape[-2:], align_corners=self.align_corners)
        joint = torch.cat([enlarged, self.fine(fine)], dim=1)
        return torch.cat([enlarged, *(branch(joint) for branch in self.branches)], dim=1)


class JPUX(nn.Module):
    """C4 joins C3, then C5 joins the result (authors' repository, 2020)."""

    def __init__(self, channels: Sequence[int], *, width: int, groups: int, align_corners: bool = False) -> None:
        super().__init__()
        c3, c4, c5 = channels
        step = partial(JointUpsampling, groups=groups, align_corners=align_corners)
        self.first = step(c4, c3, width=width // 2, dilation=1)
        self.second = step(c5, self.first.out_channels, width=width, dilation=2)
        self.out_channels = self.second.out_channels

    def forward(self, pyramid: Sequence[Tensor]) -> Tensor:
        """(C3, C4, C5) to (N, 4·width, h, w) at the size of C3."""
        c3, c4, c5 = pyramid
        joint: Tensor = self.second(c5, self.first(c4, c3))
        return joint


class BilinearUpsampling(nn.Module):
    """C5 at the size of C3."""

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.out_channels = channels[-1]

    def forward(self, pyramid: Sequence[Tensor]) -> Tensor:
        """(C3, C4, C5) to (N, C, h, w) at the size of C3."""
        return enlarge(pyramid[-1], pyramid[0].shape[-2:])


class FPNUpsampling(nn.Module):
    """C3 with what C4 and C5 add to it, through a 3×3 convolution (Lin et al., arXiv 1612.03144, section 3)."""

    def __init__(self, channels: Sequence[int], *, width: int) -> None:
        super().__init__()
        self.out_channels = width
        self.laterals = nn.ModuleList(nn.Conv2d(level, width, kernel_size=1) for level in channels)
        self.conv = nn.Conv2d(width, width, kernel_size=3, padding=1)

    def forward(self, pyramid: Sequence[Tensor]) -> Tensor:
        """(C3, C4, C5) to (N, width, h, w) at the size of C3."""
        levels = [lateral(level) for lateral, level in zip(self.laterals, pyramid, strict=True)]
        finest: Tensor = self.conv(top_down(levels)[0])
        return finest
