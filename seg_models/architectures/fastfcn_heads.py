"""The heads that FastFCN puts behind its upsampling: FCN, PSP, ASPP and context encoding, with their settings.

Each takes a pyramid (C3, C4, features) of which the last has the stride of the scores, and returns a SemanticOutput.

Shapes: N batch, C channels, K classes, h w cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from seg_models.outputs import SemanticOutput
from seg_models.parts.context import ASPP, PyramidPooling, projected_aspp
from seg_models.parts.encoding import ContextEncoding
from seg_models.parts.heads import ClassifierHead
from seg_models.parts.layers import ConvNormAct
from seg_models.parts.resample import enlarge
from seg_models.spec import Spec


class FCNHeadSpec(Spec):
    """A 3×3 convolution and a classifier."""

    kind: Literal["fcn"] = "fcn"
    channels: int = Field(512, gt=0)
    """Channels of the 3×3 convolution."""

    def build(self, channels: Sequence[int], num_classes: int, *, dropout: float) -> ContextHead:
        """The head for a pyramid of these channels."""
        return ContextHead(nn.Identity(), ClassifierHead(channels[-1], self.channels, num_classes, dropout=dropout))


class PSPHeadSpec(Spec):
    """Pyramid pooling, a 3×3 convolution and a classifier."""

    kind: Literal["psp"] = "psp"
    bins: tuple[int, ...] = Field((1, 2, 3, 6), min_length=1)
    """Side lengths of the pooling grids, in cells."""
    channels: int = Field(512, gt=0)
    """Channels of the 3×3 convolution."""
    align_corners: bool = False
    """Match the corners of maps of different sizes, as the authors' code does."""

    def build(self, channels: Sequence[int], num_classes: int, *, dropout: float) -> ContextHead:
        """The head for a pyramid of these channels."""
        pooling = PyramidPooling(channels[-1], bins=self.bins, align_corners=self.align_corners)
        return ContextHead(pooling, ClassifierHead(pooling.out_channels, self.channels, num_classes, dropout=dropout))


class ASPPHeadSpec(Spec):
    """Atrous spatial pyramid pooling, a 3×3 convolution and a classifier."""

    kind: Literal["aspp"] = "aspp"
    dilations: tuple[int, ...] = (12, 24, 36)
    """Cells from tap to tap of the 3×3 branches."""
    channels: int = Field(256, gt=0)
    """Channels of each branch and of the 3×3 convolution."""
    project_dropout: float | None = Field(0.5, ge=0, lt=1)
    """Dropout of the 1×1 convolution behind the branches; None: no such convolution, as in mmsegmentation."""

    def build(self, channels: Sequence[int], num_classes: int, *, dropout: float) -> ContextHead:
        """The head for a pyramid of these channels."""
        width = self.channels
        if self.project_dropout is None:
            aspp = ASPP(channels[-1], width, dilations=self.dilations)
            return ContextHead(aspp, ClassifierHead(aspp.out_channels, width, num_classes, dropout=dropout))
        context = projected_aspp(channels[-1], width, dilations=self.dilations, dropout=self.project_dropout)
        return ContextHead(context, ClassifierHead(width, width, num_classes, dropout=dropout))


class EncodingHeadSpec(Spec):
    """Context encoding: codewords gate the channels and predict which classes are present."""

    kind: Literal["enc"] = "enc"
    channels: int = Field(512, gt=0)
    """Channels of the head."""
    codes: int = Field(32, gt=0)
    """Number of codewords."""
    kernel_size: Literal[1, 3] = 1
    """Of the first convolution: the authors have 1 behind JPU and 3 behind a dilated backbone, mmsegmentation 3."""
    lateral: bool = False
    """Lay C3 and C4 beside the features, each through a 1×1 convolution."""
    se_weight: float | None = Field(0.2, gt=0)
    """Weight of the loss of class presence (SE loss), or None for no prediction of presence."""

    def build(self, channels: Sequence[int], num_classes: int, *, dropout: float) -> EncodingHead:
        """The head for a pyramid of these channels."""
        return EncodingHead(
            ConvNormAct(channels[-1], self.channels, kernel_size=self.kernel_size),
            laterals=LateralFusion(channels[:-1], self.channels) if self.lateral else None,
            context=ContextEncoding(self.channels, num_codes=self.codes),
            dropout=nn.Dropout2d(dropout),
            classifier=nn.Conv2d(self.channels, num_classes, kernel_size=1),
            se=None if self.se_weight is None else nn.Linear(self.channels, num_classes),
        )


HeadSpec = Annotated[FCNHeadSpec | PSPHeadSpec | ASPPHeadSpec | EncodingHeadSpec, Field(discriminator="kind")]


class ContextHead(nn.Module):
    """A context module, and a convolution that fuses what it found before the classifier."""

    def __init__(self, context: nn.Module, fuse: ClassifierHead) -> None:
        super().__init__()
        self.context = context
        self.fuse = fuse

    def forward(self, pyramid: Sequence[Tensor]) -> SemanticOutput:
        """The last of the pyramid to scores of its size."""
        return SemanticOutput(self.fuse(self.context(pyramid[-1])))


class LateralFusion(nn.Module):
    """Reduced features beside C3 and C4, fused by a 3×3 convolution (`--lateral` of the authors' code).

    A level of another size is enlarged; the authors' code, made for dilated backbones, has no need of that.
    """

    def __init__(self, lateral_channels: Sequence[int], channels: int) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(ConvNormAct(level, channels, kernel_size=1) for level in lateral_channels)
        self.fusion = ConvNormAct((1 + len(lateral_channels)) * channels, channels, kernel_size=3)

    def forward(self, features: Tensor, levels: Sequence[Tensor]) -> Tensor:
        """(N, C, h, w) and the levels beside it to (N, C, h, w)."""
        size = features.shape[-2:]
        laterals = [enlarge(conv(level), size) for conv, level in zip(self.laterals, levels, strict=True)]
        fused: Tensor = self.fusion(torch.cat([features, *laterals], dim=1))
        return fused


class EncodingHead(nn.Module):
    """Context encoding, a classifier and, in training, scores of class presence (`extras["presence"]`, (N, K))."""

    def __init__(
        self,
        reduce: nn.Module,
        *,
        laterals: LateralFusion | None,
        context: ContextEncoding,
        dropout: nn.Module,
        classifier: nn.Conv2d,
        se: nn.Linear | None,
    ) -> None:
        super().__init__()
        self.reduce = reduce
        self.laterals = laterals
        self.context = context
        self.dropout = dropout
        self.classifier = classifier
        self.se = se

    def forward(self, pyramid: Sequence[Tensor]) -> SemanticOutput:
        """The pyramid to scores at the size of its last level."""
        reduced = self.reduce(pyramid[-1])
        if self.laterals is not None:
            reduced = self.laterals(reduced, pyramid[:-1])
        features, encoded = self.context(reduced)
        logits = self.classifier(self.dropout(features))
        if self.se is None or not self.training:
            return SemanticOutput(logits)
        return SemanticOutput(logits, extras={"presence": self.se(encoded)})
