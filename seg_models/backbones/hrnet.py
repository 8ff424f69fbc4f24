"""HRNetV2: a backbone that keeps a branch of high resolution from the first stage to the last.

Wang, Sun, Cheng et al.: Deep High-Resolution Representation Learning for Visual Recognition, TPAMI 2020,
arXiv 1908.07919 (section 3). Branch i has 2^i times the width at stride 4·2^i; each stage adds a branch, and
after every module each branch receives the sum of all the others.

timm has the same network with two differences: it doubles maps by repeating cells (bilinear in the segmentation
code of the authors), and only for sides that are multiples of 32. Here maps are resized to the size that is wanted,
so any size goes in. The tensors carry the authors' names, which are timm's: published weights load by name.

Shapes: N batch, C channels, H W pixels, h w cells; a level is the output of a branch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Self

from pydantic import model_validator
from timm.models.resnet import BasicBlock, Bottleneck
from torch import Tensor, nn
from torch.nn import functional

from seg_models.backbones.pretrained import load_backbone
from seg_models.backbones.timm_backbone import Backbone, BackboneSpec
from seg_models.names import did_you_mean
from seg_models.parts.layers import IMAGENET_MEAN, IMAGENET_STD
from seg_models.weights.files import load_tensors, resolve_weights

Resampling = Literal["bilinear", "nearest"]

STEM = 64
"""Channels of the two convolutions that bring an image to stride 4, and of the first stage's bottlenecks."""
STRIDES = (4, 8, 16, 32)
VARIANTS: dict[str, dict[str, Any]] = {
    **{f"hrnet_w{width}": {"width": width} for width in (18, 30, 32, 40, 44, 48, 64)},
    "hrnet_w18_small_v2": {"width": 18, "num_blocks": 2, "num_modules": (1, 3, 2)},
}
"""Arguments of HighResolutionNet by timm's names."""


class HRNetSpec(BackboneSpec):
    """An HRNetV2; `model_kwargs` may hold `width`, `num_blocks` and `num_modules`."""

    name: str = "hrnet_w48"
    """hrnet_w18, hrnet_w48, …: the number is the width of the finest branch."""
    fuse_interp: Resampling = "bilinear"
    """How coarse maps are enlarged inside: bilinear (segmentation code) or nearest (ImageNet code, timm)."""
    align_corners: bool = False
    """Bilinear enlarging inside the network aligns corners, as in the HRNet-OCR repository."""

    @model_validator(mode="after")
    def _check_network(self) -> Self:
        if self.name.partition(".")[0] not in VARIANTS:
            raise ValueError(
                f"unknown HRNet {self.name!r}{did_you_mean(self.name, VARIANTS)}; known: {', '.join(VARIANTS)}"
            )
        if self.output_stride != STRIDES[-1]:
            raise ValueError(
                f"output_stride = {self.output_stride}: the strides of an HRNet are {STRIDES}; leave it at 32"
            )
        if self.fuse_interp == "nearest" and self.align_corners:
            raise ValueError("align_corners = true has no effect with fuse_interp = 'nearest'")
        return self

    def build(self) -> Backbone:
        """The network, with weights if the settings name any.

        Raises:
            ValueError: an argument it does not have, or weights that are missing or do not fit.
        """
        arguments = {**VARIANTS[self.name.partition(".")[0]], **self.model_kwargs}
        try:
            network = HighResolutionNet(**arguments, mode=self.fuse_interp, align_corners=self.align_corners)
        except TypeError as error:
            raise ValueError(f"backbone {self.name!r} cannot be made: {error}") from error
        if self.weights_ref is not None:
            path = resolve_weights(self.weights_ref, sha256=self.weights_sha256)
            load_backbone(network, load_tensors(path), match=self.match, origin=path.name)
        mean, std = self.mean or IMAGENET_MEAN, self.std or IMAGENET_STD
        channels = network.channels
        return Backbone(network, channels=channels, strides=STRIDES, mean=mean, std=std, frozen_norm=self.frozen_norm)


class HighResolutionNet(nn.Module):
    """Stem, one stage of bottlenecks, three stages of parallel branches.

    Args:
        width: channels of the finest branch; each coarser one has twice as many.
        num_blocks: residual blocks of a branch of a module, and bottlenecks of the first stage.
        num_modules: modules of the stages of two, three and four branches.
        mode: how coarse maps are enlarged.
        align_corners: for bilinear enlarging.
    """

    def __init__(
        self,
        *,
        width: int,
        num_blocks: int = 4,
        num_modules: Sequence[int] = (1, 4, 3),
        mode: Resampling = "bilinear",
        align_corners: bool = False,
    ) -> None:
        super().__init__()
        widths = tuple(width * 2**branch for branch in range(4))
        self.channels = widths
        self.conv1, self.bn1 = _conv(3, STEM, stride=2), nn.BatchNorm2d(STEM)
        self.conv2, self.bn2 = _conv(STEM, STEM, stride=2), nn.BatchNorm2d(STEM)
        self.layer1 = _bottlenecks(num_blocks)
        stages = [
            nn.Sequential(*(ParallelBranches(widths[:n], num_blocks, mode, align_corners) for _ in range(modules)))
            for n, modules in zip((2, 3, 4), num_modules, strict=True)
        ]
        self.transition1 = nn.ModuleList(
            [
                _conv_norm_relu(Bottleneck.expansion * STEM, widths[0]),
                _new_branch(Bottleneck.expansion * STEM, widths[1]),
            ]
        )
        self.stage2 = stages[0]
        self.transition2 = nn.ModuleList([nn.Identity(), nn.Identity(), _new_branch(*widths[1:3])])
        self.stage3 = stages[1]
        self.transition3 = nn.ModuleList([nn.Identity(), nn.Identity(), nn.Identity(), _new_branch(*widths[2:4])])
        self.stage4 = stages[2]
        self.apply(_initialize)

    def forward(self, images: Tensor) -> list[Tensor]:
        """(N, 3, H, W) normalised images to four levels (N, C·2^i, h/2^i, w/2^i)."""
        features = functional.relu(self.bn1(self.conv1(images)), inplace=True)
        features = functional.relu(self.bn2(self.conv2(features)), inplace=True)
        features = self.layer1(features)
        levels = [branch(features) for branch in self.transition1]
        levels = self.stage2(levels)
        levels = self.stage3(_grow(self.transition2, levels))
        return list(self.stage4(_grow(self.transition3, levels)))


class ParallelBranches(nn.Module):
    """Residual blocks on every branch, then each branch receives the sum of all (paper section 3)."""

    def __init__(self, widths: Sequence[int], num_blocks: int, mode: Resampling, align_corners: bool) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(*(BasicBlock(width, width) for _ in range(num_blocks))) for width in widths
        )
        self.fuse_layers = nn.ModuleList(
            nn.ModuleList(_path(widths, source=source, target=target) for source in range(len(widths)))
            for target in range(len(widths))
        )
        self.mode = mode
        self.align_corners = align_corners if mode == "bilinear" else None

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        """One map per branch to one map per branch, of the same shapes."""
        levels = [branch(level) for branch, level in zip(self.branches, levels, strict=True)]
        fused = []
        for level, paths in zip(levels, self.fuse_layers, strict=True):
            assert isinstance(paths, nn.ModuleList)
            parts = [self._resize(path(source), level) for path, source in zip(paths, levels, strict=True)]
            fused.append(functional.relu(sum(parts[1:], start=parts[0])))
        return fused

    def _resize(self, part: Tensor, like: Tensor) -> Tensor:
        size = like.shape[-2:]
        if part.shape[-2:] == size:
            return part
        return functional.interpolate(part, size=size, mode=self.mode, align_corners=self.align_corners)


def _grow(transition: nn.ModuleList, levels: list[Tensor]) -> list[Tensor]:
    """The levels as they are and a new one, made from the coarsest."""
    return [step(level) for step, level in zip(transition, [*levels, levels[-1]], strict=True)]


def _path(widths: Sequence[int], *, source: int, target: int) -> nn.Module:
    """From one branch to another: 1×1 to a finer one (enlarged afterwards), strided 3×3 to a coarser one."""
    if source == target:
        return nn.Identity()
    if source > target:
        conv = nn.Conv2d(widths[source], widths[target], kernel_size=1, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(widths[target]))
    halvings = [_conv_norm_relu(widths[source], widths[source], stride=2) for _ in range(target - source - 1)]
    last = nn.Sequential(_conv(widths[source], widths[target], stride=2), nn.BatchNorm2d(widths[target]))
    return nn.Sequential(*halvings, last)


def _bottlenecks(num_blocks: int) -> nn.Sequential:
    """The first stage: STEM to 4·STEM channels at stride 4."""
    wide = Bottleneck.expansion * STEM
    projection = nn.Sequential(nn.Conv2d(STEM, wide, kernel_size=1, bias=False), nn.BatchNorm2d(wide))
    first = Bottleneck(STEM, STEM, downsample=projection)
    return nn.Sequential(first, *(Bottleneck(wide, STEM) for _ in range(num_blocks - 1)))


def _new_branch(in_channels: int, out_channels: int) -> nn.Sequential:
    """One level deeper than its layers need, as in the published weights."""
    return nn.Sequential(_conv_norm_relu(in_channels, out_channels, stride=2))


def _conv_norm_relu(in_channels: int, out_channels: int, *, stride: int = 1) -> nn.Sequential:
    conv = _conv(in_channels, out_channels, stride=stride)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True))


def _conv(in_channels: int, out_channels: int, *, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=stride, padding=1, bias=False)


def _initialize(module: nn.Module) -> None:
    """He initialisation by fan-out; batch norms begin as the identity."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
