"""ESPNetv2 for segmentation, so that the published weights can be a teacher (Mehta et al., arXiv 1811.11431).

The names of the parts are those of the published weights. Shapes: N batch, C channels, H W pixels, h w cells.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from seg_models.outputs import SegModel, SemanticOutput, SemanticTarget
from seg_models.parts.layers import IMAGENET_MEAN, IMAGENET_STD
from seg_models.spec import ModelSpec

CHANNELS = {0.5: (16, 32, 64, 128), 1.0: (32, 64, 128, 256), 2.0: (32, 128, 256, 512)}
BRANCHES = 4
WIDE, NARROW = (1, 2, 3, 4), (1, 1, 2, 3)  # dilations of the branches; the deepest level sees less far
POOL_SCALES = (2.0, 1.5, 1.0, 0.5, 0.1)
LEAST_POOL = 5
STRIDE = 16


class ESPNetv2Spec(ModelSpec):
    """Width and outputs of a published network."""

    arch: Literal["benchmarks.real_teachers.espnetv2:ESPNetv2Spec"] = "benchmarks.real_teachers.espnetv2:ESPNetv2Spec"
    width: float = 2.0
    num_outputs: int = 20
    """Outputs of the weights; those after the classes are left out."""

    def build(self, num_classes: int) -> ESPNetv2:
        return ESPNetv2(num_classes, width=self.width, num_outputs=self.num_outputs)


def conv(nin: int, nout: int, kernel: int, *, stride: int = 1, groups: int = 1, dilation: int = 1) -> nn.Conv2d:
    """A convolution without bias that keeps the size."""
    padding = (kernel - 1) // 2 * dilation
    return nn.Conv2d(nin, nout, kernel, stride=stride, padding=padding, groups=groups, dilation=dilation, bias=False)


def chain(**parts: nn.Module) -> nn.Sequential:
    """Named parts, one after the other."""
    return nn.Sequential(OrderedDict(parts))


def conv_bn_act(nin: int, nout: int, kernel: int, *, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return chain(
        conv=conv(nin, nout, kernel, stride=stride, groups=groups), bn=nn.BatchNorm2d(nout), act=nn.PReLU(nout)
    )


class Block(nn.Module):
    """Reduce, look with four dilations that are summed up, merge (the paper's EESP, figure 1)."""

    def __init__(self, nin: int, nout: int, *, stride: int = 1, dilations: tuple[int, ...] = WIDE) -> None:
        super().__init__()
        width = nout // BRANCHES
        self.stride = stride
        self.proj_1x1 = conv_bn_act(nin, width, 1, groups=BRANCHES)
        self.spp_dw = nn.ModuleList(
            chain(conv=conv(width, width, 3, stride=stride, groups=width, dilation=one)) for one in dilations
        )
        self.br_after_cat = chain(bn=nn.BatchNorm2d(nout), act=nn.PReLU(nout))
        self.conv_1x1_exp = chain(conv=conv(nout, nout, 1, groups=BRANCHES), bn=nn.BatchNorm2d(nout))
        self.module_act = nn.PReLU(nout)

    def forward(self, x: Tensor) -> Tensor:
        reduced = self.proj_1x1(x)
        sums = [self.spp_dw[0](reduced)]
        for branch in self.spp_dw[1:]:
            sums.append(branch(reduced) + sums[-1])
        merged: Tensor = self.conv_1x1_exp(self.br_after_cat(torch.cat(sums, 1)))
        if self.stride == 2:
            return merged
        out: Tensor = self.module_act(merged + x)
        return out


class Down(nn.Module):
    """Half the size: pooled input beside a block, plus the shrunken image."""

    def __init__(self, nin: int, nout: int) -> None:
        super().__init__()
        self.eesp = Block(nin, nout - nin, stride=2)
        self.inp_reinf = nn.Sequential(conv_bn_act(3, 3, 3), chain(conv=conv(3, nout, 1), bn=nn.BatchNorm2d(nout)))
        self.act = nn.PReLU(nout)

    def forward(self, x: Tensor, image: Tensor) -> Tensor:
        halved = torch.cat([_halve(x), self.eesp(x)], 1)
        while image.shape[-2] > halved.shape[-2]:
            image = _halve(image)
        out: Tensor = self.act(halved + self.inp_reinf(image))
        return out


def _halve(x: Tensor) -> Tensor:
    return functional.avg_pool2d(x, kernel_size=3, padding=1, stride=2)


class Encoder(nn.Module):
    """Levels of stride 2, 4, 8 and 16."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        first, second, third, fourth = widths
        self.level1 = conv_bn_act(3, first, 3, stride=2)
        self.level2_0 = Down(first, second)
        self.level3_0 = Down(second, third)
        self.level3 = nn.Sequential(*(Block(third, third) for _ in range(3)))
        self.level4_0 = Down(third, fourth)
        self.level4 = nn.Sequential(*(Block(fourth, fourth, dilations=NARROW) for _ in range(7)))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        first = self.level1(image)
        second = self.level2_0(first, image)
        third = self.level3(self.level3_0(second, image))
        return first, second, third, self.level4(self.level4_0(third, image))


class PyramidPool(nn.Module):
    """Five scales of a few channels, merged."""

    def __init__(self, nin: int, width: int, nout: int, *, last: bool = False) -> None:
        super().__init__()
        self.projection_layer = _named("cbr", _cbr(nin, width, 1))
        self.stages = nn.ModuleList(conv(width, width, 3, groups=width) for _ in POOL_SCALES)
        many = width * len(POOL_SCALES)
        self.merge_layer = nn.Sequential(
            _named("br", _br(many)),
            nn.ChannelShuffle(len(POOL_SCALES)),
            _named("cbr", _cbr(many, width, 3, groups=width)),
            nn.Conv2d(width, nout, 1, bias=last),
        )
        self.br = nn.Identity() if last else _named("br", _br(nout))

    def forward(self, x: Tensor) -> Tensor:
        x = self.projection_layer(x)
        size = (x.shape[-2], x.shape[-1])
        looks = [_at_scale(x, stage, scale, size) for stage, scale in zip(self.stages, POOL_SCALES, strict=True)]
        out: Tensor = self.br(self.merge_layer(torch.cat(looks, 1)))
        return out


def _at_scale(x: Tensor, stage: nn.Module, scale: float, size: tuple[int, int]) -> Tensor:
    height, width = (max(LEAST_POOL, math.ceil(side * scale)) for side in size)
    if scale < 1.0:
        return _enlarge(stage(functional.adaptive_avg_pool2d(x, (height, width))), size)
    if scale > 1.0:
        return functional.adaptive_avg_pool2d(stage(_enlarge(x, (height, width))), size)
    out: Tensor = stage(x)
    return out


def _enlarge(x: Tensor, size: tuple[int, int]) -> Tensor:
    return functional.interpolate(x, list(size), mode="bilinear", align_corners=True)


def _cbr(nin: int, nout: int, kernel: int, *, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(conv(nin, nout, kernel, groups=groups), *_br(nout))


def _br(width: int) -> nn.Sequential:
    return nn.Sequential(nn.BatchNorm2d(width), nn.PReLU(width))


def _named(name: str, part: nn.Module) -> nn.Sequential:
    return chain(**{name: part})


class Merge(nn.Module):
    """Encoder cells for the decoder, weighed by channel."""

    def __init__(self, nin: int, nout: int) -> None:
        super().__init__()
        self.wt_layer = nn.Sequential(nn.AdaptiveAvgPool2d(1), conv(nin, nout, 1), nn.Sigmoid())
        self.expansion_layer = _named("cbr", _cbr(nin, nout, 3, groups=math.gcd(nin, nout)))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.expansion_layer(x) * self.wt_layer(x)
        return out


class ESPNetv2(SegModel):
    """Encoder of four levels and a decoder that comes back to stride 2; scores at the size of the image."""

    class_dependent: ClassVar[tuple[str, ...]] = ("bu_dec_l4.merge_layer.3",)
    mean: Tensor
    std: Tensor

    def __init__(self, num_classes: int, *, width: float, num_outputs: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        widths, planes, narrow = CHANNELS[width], (64, 48, 32, num_outputs), min(num_outputs // 2, 16)
        self.base_net = Encoder(widths)
        ins = (widths[3], *planes[:3])
        for number, (nin, nout) in enumerate(zip(ins, planes, strict=True), start=1):
            self.add_module(f"bu_dec_l{number}", PyramidPool(nin, narrow, nout, last=number == 4))
        for number, (nin, nout) in enumerate(zip(widths[2::-1], planes[:3], strict=True), start=2):
            self.add_module(f"merge_enc_dec_l{number}", Merge(nin, nout))
            self.add_module(f"bu_br_l{number}", _br(nout))
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> SemanticOutput:
        height, width = images.shape[-2:]
        x = (images.float() / 255 - self.mean) / self.std
        x = functional.pad(x, (0, -width % STRIDE, 0, -height % STRIDE))
        *levels, deepest = self.base_net(x)
        out = self._part("bu_dec_l1", deepest)
        for number, level in enumerate(reversed(levels), start=2):
            out = functional.interpolate(out, scale_factor=2.0, mode="bilinear", align_corners=True)
            out = self._part(f"bu_br_l{number}", out + self._part(f"merge_enc_dec_l{number}", level))
            out = self._part(f"bu_dec_l{number}", out)
        scores = _enlarge(out, (x.shape[-2], x.shape[-1]))
        return SemanticOutput(scores[:, : self.num_classes, :height, :width])

    def _part(self, name: str, x: Tensor) -> Tensor:
        out: Tensor = self.get_submodule(name)(x)
        return out

    def loss(self, output: SemanticOutput, target: SemanticTarget) -> dict[str, Tensor]:
        return {"ce": functional.cross_entropy(output.logits, target.labels, ignore_index=target.void)}


def width_of(state: dict[str, Any]) -> float:
    """Which of the published widths a state dict has."""
    found = state["base_net.level1.conv.weight"].shape[0], state["base_net.level4_0.act.weight"].shape[0]
    return next(width for width, channels in CHANNELS.items() if (channels[0], channels[3]) == found)
