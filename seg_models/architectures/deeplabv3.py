"""DeepLabV3: atrous spatial pyramid pooling over a dilated backbone.

Chen, Papandreou, Schroff, Adam: Rethinking Atrous Convolution for Semantic Image Segmentation, arXiv 1706.05587.

The last features pass a 1×1 convolution, three 3×3 convolutions whose taps lie 12, 24 and 36 cells apart (at stride 8),
and a mean over the whole map (section 3.3); the five results side by side are brought to 256 channels.

Deviations, all torchvision's (`deeplabv3_resnet50`): a further 3×3 convolution before the classifier, an auxiliary
head on the stage before the last, no multi-grid. Dropout takes whole channels (torchvision: single values).

Shapes: N batch, C channels, K classes, H W pixels, h w cells.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from seg_models.backbones.timm_backbone import Backbone, BackboneSpec
from seg_models.outputs import SegModel, SemanticOutput, SemanticTarget
from seg_models.parts.context import projected_aspp
from seg_models.parts.heads import ClassifierHead
from seg_models.parts.losses import cross_entropies
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


class DeepLabV3(SegModel):
    """Backbone, ASPP, head; an auxiliary head on the level before the last in training."""

    class_dependent: ClassVar[tuple[str, ...]] = ("head.classifier.", "aux_head.classifier.")

    def __init__(
        self,
        backbone: Backbone,
        *,
        context: nn.Module,
        head: ClassifierHead,
        aux_head: ClassifierHead | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.context = context
        self.head = head
        self.aux_head = aux_head
        self.num_classes = head.classifier.out_channels
        self.output_stride = backbone.strides[-1]

    def forward(self, images: Tensor) -> SemanticOutput:
        """(N, 3, H, W) images, uint8 or float in 0..255, to scores (N, K, h, w)."""
        features = self.backbone(images)
        logits = self.head(self.context(features[-1]))
        if self.aux_head is None or not self.training:
            return SemanticOutput(logits)
        return SemanticOutput(logits, aux=(self.aux_head(features[-2]),))

    def loss(self, output: SemanticOutput, target: SemanticTarget) -> dict[str, Tensor]:
        """`ce` of the head and, in training, `aux_ce` of the auxiliary head, both unweighted."""
        return cross_entropies(output, target)


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
