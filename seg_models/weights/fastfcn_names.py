"""Published FastFCN checkpoints under our names, and back.

Official: wuhuikai/FastFCN, for presets `fastfcn_*` without ending, `_dilated` and `_jpux`. mmsegmentation: its
`fastfcn_r50-d32_jpu_*` files, for presets `fastfcn_*_mmseg`.

Traps: the official JPU lays its levels side by side from coarse to fine, ours and mmsegmentation's from fine to coarse;
mmsegmentation's ASPP has the mean of the map first, ours last. Channels are permuted accordingly, both ways.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from seg_models.weights.mmseg import AUXILIARY_HEAD, RESNET_V1C
from seg_models.weights.published import Layout, keep

Table = Mapping[str, str]
_BACKBONES = ("resnet50", "resnet101")
_BEHIND_ASPP = "head.fuse.conv.conv.weight"

_OFFICIAL_BODY: Table = {
    "pretrained": "backbone.network",
    "jpu.conv3.0": "upsampling.levels.0.conv",
    "jpu.conv3.1": "upsampling.levels.0.norm",
    "jpu.conv4.0": "upsampling.levels.1.conv",
    "jpu.conv4.1": "upsampling.levels.1.norm",
    "jpu.conv5.0": "upsampling.levels.2.conv",
    "jpu.conv5.1": "upsampling.levels.2.norm",
    **{
        f"jpu.dilation{number + 1}.{theirs}": f"upsampling.branches.{number}.{ours}"
        for number in range(4)
        for theirs, ours in (
            ("0.conv1", "depthwise"),
            ("0.bn", "depthwise_norm"),
            ("0.pointwise", "pointwise"),
            ("1", "norm"),
        )
    },
    **{
        f"jpu.jum_{step}.{theirs}": f"upsampling.{name}.{ours}"
        for step, name in ((1, "first"), (2, "second"))
        for theirs, ours in (
            ("conv_l.0", "coarse.conv"),
            ("conv_l.1", "coarse.norm"),
            ("conv_h.0", "fine.conv"),
            ("conv_h.1", "fine.norm"),
            *((f"dilation{number + 1}.0.conv1", f"branches.{number}.depthwise") for number in range(3)),
            *((f"dilation{number + 1}.0.bn", f"branches.{number}.depthwise_norm") for number in range(3)),
            *((f"dilation{number + 1}.0.pointwise", f"branches.{number}.pointwise") for number in range(3)),
            *((f"dilation{number + 1}.1", f"branches.{number}.norm") for number in range(3)),
        )
    },
    "auxlayer.conv5.0": "aux_head.conv.conv",
    "auxlayer.conv5.1": "aux_head.conv.norm",
    "auxlayer.conv5.4": "aux_head.classifier",
}
_OFFICIAL_HEADS: dict[str, Table] = {
    "enc": {
        "head.conv5.0": "head.reduce.conv",
        "head.conv5.1": "head.reduce.norm",
        "head.connect.0.0": "head.laterals.laterals.0.conv",
        "head.connect.0.1": "head.laterals.laterals.0.norm",
        "head.connect.1.0": "head.laterals.laterals.1.conv",
        "head.connect.1.1": "head.laterals.laterals.1.norm",
        "head.fusion.0": "head.laterals.fusion.conv",
        "head.fusion.1": "head.laterals.fusion.norm",
        "head.encmodule.encoding.0": "head.context.project.conv",
        "head.encmodule.encoding.1": "head.context.project.norm",
        "head.encmodule.encoding.3": "head.context.encoding",
        "head.encmodule.encoding.4": "head.context.norm",
        "head.encmodule.fc.0": "head.context.gate",
        "head.encmodule.selayer": "head.se",
        "head.conv6.1": "head.classifier",
    },
    "aspp": {
        "head.aspp.b0.0": "head.context.aspp.point.conv",
        "head.aspp.b0.1": "head.context.aspp.point.norm",
        "head.aspp.b1.0": "head.context.aspp.dilated.0.conv",
        "head.aspp.b1.1": "head.context.aspp.dilated.0.norm",
        "head.aspp.b2.0": "head.context.aspp.dilated.1.conv",
        "head.aspp.b2.1": "head.context.aspp.dilated.1.norm",
        "head.aspp.b3.0": "head.context.aspp.dilated.2.conv",
        "head.aspp.b3.1": "head.context.aspp.dilated.2.norm",
        "head.aspp.b4.gap.1": "head.context.aspp.image.conv",
        "head.aspp.b4.gap.2": "head.context.aspp.image.norm",
        "head.aspp.project.0": "head.context.project.conv",
        "head.aspp.project.1": "head.context.project.norm",
        "head.block.0": "head.fuse.conv.conv",
        "head.block.1": "head.fuse.conv.norm",
        "head.block.4": "head.fuse.classifier",
    },
    "psp": {
        **{
            f"head.conv5.0.conv{number + 1}.{index}": f"head.context.branches.{number}.{part}"
            for number in range(4)
            for index, part in enumerate(("conv", "norm"))
        },
        "head.conv5.1": "head.fuse.conv.conv",
        "head.conv5.2": "head.fuse.conv.norm",
        "head.conv5.5": "head.fuse.classifier",
    },
    "fcn": {
        "head.conv5.0": "head.fuse.conv.conv",
        "head.conv5.1": "head.fuse.conv.norm",
        "head.conv5.4": "head.fuse.classifier",
    },
}
_MMSEG_BODY: Table = {
    **RESNET_V1C,
    **{f"neck.conv_layers.{number}.0.conv": f"upsampling.levels.{number}.conv" for number in range(3)},
    **{f"neck.conv_layers.{number}.0.bn": f"upsampling.levels.{number}.norm" for number in range(3)},
    **{
        f"neck.dilation_layers.{number}.0.{theirs}": f"upsampling.branches.{number}.{ours}"
        for number in range(4)
        for theirs, ours in (
            ("depthwise_conv.conv", "depthwise"),
            ("depthwise_conv.bn", "depthwise_norm"),
            ("pointwise_conv.conv", "pointwise"),
            ("pointwise_conv.bn", "norm"),
        )
    },
    **AUXILIARY_HEAD,
}
_MMSEG_FUSE: Table = {
    "decode_head.bottleneck.conv": "head.fuse.conv.conv",
    "decode_head.bottleneck.bn": "head.fuse.conv.norm",
    "decode_head.conv_seg": "head.fuse.classifier",
}
_MMSEG_HEADS: dict[str, Table] = {
    "enc": {
        "decode_head.bottleneck.conv": "head.reduce.conv",
        "decode_head.bottleneck.bn": "head.reduce.norm",
        "decode_head.enc_module.encoding_project.conv": "head.context.project.conv",
        "decode_head.enc_module.encoding_project.bn": "head.context.project.norm",
        "decode_head.enc_module.encoding.0": "head.context.encoding",
        "decode_head.enc_module.encoding.1": "head.context.norm",
        "decode_head.enc_module.fc.0": "head.context.gate",
        "decode_head.se_layer": "head.se",
        "decode_head.conv_seg": "head.classifier",
    },
    "aspp": {
        **_MMSEG_FUSE,
        "decode_head.image_pool.1.conv": "head.context.image.conv",
        "decode_head.image_pool.1.bn": "head.context.image.norm",
        "decode_head.aspp_modules.0.conv": "head.context.point.conv",
        "decode_head.aspp_modules.0.bn": "head.context.point.norm",
        **{f"decode_head.aspp_modules.{n + 1}.conv": f"head.context.dilated.{n}.conv" for n in range(3)},
        **{f"decode_head.aspp_modules.{n + 1}.bn": f"head.context.dilated.{n}.norm" for n in range(3)},
    },
    "psp": {
        **_MMSEG_FUSE,
        **{f"decode_head.psp_modules.{n}.1.conv": f"head.context.branches.{n}.conv" for n in range(4)},
        **{f"decode_head.psp_modules.{n}.1.bn": f"head.context.branches.{n}.norm" for n in range(4)},
    },
}
_JPU_BRANCH = re.compile(r"upsampling\.branches\.\d+\.(depthwise|depthwise_norm|pointwise)\.(?!num_batches)")


def _reverse_levels(name: str, value: Tensor) -> Tensor:
    """The three groups of channels that enter a JPU's branches, the last one first."""
    if not _JPU_BRANCH.match(name):
        return value
    return _permute(value, axis=1 if "pointwise" in name else 0, order=(2, 1, 0))


def _mean_last(name: str, value: Tensor) -> Tensor:
    """The five groups of channels behind an ASPP without projection, the first one last."""
    return _permute(value, axis=1, order=(1, 2, 3, 4, 0)) if name == _BEHIND_ASPP else value


def _mean_first(name: str, value: Tensor) -> Tensor:
    return _permute(value, axis=1, order=(4, 0, 1, 2, 3)) if name == _BEHIND_ASPP else value


def _permute(value: Tensor, *, axis: int, order: tuple[int, ...]) -> Tensor:
    """Groups of channels along an axis in another order; a tensor without such groups as it is."""
    if value.ndim <= axis or value.shape[axis] % len(order):
        return value
    groups = value.chunk(len(order), dim=axis)
    return torch.cat([groups[group] for group in order], dim=axis)


def _official(head: str, *endings: str) -> Layout:
    presets = tuple(f"fastfcn_{backbone}_{head}{end}" for backbone in _BACKBONES for end in ("", *endings))
    return Layout(
        f"the authors' FastFCN ({head} head)",
        {**_OFFICIAL_BODY, **_OFFICIAL_HEADS[head]},
        presets=presets,
        never_used=("pretrained.fc",),
        adapt=_reverse_levels,
        restore=_reverse_levels,
    )


def _mmseg(head: str) -> Layout:
    return Layout(
        f"mmsegmentation's FastFCN ({head} head)",
        {**_MMSEG_BODY, **_MMSEG_HEADS[head]},
        presets=tuple(f"fastfcn_{backbone}_{head}_mmseg" for backbone in _BACKBONES),
        adapt=_mean_last if head == "aspp" else keep,
        restore=_mean_first if head == "aspp" else keep,
    )


OFFICIAL: dict[str, Layout] = {
    "enc": _official("enc", "_dilated", "_jpux"),
    **{head: _official(head, "_dilated") for head in ("aspp", "psp", "fcn")},
}
"""Head -> layout: the same published name means another module in another head."""
MMSEG: dict[str, Layout] = {head: _mmseg(head) for head in _MMSEG_HEADS}
"""Head -> layout."""
