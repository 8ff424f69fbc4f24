"""DeepLabV3+: DeepLabV3 with a decoder that looks back at fine features.

Chen, Zhu, Papandreou, Schroff, Adam: Encoder-Decoder with Atrous Separable Convolution for Semantic Image
Segmentation, ECCV 2018, arXiv 1802.02611.

ASPP at stride 16 is enlarged to stride 4 and laid beside 48 channels made of the features there; two 3×3 convolutions
and a classifier follow (section 3.1). The 3×3 convolutions of ASPP and decoder are separable: depthwise, then 1×1,
each with norm and ReLU (section 3.1 and the authors' TensorFlow code).

Deviations, each a setting:
- `separable=False` has plain 3×3 convolutions, as in the paper's ablations with ResNet-101 and in NVIDIA's code.
- `smp_compat` is the decoder of segmentation_models.pytorch: nothing between depthwise and 1×1, one of the two 3×3
  convolutions before the enlarging instead of after, corners aligned. Its encoder also dilates the first block of the
  last stage, which ours (timm, torchvision, the paper) does not.

Shapes: N batch, C channels, K classes, H W pixels, h w cells.
"""

from __future__ import annotations

from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from seg_models.backbones.timm_backbone import Backbone, BackboneSpec
from seg_models.outputs import SegModel, SemanticOutput, SemanticTarget
from seg_models.parts.context import ConvBlock, dilated_conv, projected_aspp, separable_conv
from seg_models.parts.layers import ConvNormAct
from seg_models.parts.losses import cross_entropies
from seg_models.parts.resample import enlarge
from seg_models.spec import ModelSpec

FINE_STRIDE = 4
"""Pixels per cell of the features that the decoder looks back at."""


class DeepLabV3PlusSpec(ModelSpec):
    """Settings of a DeepLabV3+."""

    arch: Literal["deeplabv3plus"] = "deeplabv3plus"
    backbone: BackboneSpec = BackboneSpec(name="resnet50", output_stride=16)
    dilations: tuple[int, ...] = (6, 12, 18)
    """Cells from tap to tap of the 3×3 branches; twice as many at stride 8."""
    channels: int = Field(256, gt=0)
    """Channels of the branches, their projection and the decoder."""
    fine_channels: int = Field(48, gt=0)
    """Channels made of the features of stride 4."""
    separable: bool = True
    """Depthwise and 1×1 convolutions instead of 3×3 ones in ASPP and decoder."""
    smp_compat: bool = False
    """The decoder of segmentation_models.pytorch, for its weights."""
    context_dropout: float = Field(0.5, ge=0, lt=1)
    """Probability that a channel of the projected branches is zeroed in training."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Probability that a channel before the classifier is zeroed in training."""

    @model_validator(mode="after")
    def _check_compat(self) -> Self:
        if self.smp_compat and not self.separable:
            raise ValueError("smp_compat needs separable = true, found false")
        return self

    def build(self, num_classes: int) -> DeepLabV3Plus:
        """The network for `num_classes` classes.

        Raises:
            ValueError: the backbone has no level of stride 4.
        """
        backbone = self.backbone.build()
        if FINE_STRIDE not in backbone.strides:
            raise ValueError(f"{self.backbone.name} has levels of strides {backbone.strides}; the decoder needs 4")
        conv = self._conv()
        context = projected_aspp(
            backbone.channels[-1], self.channels, dilations=self.dilations, dropout=self.context_dropout, conv=conv
        )
        beside, width = self.channels + self.fine_channels, self.channels
        if self.smp_compat:
            context.add_module("refine", conv(width, width, 1))
            refine = conv(beside, width, 1)
        else:
            refine = nn.Sequential(conv(beside, width, 1), conv(width, width, 1))
        return DeepLabV3Plus(
            backbone,
            context=context,
            fine=ConvNormAct(backbone.channels[backbone.strides.index(FINE_STRIDE)], self.fine_channels, kernel_size=1),
            refine=refine,
            dropout=nn.Dropout2d(self.dropout),
            classifier=nn.Conv2d(width, num_classes, kernel_size=1),
            align_corners=self.smp_compat,
        )

    def _conv(self) -> ConvBlock:
        """What a 3×3 convolution of this network is."""
        if self.smp_compat:
            return bare_separable_conv
        return separable_conv if self.separable else dilated_conv


def bare_separable_conv(in_channels: int, out_channels: int, dilation: int) -> nn.Module:
    """Depthwise 3×3, 1×1, batch norm, ReLU (segmentation_models.pytorch)."""
    depthwise = nn.Conv2d(
        in_channels, in_channels, 3, padding=dilation, dilation=dilation, groups=in_channels, bias=False
    )
    return nn.Sequential(depthwise, ConvNormAct(in_channels, out_channels, kernel_size=1))


class DeepLabV3Plus(SegModel):
    """Backbone, ASPP, and a decoder that lays its result beside fine features.

    Args:
        context: from the last features to the decoder's width.
        fine: from the features of stride 4 to a few channels.
        refine: from both, side by side, to the width of the classifier.
        align_corners: of the enlarging between.
    """

    class_dependent: ClassVar[tuple[str, ...]] = ("classifier.",)
    output_stride = FINE_STRIDE

    def __init__(
        self,
        backbone: Backbone,
        *,
        context: nn.Module,
        fine: nn.Module,
        refine: nn.Module,
        dropout: nn.Module,
        classifier: nn.Conv2d,
        align_corners: bool = False,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.context = context
        self.fine = fine
        self.refine = refine
        self.dropout = dropout
        self.classifier = classifier
        self.align_corners = align_corners
        self.num_classes = classifier.out_channels
        self.fine_level = backbone.strides.index(FINE_STRIDE)

    def forward(self, images: Tensor) -> SemanticOutput:
        """(N, 3, H, W) images, uint8 or float in 0..255, to scores (N, K, h, w) at stride 4."""
        features = self.backbone(images)
        fine = self.fine(features[self.fine_level])
        coarse = enlarge(self.context(features[-1]), fine.shape[-2:], align_corners=self.align_corners)
        refined = self.refine(torch.cat([coarse, fine], dim=1))
        return SemanticOutput(self.classifier(self.dropout(refined)))

    def loss(self, output: SemanticOutput, target: SemanticTarget) -> dict[str, Tensor]:
        """`ce` of the scores."""
        return cross_entropies(output, target)


PRESETS: dict[str, ModelSpec] = {
    "deeplabv3plus_resnet50": DeepLabV3PlusSpec(),
    "deeplabv3plus_resnet50_smp": DeepLabV3PlusSpec(smp_compat=True, dilations=(12, 24, 36)),
    "deeplabv3plus_resnet101": DeepLabV3PlusSpec(backbone=BackboneSpec(name="resnet101", output_stride=16)),
    "deeplabv3plus_efficientnet_lite0": DeepLabV3PlusSpec(
        backbone=BackboneSpec(name="tf_efficientnet_lite0", output_stride=16), channels=64, fine_channels=24
    ),
}
