"""SemFPN: the semantic branch of panoptic feature pyramid networks, CFT's baseline.

Kirillov, Girshick, He, Dollár: Panoptic Feature Pyramid Networks, CVPR 2019, arXiv 1901.02446, section 3.1, over the
pyramid of Lin et al., CVPR 2017, arXiv 1612.03144.

Four levels of a backbone are brought to one width; each takes in the coarser one by doubling and addition and passes a
3×3 convolution. Every level is then brought to stride 4 by doublings with a convolution each, and their sum is
classified.

Deviations: batch norm in the doublings, as in mmsegmentation (paper: group norm). Sides that do not double end at the
size of the finer level; mmsegmentation doubles and resizes at the end, which is the same for sides that are multiples
of 32.

Shapes: N batch, C channels, K classes, H W pixels, h w cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from seg_models.backbones.timm_backbone import Backbone, BackboneSpec
from seg_models.outputs import SegModel, SemanticOutput, SemanticTarget
from seg_models.parts.heads import Classifier
from seg_models.parts.losses import upsampled_cross_entropy
from seg_models.parts.pyramid import ScaleHeads
from seg_models.spec import ModelSpec

NUM_LEVELS = 4


class SemFPNSpec(ModelSpec):
    """Settings of a SemFPN."""

    arch: Literal["semfpn"] = "semfpn"
    backbone: BackboneSpec = BackboneSpec(name="resnet50c")
    width: int = Field(256, gt=0)
    """Channels of every level of the pyramid."""
    head_channels: int = Field(128, gt=0)
    """Channels of the sum over levels."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Probability that a channel before the classifier is zeroed in training."""

    def build(self, num_classes: int) -> SemFPN:
        """The network for `num_classes` classes."""
        backbone = self.backbone.build()
        return SemFPN(
            backbone,
            pyramid=FeaturePyramid(backbone.channels[-NUM_LEVELS:], self.width),
            head=ScaleHeads(self.width, self.head_channels, strides=backbone.strides[-NUM_LEVELS:]),
            classifier=Classifier(self.head_channels, num_classes, dropout=self.dropout),
        )


class FeaturePyramid(nn.Module):
    """Levels of one width that take in what lies coarser (Lin et al., section 3).

    Args:
        channels: channels of the backbone's levels, fine to coarse.
        width: channels of every level of the pyramid.
    """

    def __init__(self, channels: Sequence[int], width: int) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(nn.Conv2d(level, width, kernel_size=1) for level in channels)
        self.convs = nn.ModuleList(nn.Conv2d(width, width, kernel_size=3, padding=1) for _ in channels)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """One (N, C, h, w) per level, fine to coarse, to as many (N, width, h, w)."""
        levels = [lateral(level) for lateral, level in zip(self.laterals, features, strict=True)]
        for i in reversed(range(len(levels) - 1)):
            coarse = functional.interpolate(levels[i + 1], size=levels[i].shape[-2:], mode="nearest")
            levels[i] = levels[i] + coarse
        return [conv(level) for conv, level in zip(self.convs, levels, strict=True)]


class SemFPN(SegModel):
    """Backbone, feature pyramid, doublings and sum, classifier."""

    class_dependent: ClassVar[tuple[str, ...]] = ("classifier.conv.",)

    def __init__(
        self, backbone: Backbone, *, pyramid: FeaturePyramid, head: ScaleHeads, classifier: Classifier
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.pyramid = pyramid
        self.head = head
        self.classifier = classifier
        self.num_classes = classifier.conv.out_channels
        self.output_stride = head.strides[0]

    def forward(self, images: Tensor) -> SemanticOutput:
        """(N, 3, H, W) images, uint8 or float in 0..255, to scores (N, K, h, w) of the finest level."""
        features = self.backbone(images)[-NUM_LEVELS:]
        return SemanticOutput(self.classifier(self.head(self.pyramid(features))))

    def loss(self, output: SemanticOutput, target: SemanticTarget) -> dict[str, Tensor]:
        """`ce` of the scores."""
        loss = upsampled_cross_entropy(
            output.logits, target.labels, void=target.void, class_weights=target.class_weights
        )
        return {"ce": loss}


PRESETS: dict[str, ModelSpec] = {
    "semfpn_resnet50": SemFPNSpec(),
    "semfpn_resnet101": SemFPNSpec(backbone=BackboneSpec(name="resnet101c")),
    "semfpn_mit_b2": SemFPNSpec(backbone=BackboneSpec(name="mit_b2")),
    "semfpn_efficientnet_lite0": SemFPNSpec(
        backbone=BackboneSpec(name="tf_efficientnet_lite0"), width=64, head_channels=64
    ),
}
