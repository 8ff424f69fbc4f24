"""FCN: a fully convolutional network over a dilated backbone.

Long, Shelhamer, Darrell: Fully Convolutional Networks for Semantic Segmentation, CVPR 2015, arXiv 1411.4038.

A classifier that is a convolution gives every cell of the last features its class scores. This is the form in which
FCN is compared with in later papers (torchvision's `fcn_resnet50`): a ResNet dilated to stride 8 instead of VGG with
skips, a 3×3 convolution before the classifier, and an auxiliary head of the same form on the stage before the last.

Deviations: dropout takes whole channels (torchvision: single values). mmsegmentation's head has a second 3×3
convolution and a skip around both; its published results are not of this network.

Backbone, context and head are put together by `seg_models.parts.context_net`.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import nn

from seg_models.backbones.timm_backbone import BackboneSpec
from seg_models.parts.context_net import ContextNet
from seg_models.parts.heads import ClassifierHead
from seg_models.spec import ModelSpec


class FCNSpec(ModelSpec):
    """Settings of an FCN."""

    arch: Literal["fcn"] = "fcn"
    backbone: BackboneSpec = BackboneSpec(name="resnet50", output_stride=8)
    head_channels: int = Field(512, gt=0)
    """Channels of the 3×3 convolution before the classifier."""
    aux_channels: int | None = Field(256, gt=0)
    """Channels of the auxiliary head, or None for no auxiliary head."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Probability that a channel before a classifier is zeroed in training."""

    def build(self, num_classes: int) -> FCN:
        """The network for `num_classes` classes."""
        backbone = self.backbone.build()
        head = ClassifierHead(backbone.channels[-1], self.head_channels, num_classes, dropout=self.dropout)
        if self.aux_channels is None:
            return FCN(backbone, context=nn.Identity(), head=head)
        aux_head = ClassifierHead(backbone.channels[-2], self.aux_channels, num_classes, dropout=self.dropout)
        return FCN(backbone, context=nn.Identity(), head=head, aux_head=aux_head)


class FCN(ContextNet):
    """No context: the head sees the backbone's features."""


PRESETS: dict[str, ModelSpec] = {
    "fcn_resnet50": FCNSpec(),
    "fcn_resnet101": FCNSpec(backbone=BackboneSpec(name="resnet101", output_stride=8)),
    "fcn_efficientnet_lite0": FCNSpec(
        backbone=BackboneSpec(name="tf_efficientnet_lite0", output_stride=16), head_channels=128, aux_channels=64
    ),
}
