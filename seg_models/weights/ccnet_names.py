"""Published CCNet checkpoints under our names, and back.

Official: speedinghzl/CCNet, `CS_scenes_*.pth`, for presets `ccnet_resnet101_official*` with 19 classes. mmsegmentation:
its `ccnet_r*-d8_*` files, for presets `ccnet_resnet50` and `ccnet_resnet101`.

Traps of the official files: images were BGR, ours are RGB, so that the input channels of the first convolution are
turned round. Their in-place batch norms multiply by |weight| + 1e-5, ours by the weight. Some files have `module.`
before every name, and none has a batch norm's step counter.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from seg_models.weights.prefixes import inverse, rename

OFFICIAL: dict[str, str] = {
    "conv1.": "backbone.network.conv1.0.",
    "bn1.": "backbone.network.conv1.1.",
    "conv2.": "backbone.network.conv1.3.",
    "bn2.": "backbone.network.conv1.4.",
    "conv3.": "backbone.network.conv1.6.",
    "bn3.": "backbone.network.bn1.",
    "layer": "backbone.network.layer",
    "head.conva.0.": "reduce.conv.",
    "head.conva.1.": "reduce.norm.",
    "head.cca.query_conv.": "attention.0.query.",
    "head.cca.key_conv.": "attention.0.key.",
    "head.cca.value_conv.": "attention.0.value.",
    "head.cca.gamma": "attention.0.gamma",
    "head.convb.0.": "post.conv.",
    "head.convb.1.": "post.norm.",
    "head.bottleneck.0.": "head.conv.conv.",
    "head.bottleneck.1.": "head.conv.norm.",
    "head.bottleneck.3.": "head.classifier.",
    "dsn.0.": "aux_head.conv.conv.",
    "dsn.1.": "aux_head.conv.norm.",
    "dsn.3.": "aux_head.classifier.",
}

MMSEG: dict[str, str] = {
    "backbone.": "backbone.network.",
    "backbone.stem.0.": "backbone.network.conv1.0.",
    "backbone.stem.1.": "backbone.network.conv1.1.",
    "backbone.stem.3.": "backbone.network.conv1.3.",
    "backbone.stem.4.": "backbone.network.conv1.4.",
    "backbone.stem.6.": "backbone.network.conv1.6.",
    "backbone.stem.7.": "backbone.network.bn1.",
    "decode_head.convs.0.conv.": "reduce.conv.",
    "decode_head.convs.0.bn.": "reduce.norm.",
    "decode_head.cca.query_conv.": "attention.0.query.",
    "decode_head.cca.key_conv.": "attention.0.key.",
    "decode_head.cca.value_conv.": "attention.0.value.",
    "decode_head.cca.gamma.scale": "attention.0.gamma",
    "decode_head.convs.1.conv.": "post.conv.",
    "decode_head.convs.1.bn.": "post.norm.",
    "decode_head.conv_cat.conv.": "head.conv.conv.",
    "decode_head.conv_cat.bn.": "head.conv.norm.",
    "decode_head.conv_seg.": "head.classifier.",
    "auxiliary_head.convs.0.conv.": "aux_head.conv.conv.",
    "auxiliary_head.convs.0.bn.": "aux_head.conv.norm.",
    "auxiliary_head.conv_seg.": "aux_head.classifier.",
}

_FIRST = "conv1.weight"
_EPSILON = 1e-5


def from_official(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of an official checkpoint under our names; norms multiply by what in-place batch norm makes of them."""
    plain = {name.removeprefix("module."): value for name, value in tensors.items()}
    norms = {name.removesuffix("running_var") + "weight" for name in plain if name.endswith(".running_var")}
    theirs = {name: value.abs() + _EPSILON if name in norms else value for name, value in plain.items()}
    return rename(_turned(theirs), OFFICIAL)


def to_official(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors under official names, for norms that multiply by their weights as they are (not in place)."""
    counted = rename(tensors, inverse(OFFICIAL))
    return _turned({name: value for name, value in counted.items() if not name.endswith(".num_batches_tracked")})


def from_mmseg(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of mmsegmentation under our names; its factor γ has no axis, ours has one."""
    ours = rename(tensors, MMSEG)
    return {name: value.reshape(1) if name.endswith(".gamma") else value for name, value in ours.items()}


def to_mmseg(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors under mmsegmentation's names."""
    theirs = rename(tensors, inverse(MMSEG))
    return {name: value.reshape(()) if name.endswith(".gamma.scale") else value for name, value in theirs.items()}


def _turned(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """BGR to RGB, or back, where the images come in."""
    return {name: value.flip(1) if name == _FIRST else value for name, value in tensors.items()}
