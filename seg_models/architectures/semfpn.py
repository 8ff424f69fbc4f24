"""SemFPN: the semantic branch of panoptic feature pyramid networks, CFT's baseline.

Kirillov, Girshick, He, Dollár: Panoptic Feature Pyramid Networks, CVPR 2019, arXiv 1901.02446, section 3.1, over the
pyramid of Lin et al., CVPR 2017, arXiv 1612.03144.

Four levels of a backbone are brought to one width; each takes in the coarser one by doubling and addition and passes a
3×3 convolution. Every level is then brought to stride 4 by doublings with a convolution each, and their sum is
classified.

Deviations: batch norm in the doublings, as in mmsegmentation (paper: group norm). Sides that do not double end at the
size of the finer level; mmsegmentation doubles and resizes at the end, which is the same for sides that are multiples
of 32.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from seg_models.backbones.timm_backbone import BackboneSpec
from seg_models.parts.heads import Classifier
from seg_models.parts.pyramid import FeaturePyramid, ScaleHeads
from seg_models.parts.pyramid_net import NUM_LEVELS, PyramidNet
from seg_models.spec import ModelSpec


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


class SemFPN(PyramidNet):
    """A plain feature pyramid."""


PRESETS: dict[str, ModelSpec] = {
    "semfpn_resnet50": SemFPNSpec(),
    "semfpn_resnet101": SemFPNSpec(backbone=BackboneSpec(name="resnet101c")),
    "semfpn_mit_b2": SemFPNSpec(backbone=BackboneSpec(name="mit_b2")),
    "semfpn_efficientnet_lite0": SemFPNSpec(
        backbone=BackboneSpec(name="tf_efficientnet_lite0"), width=64, head_channels=64
    ),
}
