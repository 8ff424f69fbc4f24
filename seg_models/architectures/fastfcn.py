"""FastFCN: joint pyramid upsampling instead of a dilated backbone.

Wu, Zhang, Huang, Liang, Yu: FastFCN: Rethinking Dilated Convolution in the Backbone for Semantic Segmentation,
arXiv 1903.11816. Its head with codewords: Zhang et al.: Context Encoding for Semantic Segmentation, CVPR 2018,
arXiv 1803.08904.

A backbone keeps its strides, so that its last stages work on a sixteenth of the cells a dilated one has. The joint
pyramid upsampling (JPU) makes of its last three levels a map of stride 8 with as many channels as the last level:
each level to 512 channels, all at the size of the finest, side by side into four separable convolutions of dilation
1, 2, 4 and 8. Any head written for a dilated backbone follows: FCN, PSP, ASPP or context encoding.

Deviations, each a setting:
- Levels lie side by side from fine to coarse (mmsegmentation); the authors' code has them from coarse to fine, the
  same network with permuted weights. Enlarging does not align corners; `align_corners` does, as the authors' code.
- The presets have the authors' stems and widths. Those ending in `_mmseg` have mmsegmentation's: a narrower stem, ASPP
  of 512 channels without projection, a 3×3 convolution before the codewords, and a backbone that keeps dilations 2
  and 4 in its last stages beside their strides (`strided_dilations`): equal counts, another function.
- Images without any known pixel take no part in the loss of class presence (the authors' code counts them as images
  without any class). The encoding layer never holds its (N, h·w, codes, C) residuals.

Shapes: N batch, C channels, K classes, H W pixels, h w cells, k codes. A pyramid is (C3, C4, C5), fine to coarse.
"""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator
from torch import Tensor, nn

from seg_models.architectures.fastfcn_heads import (
    ASPPHeadSpec,
    ContextHead,
    EncodingHead,
    EncodingHeadSpec,
    FCNHeadSpec,
    HeadSpec,
    PSPHeadSpec,
)
from seg_models.architectures.fastfcn_upsampling import BilinearSpec, FPNSpec, JPUSpec, JPUXSpec, UpsamplingSpec
from seg_models.backbones.dilation import dilate_stages
from seg_models.backbones.timm_backbone import Backbone, BackboneSpec
from seg_models.outputs import SegModel, SemanticOutput, SemanticTarget
from seg_models.parts.encoding import presence_loss
from seg_models.parts.heads import ClassifierHead
from seg_models.parts.losses import cross_entropies
from seg_models.spec import ModelSpec

LEVELS = 3
"""Levels of the backbone that are joined."""


class FastFCNSpec(ModelSpec):
    """Settings of a FastFCN, or of the dilated network it is compared with."""

    arch: Literal["fastfcn"] = "fastfcn"
    backbone: BackboneSpec = BackboneSpec(name="resnet50s")
    upsampling: UpsamplingSpec | None = JPUSpec()
    """What makes the map of stride 8, or None: the last level as it is (a dilated backbone, or stride 32)."""
    head: HeadSpec = EncodingHeadSpec()
    """What makes scores of that map."""
    aux_channels: int | None = Field(256, gt=0)
    """Channels of the auxiliary head, or None for no auxiliary head."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Probability that a channel before a classifier is zeroed in training."""
    strided_dilations: tuple[int, int] | None = None
    """Dilations of the last two stages of a ResNet beside their strides; mmsegmentation's weights have (2, 4)."""

    @model_validator(mode="after")
    def _check_strides(self) -> Self:
        stride = self.backbone.output_stride
        if self.upsampling is not None and stride <= 8:
            raise ValueError(f"upsampling = {self.upsampling.kind!r} has nothing to do at backbone stride {stride}")
        if self.strided_dilations is not None and stride != 32:
            raise ValueError(f"strided_dilations needs backbone.output_stride = 32, found {stride}")
        return self

    def build(self, num_classes: int) -> FastFCN:
        """The network for `num_classes` classes."""
        backbone = self.backbone.build()
        if self.strided_dilations is not None:
            dilate_stages(backbone, self.strided_dilations)
        *finer, last = backbone.channels[-LEVELS:]
        upsampling = None if self.upsampling is None else self.upsampling.build((*finer, last))
        joint = last if upsampling is None else upsampling.out_channels
        aux_head = None
        if self.aux_channels is not None:
            aux_head = ClassifierHead(finer[-1], self.aux_channels, num_classes, dropout=self.dropout)
        return FastFCN(
            backbone,
            upsampling=upsampling,
            head=self.head.build((*finer, joint), num_classes, dropout=self.dropout),
            aux_head=aux_head,
            num_classes=num_classes,
            se_weight=(self.head.se_weight or 0.0) if isinstance(self.head, EncodingHeadSpec) else 0.0,
        )


class FastFCN(SegModel):
    """Backbone, upsampling of its last three levels, head; an auxiliary head on C4 in training."""

    class_dependent: ClassVar[tuple[str, ...]] = (
        "head.fuse.classifier.",
        "head.classifier.",
        "head.se.",
        "aux_head.classifier.",
    )

    def __init__(
        self,
        backbone: Backbone,
        *,
        upsampling: nn.Module | None,
        head: ContextHead | EncodingHead,
        aux_head: ClassifierHead | None = None,
        num_classes: int,
        se_weight: float,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.upsampling = upsampling
        self.head = head
        self.aux_head = aux_head
        self.num_classes = num_classes
        self.se_weight = se_weight
        self.output_stride = backbone.strides[-1 if upsampling is None else -LEVELS]

    def forward(self, images: Tensor) -> SemanticOutput:
        """(N, 3, H, W) images, uint8 or float in 0..255, to scores (N, K, h, w)."""
        c3, c4, c5 = self.backbone(images)[-LEVELS:]
        joint = c5 if self.upsampling is None else self.upsampling((c3, c4, c5))
        output: SemanticOutput = self.head((c3, c4, joint))
        if self.aux_head is None or not self.training:
            return output
        return output._replace(aux=(self.aux_head(c4),))

    def loss(self, output: SemanticOutput, target: SemanticTarget) -> dict[str, Tensor]:
        """`ce` of the head; in training `se`, weighted, of class presence, and `aux_ce`, unweighted."""
        entropies = cross_entropies(output, target)
        losses = {"ce": entropies.pop("ce")}
        if "presence" in output.extras:
            losses["se"] = self.se_weight * presence_loss(output.extras["presence"], target)
        return {**losses, **entropies}


_RESNETS = {"resnet50": "resnet50s", "resnet101": "resnet101s"}  # deep stem of 64, 64 and 128 channels: the authors'
_HEADS: dict[str, HeadSpec] = {
    "fcn": FCNHeadSpec(),
    "psp": PSPHeadSpec(),
    "aspp": ASPPHeadSpec(),
    "enc": EncodingHeadSpec(),
}
_DILATED_HEADS: dict[str, HeadSpec] = {**_HEADS, "enc": EncodingHeadSpec(kernel_size=3)}
_MMSEG_HEADS: dict[str, HeadSpec] = {**_DILATED_HEADS, "aspp": ASPPHeadSpec(channels=512, project_dropout=None)}


def _joint(name: str, head: HeadSpec) -> FastFCNSpec:
    return FastFCNSpec(backbone=BackboneSpec(name=name), head=head)


def _dilated(name: str, head: HeadSpec) -> FastFCNSpec:
    return FastFCNSpec(backbone=BackboneSpec(name=name, output_stride=8), upsampling=None, head=head)


def _mmseg(name: str, head: HeadSpec) -> FastFCNSpec:
    return FastFCNSpec(backbone=BackboneSpec(name=f"{name}c"), head=head, strided_dilations=(2, 4))


PRESETS: dict[str, ModelSpec] = {
    **{f"fastfcn_{net}_{head}": _joint(name, spec) for net, name in _RESNETS.items() for head, spec in _HEADS.items()},
    **{
        f"fastfcn_{net}_{head}_dilated": _dilated(name, spec)
        for net, name in _RESNETS.items()
        for head, spec in _DILATED_HEADS.items()
    },
    **{f"fastfcn_{net}_{head}_mmseg": _mmseg(net, spec) for net in _RESNETS for head, spec in _MMSEG_HEADS.items()},
    **{
        f"fastfcn_{net}_enc_jpux": FastFCNSpec(backbone=BackboneSpec(name=name), upsampling=JPUXSpec())
        for net, name in _RESNETS.items()
    },
    # What the paper compares JPU with: another upsampling, or none, in front of the same head.
    "fastfcn_resnet50_enc_fpn": FastFCNSpec(upsampling=FPNSpec()),
    "fastfcn_resnet50_enc_bilinear": FastFCNSpec(upsampling=BilinearSpec()),
    "fastfcn_resnet50_enc_stride32": FastFCNSpec(upsampling=None),
    "fastfcn_efficientnet_lite0_enc": FastFCNSpec(
        backbone=BackboneSpec(name="tf_efficientnet_lite0"),
        upsampling=JPUSpec(width=64),
        head=EncodingHeadSpec(channels=128, codes=16),
        aux_channels=64,
    ),
}
