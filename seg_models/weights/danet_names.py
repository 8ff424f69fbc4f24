"""Published DANet checkpoints under our names, and back.

Official: junfu1115/DANet and its copy in PyTorch-Encoding, for presets `danet_*_official`. mmsegmentation: its
`danet_r*-d8_*` files, for presets `danet_resnet50` and `danet_resnet101`.

Trap: the official head's modules conv6, conv7, conv8 classify positions, channels and their sum, while its outputs come
in the order sum, positions, channels.
"""

from __future__ import annotations

from seg_models.weights.mmseg import AUXILIARY_HEAD, RESNET_V1C, with_axis, without_axis
from seg_models.weights.published import Layout

_OFFICIAL = {
    "pretrained": "backbone.network",
    "head.conv5a.0": "position.reduce.conv",
    "head.conv5a.1": "position.reduce.norm",
    "head.conv5c.0": "channel.reduce.conv",
    "head.conv5c.1": "channel.reduce.norm",
    "head.sa.query_conv": "position.attention.query",
    "head.sa.key_conv": "position.attention.key",
    "head.sa.value_conv": "position.attention.value",
    "head.sa.gamma": "position.attention.gamma",
    "head.sc.gamma": "channel.attention.gamma",
    "head.conv51.0": "position.refine.conv",
    "head.conv51.1": "position.refine.norm",
    "head.conv52.0": "channel.refine.conv",
    "head.conv52.1": "channel.refine.norm",
    "head.conv6.1": "position_classifier.conv",
    "head.conv7.1": "channel_classifier.conv",
    "head.conv8.1": "classifier.conv",
}

_MMSEG = {
    **RESNET_V1C,
    "decode_head.pam_in_conv.conv": "position.reduce.conv",
    "decode_head.pam_in_conv.bn": "position.reduce.norm",
    "decode_head.cam_in_conv.conv": "channel.reduce.conv",
    "decode_head.cam_in_conv.bn": "channel.reduce.norm",
    "decode_head.pam.query_project": "position.attention.query",
    "decode_head.pam.key_project": "position.attention.key",
    "decode_head.pam.value_project": "position.attention.value",
    "decode_head.pam.gamma.scale": "position.attention.gamma",
    "decode_head.cam.gamma.scale": "channel.attention.gamma",
    "decode_head.pam_out_conv.conv": "position.refine.conv",
    "decode_head.pam_out_conv.bn": "position.refine.norm",
    "decode_head.cam_out_conv.conv": "channel.refine.conv",
    "decode_head.cam_out_conv.bn": "channel.refine.norm",
    "decode_head.pam_conv_seg": "position_classifier.conv",
    "decode_head.cam_conv_seg": "channel_classifier.conv",
    "decode_head.conv_seg": "classifier.conv",
    **AUXILIARY_HEAD,
}


OFFICIAL = Layout("DANet", _OFFICIAL, presets=("danet_resnet50_official", "danet_resnet101_official"))
MMSEG = Layout(
    "mmsegmentation's DANet",
    _MMSEG,
    presets=("danet_resnet50", "danet_resnet101"),
    adapt=with_axis,
    restore=without_axis,
)
