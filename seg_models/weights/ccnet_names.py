"""Published CCNet checkpoints under our names, and back.

Official: speedinghzl/CCNet, `CS_scenes_*.pth`, for presets `ccnet_resnet101_official*` with 19 classes. mmsegmentation:
its `ccnet_r*-d8_*` files, for presets `ccnet_resnet50` and `ccnet_resnet101`.

Traps of the official files: images were BGR, ours are RGB, so that the input channels of the first convolution are
turned round. Their in-place batch norms multiply by |weight| + 1e-5, ours by the weight. Some files have `module.`
before every name, and none has a batch norm's step counter.
"""

from __future__ import annotations

from torch import Tensor

from seg_models.weights.mmseg import AUXILIARY_HEAD, RESNET_V1C, with_axis, without_axis
from seg_models.weights.published import Layout

_OFFICIAL: dict[str, str] = {
    "conv1": "backbone.network.conv1.0",
    "bn1": "backbone.network.conv1.1",
    "conv2": "backbone.network.conv1.3",
    "bn2": "backbone.network.conv1.4",
    "conv3": "backbone.network.conv1.6",
    "bn3": "backbone.network.bn1",
    **{f"layer{number}": f"backbone.network.layer{number}" for number in range(1, 5)},
    "head.conva.0": "reduce.conv",
    "head.conva.1": "reduce.norm",
    "head.cca.query_conv": "attention.0.query",
    "head.cca.key_conv": "attention.0.key",
    "head.cca.value_conv": "attention.0.value",
    "head.cca.gamma": "attention.0.gamma",
    "head.convb.0": "post.conv",
    "head.convb.1": "post.norm",
    "head.bottleneck.0": "head.conv.conv",
    "head.bottleneck.1": "head.conv.norm",
    "head.bottleneck.3": "head.classifier",
    "dsn.0": "aux_head.conv.conv",
    "dsn.1": "aux_head.conv.norm",
    "dsn.3": "aux_head.classifier",
}

_MMSEG: dict[str, str] = {
    **RESNET_V1C,
    "decode_head.convs.0.conv": "reduce.conv",
    "decode_head.convs.0.bn": "reduce.norm",
    "decode_head.cca.query_conv": "attention.0.query",
    "decode_head.cca.key_conv": "attention.0.key",
    "decode_head.cca.value_conv": "attention.0.value",
    "decode_head.cca.gamma.scale": "attention.0.gamma",
    "decode_head.convs.1.conv": "post.conv",
    "decode_head.convs.1.bn": "post.norm",
    "decode_head.conv_cat.conv": "head.conv.conv",
    "decode_head.conv_cat.bn": "head.conv.norm",
    "decode_head.conv_seg": "head.classifier",
    **AUXILIARY_HEAD,
}

_FIRST = "backbone.network.conv1.0.weight"
_EPSILON = 1e-5


def _turned(name: str, value: Tensor) -> Tensor:
    """BGR to RGB, or back, where the images come in."""
    return value.flip(1) if name == _FIRST and value.ndim == 4 else value


def _from_in_place(name: str, value: Tensor) -> Tensor:
    """RGB, and norms that multiply by what in-place batch norm makes of their weights: the only ones with one axis."""
    is_norm = value.ndim == 1 and name.endswith(".weight")
    return value.abs() + _EPSILON if is_norm else _turned(name, value)


OFFICIAL = Layout(
    "the authors' CCNet",
    _OFFICIAL,
    presets=tuple(f"ccnet_resnet101_official{rounds}" for rounds in ("", "_r1", "_r3")),
    adapt=_from_in_place,
    restore=_turned,  # for norms that multiply by their weights as they are, not in place
    counters=False,
)
MMSEG = Layout(
    "mmsegmentation's CCNet",
    _MMSEG,
    presets=("ccnet_resnet50", "ccnet_resnet101"),
    adapt=with_axis,
    restore=without_axis,
)
