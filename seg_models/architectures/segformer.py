"""SegFormer: a Mix Transformer and a head of linear layers.

Xie, Wang, Yu, Anandkumar, Alvarez, Luo: SegFormer: Simple and Efficient Design for Semantic Segmentation with
Transformers, NeurIPS 2021, arXiv 2105.15203, section 3.2.

A linear layer brings each of the four levels to one width; they are enlarged to stride 4, laid side by side with the
coarsest first, fused by a 1×1 convolution and classified. The backbone is in `seg_models/backbones/mit.py`; any other
with four levels will do.

Deviations: none known. The fusion has a batch norm and a ReLU, which equation 4 of the paper leaves out and the
released code has; it is 256 wide for B0 and B1 and 768 for the others.

Shapes: N batch, C channels, K classes, H W pixels, h w cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from seg_models.backbones.timm_backbone import Backbone, BackboneSpec
from seg_models.outputs import SegModel, SemanticOutput, SemanticTarget
from seg_models.parts.heads import Classifier
from seg_models.parts.layers import ConvNormAct
from seg_models.parts.losses import cross_entropies
from seg_models.parts.resample import upsample_to
from seg_models.spec import ModelSpec

NUM_LEVELS = 4


class SegFormerSpec(ModelSpec):
    """Settings of a SegFormer."""

    arch: Literal["segformer"] = "segformer"
    backbone: BackboneSpec = BackboneSpec(name="mit_b2")
    width: int = Field(768, gt=0)
    """Channels of every level in the head."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Probability that a channel before the classifier is zeroed in training."""

    def build(self, num_classes: int) -> SegFormer:
        """The network for `num_classes` classes."""
        backbone = self.backbone.build()
        return SegFormer(
            backbone,
            head=MLPHead(backbone.channels[-NUM_LEVELS:], self.width),
            classifier=Classifier(self.width, num_classes, dropout=self.dropout),
        )


class MLPHead(nn.Module):
    """Levels brought to one width and size, side by side, and fused (paper equation 4).

    Args:
        channels: channels of the backbone's levels, fine to coarse.
        width: channels of the result.
    """

    def __init__(self, channels: Sequence[int], width: int) -> None:
        super().__init__()
        self.linears = nn.ModuleList(nn.Conv2d(level, width, kernel_size=1) for level in channels)
        self.fuse = ConvNormAct(len(channels) * width, width, kernel_size=1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """One (N, C, h, w) per level, fine to coarse, to (N, width, h, w) of the finest."""
        size = features[0].shape[-2:]
        levels = [linear(level) for linear, level in zip(self.linears, features, strict=True)]
        fused: Tensor = self.fuse(torch.cat([upsample_to(level, size) for level in reversed(levels)], dim=1))
        return fused


class SegFormer(SegModel):
    """Backbone, head of linear layers, classifier."""

    class_dependent: ClassVar[tuple[str, ...]] = ("classifier.conv.",)

    def __init__(self, backbone: Backbone, *, head: MLPHead, classifier: Classifier) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.classifier = classifier
        self.num_classes = classifier.conv.out_channels
        self.output_stride = backbone.strides[-NUM_LEVELS]

    def forward(self, images: Tensor) -> SemanticOutput:
        """(N, 3, H, W) images, uint8 or float in 0..255, to scores (N, K, h, w) of the finest level."""
        features = self.backbone(images)[-NUM_LEVELS:]
        return SemanticOutput(self.classifier(self.head(features)))

    def loss(self, output: SemanticOutput, target: SemanticTarget) -> dict[str, Tensor]:
        """`ce` of the scores."""
        return cross_entropies(output, target)


def _segformer(number: int, **inputs: tuple[float, float, float]) -> SegFormerSpec:
    return SegFormerSpec(backbone=BackboneSpec(name=f"mit_b{number}", **inputs), width=256 if number < 2 else 768)


HALVES = (0.5, 0.5, 0.5)
"""PaddleSeg's means and deviations of the input."""


PRESETS: dict[str, ModelSpec] = {
    **{f"segformer_mit_b{number}": _segformer(number) for number in range(6)},
    **{f"segformer_mit_b{number}_paddleseg": _segformer(number, mean=HALVES, std=HALVES) for number in range(6)},
    "segformer_efficientnet_lite0": SegFormerSpec(backbone=BackboneSpec(name="tf_efficientnet_lite0"), width=64),
}
