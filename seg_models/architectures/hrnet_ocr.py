"""HRNet-OCR: object-contextual representations on a high-resolution network.

Yuan, Chen, Chen, Wang: Segmentation Transformer: Object-Contextual Representations for Semantic Segmentation, ECCV
2020, arXiv 1909.11065; Wang, Sun, Cheng et al.: Deep High-Resolution Representation Learning, TPAMI 2020, arXiv
1908.07919.

The four levels of HRNetV2 are laid side by side at stride 4. Region scores, learned with a loss of their own, gather
one representation per class; each cell then looks at the classes, and what it sees is fused with its own features.
The same network without object context is the plain HRNetV2 (`hrnet_w48`): its head is that of the region scores.

Deviations, each a setting where it matters:
- The convolutions before the batch norms of neck and regions have biases, as in the authors' code; mmsegmentation has
  none there: `conv_bias = false`.
- align_corners=False everywhere, as in NVIDIA's code; `backbone.align_corners` gives the inside of the network the
  form of the authors' repository (scores are enlarged to pixels without it).
- Softmax over cells and classes is computed in float32.

Shapes: N batch, C channels, K classes, H W pixels, h w cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from seg_models.backbones.hrnet import HRNetSpec
from seg_models.backbones.timm_backbone import Backbone
from seg_models.outputs import SegModel, SemanticOutput, SemanticTarget
from seg_models.parts.layers import ConvNormAct
from seg_models.parts.losses import cross_entropies
from seg_models.parts.ocr import ObjectContext, SoftRegions
from seg_models.spec import ModelSpec


class HRNetOCRSpec(ModelSpec):
    """Settings of an HRNet with or without object context."""

    arch: Literal["hrnet_ocr"] = "hrnet_ocr"
    backbone: HRNetSpec = HRNetSpec(name="hrnet_w48")
    channels: int | None = Field(512, gt=0)
    """Channels of the features that meet the classes, or None for HRNetV2 without object context."""
    key_channels: int = Field(256, gt=0)
    """Channels in which cells and classes are compared."""
    dropout: float = Field(0.05, ge=0, lt=1)
    """Probability that a channel before the classifier is zeroed in training."""
    conv_bias: bool = True
    """Biases in the convolutions before the batch norms of neck and regions (the authors' form)."""

    def build(self, num_classes: int) -> SegModel:
        """The network for `num_classes` classes."""
        backbone = self.backbone.build()
        levels = LevelsSideBySide(align_corners=self.backbone.align_corners)
        wide = sum(backbone.channels)
        regions = SoftRegions(wide, num_classes, conv_bias=self.conv_bias)
        if self.channels is None:
            return HRNet(backbone, levels=levels, head=regions)
        return HRNetOCR(
            backbone,
            levels=levels,
            neck=ConvNormAct(wide, self.channels, kernel_size=3, bias=self.conv_bias),
            regions=regions,
            context=ObjectContext(self.channels, self.key_channels, dropout=self.dropout),
            classifier=nn.Conv2d(self.channels, num_classes, kernel_size=1),
        )


class LevelsSideBySide(nn.Module):
    """All levels at the size of the first, concatenated (HRNetV2, arXiv 1908.07919 figure 4b)."""

    def __init__(self, *, align_corners: bool = False) -> None:
        super().__init__()
        self.align_corners = align_corners

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Levels (N, C_i, h_i, w_i) to (N, ΣC_i, h_0, w_0)."""
        size = levels[0].shape[-2:]
        coarse = [
            functional.interpolate(level, size=size, mode="bilinear", align_corners=self.align_corners)
            for level in levels[1:]
        ]
        return torch.cat([levels[0], *coarse], dim=1)


class HRNetOCR(SegModel):
    """Backbone, soft regions, object context, classifier; the regions' scores are the auxiliary output."""

    class_dependent: ClassVar[tuple[str, ...]] = ("classifier.", "regions.classifier.")

    def __init__(
        self,
        backbone: Backbone,
        *,
        levels: LevelsSideBySide,
        neck: ConvNormAct,
        regions: SoftRegions,
        context: ObjectContext,
        classifier: nn.Conv2d,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.levels = levels
        self.neck = neck
        self.regions = regions
        self.context = context
        self.classifier = classifier
        self.num_classes = classifier.out_channels
        self.output_stride = backbone.strides[0]

    def forward(self, images: Tensor) -> SemanticOutput:
        """(N, 3, H, W) images, uint8 or float in 0..255, to scores (N, K, h, w)."""
        features = self.levels(self.backbone(images))
        regions = self.regions(features)
        logits = self.classifier(self.context(self.neck(features), regions))
        if not self.training:
            return SemanticOutput(logits)
        # A view: the gradient of the auxiliary output is that of its own loss, without the way over the context.
        return SemanticOutput(logits, aux=(regions.view_as(regions),))

    def loss(self, output: SemanticOutput, target: SemanticTarget) -> dict[str, Tensor]:
        """`ce` of the classifier and, in training, `aux_ce` of the soft regions, both unweighted."""
        return cross_entropies(output, target)


class HRNet(SegModel):
    """Backbone and classifier: HRNetV2 for segmentation."""

    class_dependent: ClassVar[tuple[str, ...]] = ("head.classifier.",)

    def __init__(self, backbone: Backbone, *, levels: LevelsSideBySide, head: SoftRegions) -> None:
        super().__init__()
        self.backbone = backbone
        self.levels = levels
        self.head = head
        self.num_classes = head.classifier.out_channels
        self.output_stride = backbone.strides[0]

    def forward(self, images: Tensor) -> SemanticOutput:
        """(N, 3, H, W) images, uint8 or float in 0..255, to scores (N, K, h, w)."""
        return SemanticOutput(self.head(self.levels(self.backbone(images))))

    def loss(self, output: SemanticOutput, target: SemanticTarget) -> dict[str, Tensor]:
        """`ce`, the cross-entropy of the scores."""
        return cross_entropies(output, target)


PRESETS: dict[str, ModelSpec] = {
    "hrnet_w18": HRNetOCRSpec(backbone=HRNetSpec(name="hrnet_w18"), channels=None),
    "hrnet_w48": HRNetOCRSpec(channels=None),
    "hrnet_ocr_w18": HRNetOCRSpec(backbone=HRNetSpec(name="hrnet_w18")),
    "hrnet_ocr_w48": HRNetOCRSpec(),
    "hrnet_ocr_w18_small": HRNetOCRSpec(backbone=HRNetSpec(name="hrnet_w18_small_v2"), channels=128, key_channels=64),
}
