"""AlignSeg: feature-aligned segmentation network, a peer in CFT's table 1.

Huang, Wei, Wang, Liu, Huang, Shi: AlignSeg: Feature-Aligned Segmentation Networks, TPAMI 2021, arXiv 2003.00872.

Levels are joined from fine to coarse at the size of the finest. Before a coarser level is added, both are moved: a
small branch looks at the two and gives every cell a flow, the place where it should look instead of its own (aligned
feature aggregation). The context of the coarsest level, averages over a 3×3 grid, is given to its cells the same way:
each chooses by a flow where in the grid to look (aligned context modelling). Flows begin at zero, where all of this is
plain enlarging and addition. An auxiliary head looks at the map after C4 has joined.

Deviations, each a setting where it matters:
- Activations are ReLU; the authors' code has leaky ReLU outside the backbone: `activation`.
- Enlarging does not align corners, and what lies beyond a map is its border. The authors' code aligns corners, and
  beyond a map is zero: `align_corners` (the second of its two ways of sampling, the one it says to train with).

Shapes: N batch, C channels, K classes, H W pixels, h w cells. A flow (N, 2, h, w) is columns, then rows, in cells.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from seg_models.backbones.timm_backbone import Backbone, BackboneSpec
from seg_models.outputs import SegModel, SemanticOutput, SemanticTarget
from seg_models.parts.heads import ClassifierHead
from seg_models.parts.layers import ConvNormAct
from seg_models.parts.losses import cross_entropies
from seg_models.parts.resample import pooling_matrix, resample, upsample_to
from seg_models.parts.sampling import sample
from seg_models.spec import ModelSpec

NUM_LEVELS = 4
AUX_STEP = 1
"""The join after which the auxiliary head looks: that of C4."""
BOTTLENECK = 4
"""Channels of a refinement over those of its hidden layer."""

Activation = Callable[[], nn.Module]
ACTIVATIONS: dict[str, Activation] = {
    "relu": partial(nn.ReLU, inplace=True),
    "leaky_relu": partial(nn.LeakyReLU, 0.01, inplace=True),
}


class AlignSegSpec(ModelSpec):
    """Settings of an AlignSeg."""

    arch: Literal["alignseg"] = "alignseg"
    backbone: BackboneSpec = BackboneSpec(name="resnet50c")
    width: int = Field(256, gt=0, multiple_of=BOTTLENECK)
    """Channels of every level."""
    context_cells: int = Field(3, gt=0)
    """Side of the grid of averages that is the context."""
    aux_channels: int | None = Field(256, gt=0)
    """Channels of the auxiliary head, or None for no auxiliary head."""
    activation: Literal["relu", "leaky_relu"] = "relu"
    """Activation outside the backbone; the authors' code has leaky ReLU."""
    align_corners: bool = False
    """Match the corners of maps of different sizes and see zeros beyond them, as the authors' code does."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Probability that a channel before a classifier is zeroed in training."""

    def build(self, num_classes: int) -> AlignSeg:
        """The network for `num_classes` classes."""
        backbone = self.backbone.build()
        channels = backbone.channels[-NUM_LEVELS:]
        width, act, align_corners = self.width, ACTIVATIONS[self.activation], self.align_corners
        joined = [*channels[1:], width]  # C3, C4, C5 and the context
        return AlignSeg(
            backbone,
            first=Refinement(channels[0], width, act=act),
            context=AlignedContext(channels[-1], width, cells=self.context_cells, act=act, align_corners=align_corners),
            entries=[Refinement(level, width, act=act) for level in joined],
            joins=[AlignedAggregation(width, act=act, align_corners=align_corners) for _ in joined],
            exits=[Refinement(width, width, act=act) for _ in joined],
            head=self._head(width, num_classes),
            aux_head=None if self.aux_channels is None else self._head(self.aux_channels, num_classes),
        )

    def _head(self, channels: int, num_classes: int) -> ClassifierHead:
        act = ACTIVATIONS[self.activation]()
        return ClassifierHead(self.width, channels, num_classes, dropout=self.dropout, conv_bias=True, act=act)


class Refinement(nn.Module):
    """To the width of the pyramid, and a residual of two 3×3 convolutions through a quarter of it."""

    def __init__(self, in_channels: int, width: int, *, act: Activation) -> None:
        super().__init__()
        self.unify = nn.Conv2d(in_channels, width, kernel_size=1, bias=False)
        self.residual = nn.Sequential(
            ConvNormAct(width, width // BOTTLENECK, kernel_size=3, act=act()),
            nn.Conv2d(width // BOTTLENECK, width, kernel_size=3, padding=1, bias=False),
        )
        self.norm = nn.BatchNorm2d(width)
        self.act = act()

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) to (N, width, h, w)."""
        x = self.unify(x)
        refined: Tensor = self.act(self.norm(x + self.residual(x)))
        return refined


class FlowField(nn.Sequential):
    """From two maps side by side to where each cell should look; zero at first."""

    def __init__(self, width: int, *, act: Activation) -> None:
        super().__init__()
        self.mix = ConvNormAct(2 * width, width, kernel_size=1, act=act())
        self.flow = nn.Conv2d(width, 2, kernel_size=3, padding=1, bias=False)
        nn.init.zeros_(self.flow.weight)


class AlignedAggregation(nn.Module):
    """Two levels moved towards each other, and their sum (AlignFA)."""

    def __init__(self, width: int, *, act: Activation, align_corners: bool) -> None:
        super().__init__()
        self.align_corners = align_corners
        self.coarse_flow = FlowField(width, act=act)
        self.fine_flow = FlowField(width, act=act)

    def forward(self, fine: Tensor, coarse: Tensor) -> Tensor:
        """Finer (N, C, h, w) and coarser (N, C, h', w') to (N, C, h, w)."""
        enlarged = upsample_to(coarse, fine.shape[-2:], align_corners=self.align_corners)
        both = torch.cat([fine, enlarged], dim=1)
        moved = warp(enlarged, self.coarse_flow(both), align_corners=self.align_corners)
        return moved + warp(fine, self.fine_flow(both), align_corners=self.align_corners)


class AlignedContext(nn.Module):
    """The coarsest level, and for each of its cells the place of a grid of averages that it chooses (AlignCM)."""

    def __init__(self, in_channels: int, width: int, *, cells: int, act: Activation, align_corners: bool) -> None:
        super().__init__()
        self.cells = cells
        self.align_corners = align_corners
        self.pooled, self.adapted = (
            nn.Sequential(
                ConvNormAct(in_channels, in_channels, kernel_size=1, act=act()),
                ConvNormAct(in_channels, width, kernel_size=3, act=act()),
            )
            for _ in range(2)
        )
        self.flow = FlowField(width, act=act)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) to (N, width, h, w)."""
        rows, columns = (pooling_matrix(side, self.cells, device=x.device).to(x.dtype) for side in x.shape[-2:])
        context, adapted = self.pooled(resample(x, rows=rows, columns=columns)), self.adapted(x)
        enlarged = upsample_to(context, x.shape[-2:], align_corners=self.align_corners)
        flow = self.flow(torch.cat([adapted, enlarged], dim=1))
        out: Tensor = warp(context, flow, align_corners=self.align_corners) + adapted
        return out


def warp(x: Tensor, flow: Tensor, *, align_corners: bool = False) -> Tensor:
    """A map at the size of a flow, every cell looking as far beside its place as the flow says.

    With a flow of zero this is bilinear enlarging.

    Args:
        x: (N, C, h', w').
        flow: (N, 2, h, w) columns and rows, in cells of that size.
        align_corners: match the outermost cells of both sizes and see zeros beyond them.

    Returns:
        (N, C, h, w) in the type of x.
    """
    places = []
    for axis, (num_in, num_out) in enumerate(zip(x.shape[-2:], flow.shape[-2:], strict=True)):
        own = torch.arange(num_out, device=x.device).view((-1, 1) if axis == 0 else (1, -1))
        looked_at = own + flow[:, 1 - axis].float()
        if align_corners:
            places.append(looked_at * ((num_in - 1) / max(num_out - 1, 1)))
        else:
            places.append(((looked_at + 0.5) * (num_in / num_out) - 0.5).clamp(0, num_in - 1))
    return sample(x, *places).to(x.dtype)


class AlignSeg(SegModel):
    """Backbone, context of its last level, joins from fine to coarse, head; an auxiliary head in training."""

    class_dependent: ClassVar[tuple[str, ...]] = ("head.classifier.", "aux_head.classifier.")

    def __init__(
        self,
        backbone: Backbone,
        *,
        first: Refinement,
        context: AlignedContext,
        entries: Sequence[Refinement],
        joins: Sequence[AlignedAggregation],
        exits: Sequence[Refinement],
        head: ClassifierHead,
        aux_head: ClassifierHead | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.first = first
        self.context = context
        self.entries = nn.ModuleList(entries)
        self.joins = nn.ModuleList(joins)
        self.exits = nn.ModuleList(exits)
        self.head = head
        self.aux_head = aux_head
        self.num_classes = head.classifier.out_channels
        self.output_stride = backbone.strides[-NUM_LEVELS]

    def forward(self, images: Tensor) -> SemanticOutput:
        """(N, 3, H, W) images, uint8 or float in 0..255, to scores (N, K, h, w) of the finest level."""
        finest, *coarser = self.backbone(images)[-NUM_LEVELS:]
        steps = [self.first(finest)]
        for level, enter, join, leave in zip(
            [*coarser, self.context(coarser[-1])], self.entries, self.joins, self.exits, strict=True
        ):
            steps.append(leave(join(steps[-1], enter(level))))
        logits = self.head(steps[-1])
        if self.aux_head is None or not self.training:
            return SemanticOutput(logits)
        return SemanticOutput(logits, aux=(self.aux_head(steps[1 + AUX_STEP]),))

    def loss(self, output: SemanticOutput, target: SemanticTarget) -> dict[str, Tensor]:
        """`ce` of the head and, in training, `aux_ce` of the auxiliary head, both unweighted."""
        return cross_entropies(output, target)


PRESETS: dict[str, ModelSpec] = {
    "alignseg_resnet50": AlignSegSpec(),
    "alignseg_resnet101": AlignSegSpec(backbone=BackboneSpec(name="resnet101c")),
    "alignseg_resnet101_official": AlignSegSpec(
        backbone=BackboneSpec(name="resnet101s"), activation="leaky_relu", align_corners=True
    ),
    "alignseg_mit_b2": AlignSegSpec(backbone=BackboneSpec(name="mit_b2")),
    "alignseg_efficientnet_lite0": AlignSegSpec(
        backbone=BackboneSpec(name="tf_efficientnet_lite0"), width=64, aux_channels=64
    ),
}
