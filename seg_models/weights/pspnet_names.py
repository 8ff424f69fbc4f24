"""Names of published PSPNet checkpoints.

mmsegmentation's (`pspnet_r50-d8_*`, `pspnet_r101-d8_*`: ResNet v1c, stride 8) belong to `pspnet_resnet50` and
`pspnet_resnet101`. PaddleSeg's (`pspnet_resnet50_os8_*`, `pspnet_resnet101_os8_*`, files `model.pdparams`) belong to
`pspnet_resnet50_paddleseg` and `pspnet_resnet101_paddleseg`.

Trap of PaddleSeg's: levels are made from the coarsest grid to the finest, and laid beside the features the other way
round, so that the input channels of the fusing convolution change places.
"""

from __future__ import annotations

import torch
from torch import Tensor

from seg_models.weights.mmseg import AUXILIARY_HEAD, RESNET_V1C
from seg_models.weights.paddleseg import RESNET_VD, conv_norm
from seg_models.weights.published import Layout

NUM_LEVELS = 4

_HEADS = {
    "decode_head.bottleneck.conv": "head.conv.conv",
    "decode_head.bottleneck.bn": "head.conv.norm",
    "decode_head.conv_seg": "head.classifier",
    **AUXILIARY_HEAD,
}
_CONTEXT = {
    f"decode_head.psp_modules.{level}.1.{theirs}": f"context.branches.{level}.{ours}"
    for level in range(NUM_LEVELS)
    for theirs, ours in (("conv", "conv"), ("bn", "norm"))
}

MMSEG_PSPNET = Layout(
    "mmsegmentation's PSPNet",
    {**RESNET_V1C, **_CONTEXT, **_HEADS},
    presets=("pspnet_resnet50", "pspnet_resnet101"),
)

_PADDLESEG: dict[str, str] = {
    **RESNET_VD,
    **{
        name: place
        for level in range(NUM_LEVELS)
        for name, place in conv_norm(f"head.psp_module.stages.{level}.1", f"context.branches.{level}").items()
    },
    **conv_norm("head.psp_module.conv_bn_relu2", "head.conv"),
    "head.conv": "head.classifier",
    **conv_norm("head.auxlayer.conv_bn_relu", "aux_head.conv"),
    "head.auxlayer.conv": "aux_head.classifier",
}


def _levels_reversed(name: str, value: Tensor) -> Tensor:
    """The fusing convolution with the levels behind the features in reverse, which is the way back too."""
    if name != "head.conv.conv.weight" or value.ndim != 4 or value.shape[1] % (2 * NUM_LEVELS):
        return value
    features, levels = value.tensor_split(2, dim=1)
    return torch.cat([features, *reversed(levels.chunk(NUM_LEVELS, dim=1))], dim=1)


PADDLESEG_PSPNET = Layout(
    "PaddleSeg's PSPNet",
    _PADDLESEG,
    presets=("pspnet_resnet50_paddleseg", "pspnet_resnet101_paddleseg"),
    adapt=_levels_reversed,
    restore=_levels_reversed,
    counters=False,
)
