"""PSPNet: pyramid scene parsing network.

Zhao, Shi, Qi, Wang, Jia: Pyramid Scene Parsing Network, CVPR 2017, arXiv 1612.01105.

The features of a dilated backbone are averaged over grids of 1, 2, 3 and 6 cells a side, each average is brought to
1/4 of the channels, enlarged again and laid beside the features; a 3×3 convolution and a classifier follow. An
auxiliary classifier looks at the stage before the last one in training (paper section 3.3, weight 0.4).

Deviations, each a setting where it matters:
- The ResNet has a deep stem (three 3×3 convolutions), as in the paper's code and mmsegmentation.
- Enlarging is bilinear with align_corners=False everywhere (mmsegmentation, PaddleSeg); the paper's Caffe code aligns
  corners. Inputs whose sides are multiples of the output stride then align exactly.
- PaddleSeg has a fusing convolution of 1024 channels, biases before batch norms, one dilation for all blocks of a stage
  and inputs between -1 and 1: presets `pspnet_resnet50_paddleseg` and `pspnet_resnet101_paddleseg`. Without these the
  counts are those of mmsegmentation.

Backbone, context and head are put together by `seg_models.parts.context_net`.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from seg_models.backbones.dilation import dilate_whole_stages
from seg_models.backbones.timm_backbone import BackboneSpec
from seg_models.parts.context import PyramidPooling
from seg_models.parts.context_net import ContextNet
from seg_models.parts.heads import ClassifierHead
from seg_models.spec import ModelSpec


class PSPNetSpec(ModelSpec):
    """Settings of a PSPNet."""

    arch: Literal["pspnet"] = "pspnet"
    backbone: BackboneSpec = BackboneSpec(name="resnet50c", output_stride=8)
    bins: tuple[int, ...] = Field((1, 2, 3, 6), min_length=1)
    """Side lengths of the pooling grids, in cells."""
    pool_channels: int | None = Field(None, gt=0)
    """Channels of each pooled branch; default: backbone channels / number of bins, as in the paper."""
    head_channels: int = Field(512, gt=0)
    """Channels of the 3×3 convolution that fuses features and context."""
    aux_channels: int | None = Field(256, gt=0)
    """Channels of the auxiliary head, or None for no auxiliary head."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Probability that a channel before a classifier is zeroed in training."""
    conv_bias: bool = False
    """Biases in the convolutions before batch norms of context and heads (PaddleSeg's form)."""
    released_dilation: bool = False
    """All blocks of a dilated stage of a ResNet have its dilation, and no shortcut there pools (PaddleSeg's form)."""

    def build(self, num_classes: int) -> PSPNet:
        """The network for `num_classes` classes."""
        backbone = self.backbone.build()
        if self.released_dilation:
            dilate_whole_stages(backbone)
        context = PyramidPooling(
            backbone.channels[-1], bins=self.bins, channels=self.pool_channels, conv_bias=self.conv_bias
        )
        head = ClassifierHead(
            context.out_channels, self.head_channels, num_classes, dropout=self.dropout, conv_bias=self.conv_bias
        )
        if self.aux_channels is None:
            return PSPNet(backbone, context=context, head=head)
        aux_head = ClassifierHead(
            backbone.channels[-2], self.aux_channels, num_classes, dropout=self.dropout, conv_bias=self.conv_bias
        )
        return PSPNet(backbone, context=context, head=head, aux_head=aux_head)


class PSPNet(ContextNet):
    """Pyramid pooling as the context."""


def _paddleseg(backbone: str) -> PSPNetSpec:
    return PSPNetSpec(
        backbone=BackboneSpec(name=backbone, output_stride=8, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
        head_channels=1024,
        conv_bias=True,
        released_dilation=True,
    )


PRESETS: dict[str, ModelSpec] = {
    "pspnet_resnet50": PSPNetSpec(),
    "pspnet_resnet50_paddleseg": _paddleseg("resnet50d"),
    "pspnet_resnet101_paddleseg": _paddleseg("resnet101d"),
    "pspnet_resnet101": PSPNetSpec(backbone=BackboneSpec(name="resnet101c", output_stride=8)),
    "pspnet_mobilenetv2": PSPNetSpec(
        backbone=BackboneSpec(name="mobilenetv2_100", output_stride=16), head_channels=128, aux_channels=64
    ),
    "pspnet_efficientnet_lite0": PSPNetSpec(
        backbone=BackboneSpec(name="tf_efficientnet_lite0", output_stride=16), head_channels=128, aux_channels=64
    ),
    "pspnet_resnet10t_narrow": PSPNetSpec(
        backbone=BackboneSpec(
            name="resnet10t", output_stride=8, model_kwargs={"channels": (16, 32, 64, 128), "stem_width": 16}
        ),
        head_channels=64,
        aux_channels=32,
    ),
}
