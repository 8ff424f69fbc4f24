"""Checkpoints of CFT's and SemFPN's mmsegmentation code under our names, and back.

CFT: the layout of its code (specs: CFT section 7) with a ResNet, for presets `cft_resnet50` and `cft_resnet101`. No
checkpoint is known to be published. That code attends by softmax(max − q·k): the half of `kv` that makes keys is turned
round, so that the plain form of our presets gives its scores.
SemFPN: the `fpn_r50` and `fpn_r101` files, for presets `semfpn_resnet50` and `semfpn_resnet101`.
"""

from __future__ import annotations

from torch import Tensor

from seg_models.weights.mmseg import RESNET_V1C
from seg_models.weights.published import Layout

_BLOCK: dict[str, str] = {
    "norm_low": "norm_low",
    "norm_high": "norm_high",
    "cross_attn.q.depthwise_conv.conv": "attention.depthwise",
    "cross_attn.q.pointwise_conv.conv": "attention.pointwise",
    "cross_attn.kv.learner.0": "tokens.mask_features",
    "cross_attn.kv.learner.1": "tokens.masks",
    "cross_attn.kv.conv": "tokens.features",
    "cross_attn.kv.embed": "attention.kv",
    "cross_attn.proj": "attention.proj",
    "norm_mlp": "ffn.norm",
    "mlp.0": "ffn.expand",
    "mlp.1": "ffn.depthwise",
    "mlp.4": "ffn.project",
}
_CFT: dict[str, str] = {
    **RESNET_V1C,
    "decode_head.lateral_convs": "laterals",
    "decode_head.fpn_convs": "level_convs",
    **{f"decode_head.cfts.{i}.{theirs}": f"blocks.{i}.{ours}" for i in range(3) for theirs, ours in _BLOCK.items()},
    "decode_head.scale_heads.conv": "fusion.conv.conv",
    "decode_head.scale_heads.bn": "fusion.conv.norm",
    "decode_head.conv_seg": "classifier.conv",
}
_SEMFPN: dict[str, str] = {
    **RESNET_V1C,
    **{f"neck.lateral_convs.{i}.conv": f"pyramid.laterals.{i}" for i in range(4)},
    **{f"neck.fpn_convs.{i}.conv": f"pyramid.convs.{i}" for i in range(4)},
    **{  # between two convolutions stands an upsampling
        f"decode_head.scale_heads.{i}.{2 * step}.{theirs}": f"head.heads.{i}.{step}.{ours}"
        for i in range(4)
        for step in range(max(1, i))
        for theirs, ours in (("conv", "conv"), ("bn", "norm"))
    },
    "decode_head.conv_seg": "classifier.conv",
}


def _with_turned_keys(name: str, value: Tensor) -> Tensor:
    """The first half of the rows of every `kv`, which makes the keys, with the other sign."""
    if ".attention.kv." not in name or value.ndim == 0:
        return value
    sign = value.new_ones(len(value))
    sign[: len(value) // 2] = -1
    return value * sign.view(-1, *[1] * (value.ndim - 1))


CFT = Layout(
    "CFT's code",
    _CFT,
    presets=("cft_resnet50", "cft_resnet101"),
    adapt=_with_turned_keys,
    restore=_with_turned_keys,
)
SEMFPN = Layout("mmsegmentation's SemFPN", _SEMFPN, presets=("semfpn_resnet50", "semfpn_resnet101"))
