"""DeepLabV3: atrous spatial pyramid pooling over a dilated backbone.

Chen, Papandreou, Schroff, Adam: Rethinking Atrous Convolution for Semantic Image Segmentation, arXiv 1706.05587.

The last features pass a 1×1 convolution, three 3×3 convolutions whose taps lie 12, 24 and 36 cells apart (at stride 8),
and a mean over the whole map (section 3.3); the five results side by side are brought to 256 channels.

Deviations, all torchvision's (`deeplabv3_resnet50`): a further 3×3 convolution before the classifier, an auxiliary
head on the stage before the last, no multi-grid. Dropout takes whole channels (torchvision: single values).

Backbone, context and head are put together by `seg_models.parts.context_net`.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from seg_models.backbones.timm_backbone import BackboneSpec
from seg_models.parts.context import projected_aspp
from seg_models.parts.context_net import ContextNet
from seg_models.parts.heads import ClassifierHead
from seg_models.spec import ModelSpec


class DeepLabV3Spec(ModelSpec):
    """Settings of a DeepLabV3."""

    arch: Literal["deeplabv3"] = "deeplabv3"
    backbone: BackboneSpec = BackboneSpec(name="resnet50", output_stride=8)
    dilations: tuple[int, ...] = (12, 24, 36)
    """Cells from tap to tap of the 3×3 branches; half of them at stride 16 (paper section 4.1)."""
    channels: int = Field(256, gt=0)
    """Channels of each branch, of their projection and of the head."""
    aux_channels: int | None = Field(256, gt=0)
    """Channels of the auxiliary head, or None for no auxiliary head."""
    context_dropout: float = Field(0.5, ge=0, lt=1)
    """Probability that a channel of the projected branches is zeroed in training."""
    aux_dropout: float = Field(0.1, ge=0, lt=1)
    """Probability that a channel before the auxiliary classifier is zeroed in training."""

    def build(self, num_classes: int) -> DeepLabV3:
        """The network for `num_classes` classes."""
        backbone = self.backbone.build()
        context = projected_aspp(
            backbone.channels[-1], self.channels, dilations=self.dilations, dropout=self.context_dropout
        )
        head = ClassifierHead(self.channels, self.channels, num_classes, dropout=0.0)
        if self.aux_channels is None:
            return DeepLabV3(backbone, context=context, head=head)
        aux_head = ClassifierHead(backbone.channels[-2], self.aux_channels, num_classes, dropout=self.aux_dropout)
        return DeepLabV3(backbone, context=context, head=head, aux_head=aux_head)


class DeepLabV3(ContextNet):
    """ASPP as the context."""


PRESETS: dict[str, ModelSpec] = {
    "deeplabv3_resnet50": DeepLabV3Spec(),
    "deeplabv3_resnet101": DeepLabV3Spec(backbone=BackboneSpec(name="resnet101", output_stride=8)),
    "deeplabv3_efficientnet_lite0": DeepLabV3Spec(
        backbone=BackboneSpec(name="tf_efficientnet_lite0", output_stride=16),
        dilations=(6, 12, 18),
        channels=64,
        aux_channels=64,
    ),
}
