"""Names of mmsegmentation's PSPNet checkpoints (`pspnet_r50-d8_*`, `pspnet_r101-d8_*`: ResNet v1c, stride 8).

They belong to `pspnet_resnet50` and `pspnet_resnet101`.
"""

from __future__ import annotations

from seg_models.weights.mmseg import AUXILIARY_HEAD, RESNET_V1C
from seg_models.weights.published import Layout

_HEADS = {
    "decode_head.bottleneck.conv": "head.conv.conv",
    "decode_head.bottleneck.bn": "head.conv.norm",
    "decode_head.conv_seg": "head.classifier",
    **AUXILIARY_HEAD,
}
_CONTEXT = {
    f"decode_head.psp_modules.{level}.1.{theirs}": f"context.branches.{level}.{ours}"
    for level in range(4)
    for theirs, ours in (("conv", "conv"), ("bn", "norm"))
}

MMSEG_PSPNET = Layout(
    "mmsegmentation's PSPNet",
    {**RESNET_V1C, **_CONTEXT, **_HEADS},
    presets=("pspnet_resnet50", "pspnet_resnet101"),
)
