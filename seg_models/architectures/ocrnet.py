"""OCRNet: object-contextual representations on a dilated backbone.

Yuan, Chen, Chen, Wang: Segmentation Transformer: Object-Contextual Representations for Semantic Segmentation, ECCV
2020, arXiv 1909.11065, section 3.

A head on the stage before the last says roughly what lies where: one soft region per class, learned with a loss of its
own. Under each region the features of the last stage are averaged into one representation per class; every cell then
looks at these, and what it sees is fused with its own features. `hrnet_ocr` is the same on a high-resolution network.

Deviations, each a setting where it matters:
- The head of the regions has 256 channels, no biases before batch norms and dropout of 0.1, as in mmsegmentation. The
  authors' code has 512 channels, biases and 0.05: `ocrnet_resnet101_official`.
- align_corners=False everywhere (mmsegmentation); the authors' code aligns corners.
- Softmax over cells and classes is computed in float32.

`mask_loss` lays CFT's loss of category masks on the scores of the regions (arXiv 2308.05581, table 3), beside their
cross-entropy; with `loss.aux_weight = 0` in the recipe it stands in its place.

Shapes: N batch, K classes, H W pixels, h w cells.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from seg_models.backbones.timm_backbone import Backbone, BackboneSpec
from seg_models.outputs import SegModel, SemanticOutput, SemanticTarget
from seg_models.parts.heads import ClassifierHead
from seg_models.parts.layers import ConvNormAct
from seg_models.parts.losses import cross_entropies
from seg_models.parts.mask_losses import MaskLossSpec, weighted_mask_losses
from seg_models.parts.ocr import ObjectContext
from seg_models.spec import ModelSpec


class OCRNetSpec(ModelSpec):
    """Settings of an OCRNet."""

    arch: Literal["ocrnet"] = "ocrnet"
    backbone: BackboneSpec = BackboneSpec(name="resnet50c", output_stride=8)
    channels: int = Field(512, gt=0)
    """Channels of the features that meet the classes."""
    key_channels: int = Field(256, gt=0)
    """Channels in which cells and classes are compared."""
    region_channels: int = Field(256, gt=0)
    """Channels of the head that makes the regions."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Probability that a channel before either classifier is zeroed in training."""
    conv_bias: bool = False
    """Biases in the 3×3 convolutions of neck and regions, before their batch norms (the authors' form)."""
    mask_loss: MaskLossSpec | None = None
    """CFT's loss of one mask per class on the scores of the regions, or None."""

    def build(self, num_classes: int) -> OCRNet:
        """The network for `num_classes` classes.

        Raises:
            ValueError: the last two levels of the backbone have cells of different sizes.
        """
        backbone = self.backbone.build()
        if backbone.strides[-1] != backbone.strides[-2]:
            raise ValueError(
                f"the last two levels must have equal strides, found {backbone.strides[-2:]} in {self.backbone.name}; "
                "set backbone.output_stride to 8 or 16"
            )
        regions = ClassifierHead(
            backbone.channels[-2], self.region_channels, num_classes, dropout=self.dropout, conv_bias=self.conv_bias
        )
        return OCRNet(
            backbone,
            regions=regions,
            neck=ConvNormAct(backbone.channels[-1], self.channels, kernel_size=3, bias=self.conv_bias),
            context=ObjectContext(self.channels, self.key_channels, dropout=self.dropout),
            classifier=nn.Conv2d(self.channels, num_classes, kernel_size=1),
            mask_loss=self.mask_loss,
        )


class OCRNet(SegModel):
    """Backbone, soft regions from the stage before the last, object context, classifier.

    The scores of the regions are the auxiliary output.

    Args:
        regions: features (N, C', h, w) of the level before the last to scores (N, K, h, w).
        neck: features of the last level to those that meet the classes.
        context: these features and the scores of the regions to features of the same shape.
        classifier: to the class scores.
        mask_loss: what the regions' scores are compared by besides cross-entropy.
    """

    class_dependent: ClassVar[tuple[str, ...]] = ("classifier.", "regions.classifier.")

    def __init__(
        self,
        backbone: Backbone,
        *,
        regions: ClassifierHead,
        neck: ConvNormAct,
        context: ObjectContext,
        classifier: nn.Conv2d,
        mask_loss: MaskLossSpec | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.regions = regions
        self.neck = neck
        self.context = context
        self.classifier = classifier
        self.mask_loss = mask_loss
        self.num_classes = classifier.out_channels
        self.output_stride = backbone.strides[-1]

    def forward(self, images: Tensor) -> SemanticOutput:
        """(N, 3, H, W) images, uint8 or float in 0..255, to scores (N, K, h, w)."""
        features = self.backbone(images)
        regions = self.regions(features[-2])
        logits = self.classifier(self.context(self.neck(features[-1]), regions))
        if not self.training:
            return SemanticOutput(logits)
        # Views: the gradient of each output is that of its own losses, without the way over the context.
        masks = {} if self.mask_loss is None else {"masks": regions.view_as(regions)}
        return SemanticOutput(logits, aux=(regions.view_as(regions),), extras=masks)

    def loss(self, output: SemanticOutput, target: SemanticTarget) -> dict[str, Tensor]:
        """`ce` of the classifier; in training `aux_ce` and, with `mask_loss`, the mask losses of the regions."""
        losses = cross_entropies(output, target)
        if self.mask_loss is not None and output.extras:
            losses |= weighted_mask_losses((output.extras["masks"],), target, self.mask_loss)
        return losses


PRESETS: dict[str, ModelSpec] = {
    "ocrnet_resnet50": OCRNetSpec(),
    "ocrnet_resnet101": OCRNetSpec(backbone=BackboneSpec(name="resnet101c", output_stride=8)),
    "ocrnet_resnet101_official": OCRNetSpec(
        backbone=BackboneSpec(name="resnet101c", output_stride=8), region_channels=512, dropout=0.05, conv_bias=True
    ),
    "ocrnet_efficientnet_lite0": OCRNetSpec(
        backbone=BackboneSpec(name="tf_efficientnet_lite0", output_stride=16),
        channels=128,
        key_channels=64,
        region_channels=64,
    ),
}
