"""Names of mmsegmentation's PSPNet checkpoints (`pspnet_r50-d8_*`, `pspnet_r101-d8_*`: ResNet v1c, stride 8).

They belong to `pspnet_resnet50` and `pspnet_resnet101`.
"""

from __future__ import annotations

from seg_models.weights.published import Layout

_STEM = {
    "backbone.stem.0": "backbone.network.conv1.0",
    "backbone.stem.1": "backbone.network.conv1.1",
    "backbone.stem.3": "backbone.network.conv1.3",
    "backbone.stem.4": "backbone.network.conv1.4",
    "backbone.stem.6": "backbone.network.conv1.6",
    "backbone.stem.7": "backbone.network.bn1",
}
_STAGES = {f"backbone.layer{number}": f"backbone.network.layer{number}" for number in range(1, 5)}
_HEADS = {
    "decode_head.bottleneck.conv": "head.conv.conv",
    "decode_head.bottleneck.bn": "head.conv.norm",
    "decode_head.conv_seg": "head.classifier",
    "auxiliary_head.convs.0.conv": "aux_head.conv.conv",
    "auxiliary_head.convs.0.bn": "aux_head.conv.norm",
    "auxiliary_head.conv_seg": "aux_head.classifier",
}
_CONTEXT = {
    f"decode_head.psp_modules.{level}.1.{theirs}": f"context.branches.{level}.{ours}"
    for level in range(4)
    for theirs, ours in (("conv", "conv"), ("bn", "norm"))
}

MMSEG_PSPNET = Layout(
    "mmsegmentation's PSPNet",
    {**_STEM, **_STAGES, **_CONTEXT, **_HEADS},
    presets=("pspnet_resnet50", "pspnet_resnet101"),
)
