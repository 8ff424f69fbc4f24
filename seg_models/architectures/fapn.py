"""FaPN: feature-aligned pyramid network, a peer in CFT's table 1.

Huang, Lu, Cheng, He: FaPN: Feature-aligned Pyramid Network for Dense Image Prediction, ICCV 2021, arXiv 2108.07058.

A feature pyramid in which a coarse level does not simply lie over the finer one. The finer level is first asked which
of its channels carry detail (feature selection module). The coarse one, enlarged, is then moved to where the
finer one has its objects by a convolution whose taps look beside their places (feature alignment module), and
only then added. SemFPN's doublings and sum make the scores, as in the authors' semantic networks.

Deviations:
- From the authors' code, beyond the idea: the enlarged level counts twice in what offsets are made of, taps have
  weights (deformable convolution v2) and eight groups of channels move apart, a ReLU follows, and the coarsest level
  passes no 3×3 convolution.
- The authors refine scores at uncertain points (PointRend); here they are enlarged.
- Batch norm in the doublings (authors: group norm).

Shapes: N batch, C channels, h w cells, G groups of channels, T taps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from seg_models.backbones.timm_backbone import BackboneSpec
from seg_models.parts.heads import Classifier
from seg_models.parts.pyramid import ScaleHeads
from seg_models.parts.pyramid_net import NUM_LEVELS, PyramidNet
from seg_models.parts.resample import upsample_to
from seg_models.parts.sampling import deform_conv
from seg_models.spec import ModelSpec

TAPS = 9
"""Of a 3×3 kernel."""


class FaPNSpec(ModelSpec):
    """Settings of a FaPN."""

    arch: Literal["fapn"] = "fapn"
    backbone: BackboneSpec = BackboneSpec(name="resnet50c")
    width: int = Field(256, gt=0)
    """Channels of every level of the pyramid."""
    num_groups: int = Field(8, gt=0)
    """Groups of channels that are moved together."""
    head_channels: int = Field(128, gt=0)
    """Channels of the sum over levels."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Probability that a channel before the classifier is zeroed in training."""

    @model_validator(mode="after")
    def _check_groups(self) -> Self:
        if self.width % self.num_groups:
            raise ValueError(f"width = {self.width} must be a multiple of num_groups = {self.num_groups}")
        return self

    def build(self, num_classes: int) -> FaPN:
        """The network for `num_classes` classes."""
        backbone = self.backbone.build()
        *finer, coarsest = backbone.channels[-NUM_LEVELS:]
        return FaPN(
            backbone,
            pyramid=AlignedPyramid(
                top=nn.Conv2d(coarsest, self.width, kernel_size=1),
                selections=[FeatureSelection(level, self.width) for level in finer],
                alignments=[FeatureAlignment(self.width, num_groups=self.num_groups) for _ in finer],
                convs=[nn.Conv2d(self.width, self.width, kernel_size=3, padding=1) for _ in finer],
            ),
            head=ScaleHeads(self.width, self.head_channels, strides=backbone.strides[-NUM_LEVELS:]),
            classifier=Classifier(self.head_channels, num_classes, dropout=self.dropout),
        )


class FeatureSelection(nn.Module):
    """Channels that carry detail, raised and brought to the width of the pyramid.

    Ĉ = f_s(C + C · u), with the importance u = σ(f_m(mean of C)) of every channel.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.importance = nn.Conv2d(channels, channels, kernel_size=1, bias=False)
        self.select = nn.Conv2d(channels, width, kernel_size=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) to (N, width, h, w)."""
        importance = torch.sigmoid(self.importance(x.mean(dim=(2, 3), keepdim=True)))
        selected: Tensor = self.select(x + x * importance)
        return selected


class FeatureAlignment(nn.Module):
    """A coarse level moved onto a finer one: offsets of both, and a deformable convolution of the coarse.

    Offsets begin at zero and weights of taps at a half: an ordinary convolution.
    """

    def __init__(self, width: int, *, num_groups: int) -> None:
        super().__init__()
        self.compare = nn.Conv2d(2 * width, width, kernel_size=1, bias=False)
        self.offsets = nn.Conv2d(width, 3 * num_groups * TAPS, kernel_size=3, padding=1)
        self.move = nn.Conv2d(width, width, kernel_size=3, padding=1)
        nn.init.zeros_(self.offsets.weight)
        assert self.offsets.bias is not None
        nn.init.zeros_(self.offsets.bias)

    def forward(self, fine: Tensor, coarse: Tensor) -> Tensor:
        """Finer (N, C, h, w) and coarser (N, C, h', w') to (N, C, h, w): the coarse one moved, plus the finer."""
        enlarged = upsample_to(coarse, fine.shape[-2:])
        both = self.offsets(self.compare(torch.cat([fine, 2 * enlarged], dim=1)))
        *places, masks = both.chunk(3, dim=1)  # rows and columns take turns, tap by tap
        moved = deform_conv(enlarged, self.move, offsets=torch.cat(places, dim=1), masks=torch.sigmoid(masks))
        return torch.relu(moved).to(fine.dtype) + fine


class AlignedPyramid(nn.Module):
    """Levels of one width, each with what lies coarser moved onto it."""

    def __init__(
        self,
        *,
        top: nn.Module,
        selections: Sequence[FeatureSelection],
        alignments: Sequence[FeatureAlignment],
        convs: Sequence[nn.Module],
    ) -> None:
        super().__init__()
        self.top = top
        self.selections = nn.ModuleList(selections)
        self.alignments = nn.ModuleList(alignments)
        self.convs = nn.ModuleList(convs)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """One (N, C, h, w) per level, fine to coarse, to as many (N, width, h, w)."""
        *finer, coarsest = features
        x = self.top(coarsest)
        levels = [x]
        for i in reversed(range(len(finer))):
            x = self.alignments[i](self.selections[i](finer[i]), x)
            levels.insert(0, self.convs[i](x))
        return levels


class FaPN(PyramidNet):
    """A pyramid whose coarse levels are aligned to the fine ones."""


PRESETS: dict[str, ModelSpec] = {
    "fapn_resnet50": FaPNSpec(),
    "fapn_resnet101": FaPNSpec(backbone=BackboneSpec(name="resnet101c")),
    "fapn_mit_b2": FaPNSpec(backbone=BackboneSpec(name="mit_b2")),
    "fapn_efficientnet_lite0": FaPNSpec(
        backbone=BackboneSpec(name="tf_efficientnet_lite0"), width=64, head_channels=64
    ),
}
