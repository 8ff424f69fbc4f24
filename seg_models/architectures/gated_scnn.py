"""Gated-SCNN: a shape stream beside the class stream.

Takikawa, Acuna, Jampani, Fidler: Gated-SCNN: Gated Shape CNNs for Semantic Segmentation, ICCV 2019, arXiv 1907.05740.

The class stream is a dilated backbone. The shape stream starts from its first features and stays at full resolution:
residual blocks whose features are gated by what deeper levels of the backbone say (section 3.1), ending in one map of
boundaries. That map, joined with the image's own edges, is a branch of an atrous pyramid (section 3.2), and a decoder
with finer features scores the classes. Boundaries are learned from the labels; scores and boundaries are compared with
each other both ways (section 3.3).

Deviations, each a setting where it matters:
- `official_compat` computes what the released code computes where that differs from the paper: edges of the
  normalised image after a cast to bytes that wraps around; edge loss on probabilities as if they were logits; no edges
  of class 0; sum over a batch's images instead of their mean; class maps compared themselves instead of their
  gradients, at temperature 0.5. It also has the released convolution that nothing uses: all weights find a place.
- Void pixels take part in no loss, but with `official_compat`: they may be edges, and are class 0 to the loss that
  compares class maps.
- Canny's edges are followed for a fixed number of pixels, on the device, so that the whole network can be exported.
- With a ResNet the shape stream starts from the stem, and the decoder uses the first stage at stride 4 (paper: any
  backbone; the released code has WideResNet-38 only).
- Side maps and pyramid are enlarged with aligned corners, scores without, as in the released code.

Shapes: N batch, C channels, K classes, H W pixels, h w cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from seg_models.backbones.timm_backbone import Backbone, BackboneSpec
from seg_models.outputs import SegModel, SemanticOutput, SemanticTarget
from seg_models.parts.context import ONE_IMAGE
from seg_models.parts.dual_task import balanced_edge_loss, image_cross_entropies, semantic_to_boundary_loss
from seg_models.parts.edges import OUTSIDE, canny, region_borders
from seg_models.parts.layers import ConvNormAct
from seg_models.parts.losses import chosen_labels
from seg_models.parts.resample import upsample_to
from seg_models.spec import ModelSpec, Spec

NUM_LEVELS = 5
"""Levels of the backbone: start of the shape stream, finer features of the decoder, three side maps."""


class DualTaskSpec(Spec):
    """Weights of the losses beside the cross-entropy (paper equation 4); 0 leaves one out."""

    edge: float = Field(20.0, ge=0)
    """Boundaries against the borders of the labels."""
    attention: float = Field(1.0, ge=0)
    """Cross-entropy of the pixels that the shape stream calls a boundary."""
    attention_threshold: float = Field(0.8, gt=0, lt=1)
    """Probability above which it calls them so."""
    boundary: float = Field(1.0, ge=0)
    """Boundaries of the predicted class maps against those of the true ones."""


class GatedSCNNSpec(ModelSpec):
    """Settings of a Gated-SCNN."""

    arch: Literal["gated_scnn"] = "gated_scnn"
    backbone: BackboneSpec = BackboneSpec(name="wideresnet38", output_stride=8)
    shape_channels: tuple[int, int, int] = (32, 16, 8)
    """Channels of the shape stream behind each of its gates."""
    edge_input: Literal["none", "shape", "shape_and_gradient"] = "shape_and_gradient"
    """What the pyramid knows of boundaries: nothing (the baseline), the shape stream's, or these and Canny's edges."""
    rates: tuple[int, ...] = Field((12, 24, 36), min_length=1)
    """Dilations of the pyramid, in cells; the paper's are for an output stride of 8."""
    context_channels: int = Field(256, gt=0)
    """Channels of each branch of the pyramid and of their mixture."""
    fine_channels: int = Field(48, gt=0)
    """Channels of the finer features in the decoder."""
    head_channels: int = Field(256, gt=0)
    """Channels of the decoder's two convolutions."""
    dual_task: DualTaskSpec = DualTaskSpec()
    official_compat: bool = False
    """Compute what the released code computes where that differs from the paper."""

    @model_validator(mode="after")
    def _check_dual_task(self) -> Self:
        if self.edge_input == "none" and self.dual_task != DualTaskSpec():
            raise ValueError(
                "`dual_task` has no effect with edge_input = 'none': allowed are shape, shape_and_gradient"
            )
        return self

    def build(self, num_classes: int) -> GatedSCNN:
        """The network for `num_classes` classes.

        Raises:
            ValueError: the backbone has not the five levels that the two streams take.
        """
        backbone = self.backbone.build()
        if len(backbone.channels) != NUM_LEVELS:
            raise ValueError(
                f"backbone {self.backbone.name!r} has {len(backbone.channels)} levels, Gated-SCNN takes {NUM_LEVELS}: "
                "choose wideresnet38, a ResNet or another network with a level before its first pooling"
            )
        first, fine, *sides = backbone.channels
        has_shape = self.edge_input != "none"
        pyramid = EdgePyramid(backbone.channels[-1], self.context_channels, rates=self.rates, with_edges=has_shape)
        return GatedSCNN(
            backbone,
            shape=ShapeStream(first, sides, channels=self.shape_channels) if has_shape else None,
            boundary=BoundaryMap() if self.edge_input == "shape_and_gradient" else None,
            pyramid=pyramid,
            decoder=Decoder(
                pyramid.out_channels,
                fine,
                num_classes,
                context_channels=self.context_channels,
                fine_channels=self.fine_channels,
                channels=self.head_channels,
            ),
            dual_task=self.dual_task,
            official_compat=self.official_compat,
        )


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions added to their input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = ConvNormAct(channels, channels, kernel_size=3)
        self.conv2 = ConvNormAct(channels, channels, kernel_size=3, act=nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same shape."""
        return functional.relu(x + self.conv2(self.conv1(x)))


class GatedConv(nn.Module):
    """The gated convolutional layer (paper equations 1 and 2): a map between 0 and 1 says where features are doubled.

    α = σ(norm(conv(relu(conv(norm(x‖r)))))), out = conv(x ⊙ (1 + α)); all convolutions 1×1.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels + 1)
        self.hidden = nn.Conv2d(channels + 1, channels + 1, 1)
        self.gate = ConvNormAct(channels + 1, 1, kernel_size=1, bias=True, act=nn.Sigmoid())
        self.conv = nn.Conv2d(channels, channels, 1, bias=False)
        nn.init.xavier_normal_(self.conv.weight)

    def forward(self, features: Tensor, side: Tensor) -> Tensor:
        """Features (N, C, H, W) gated by them and a map (N, 1, H, W)."""
        alpha = self.gate(functional.relu(self.hidden(self.norm(torch.cat([features, side], dim=1)))))
        gated: Tensor = self.conv(features * (1 + alpha))
        return gated


class SideMap(nn.Module):
    """A level of the class stream as one map of the image's size."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, 1, 1)

    def forward(self, features: Tensor, size: Sequence[int]) -> Tensor:
        """(N, C, h, w) to (N, 1, H, W)."""
        return upsample_to(self.conv(features), size, align_corners=True)


class ShapeStage(nn.Module):
    """A residual block, fewer channels, and a gate fed by one level of the class stream."""

    def __init__(self, in_channels: int, channels: int, side_channels: int) -> None:
        super().__init__()
        self.block = ResidualBlock(in_channels)
        self.reduce = nn.Conv2d(in_channels, channels, 1)
        self.side = SideMap(side_channels)
        self.gate = GatedConv(channels)

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        """(N, C, H, W) and a level (N, C', h, w) to (N, channels, H, W)."""
        gated: Tensor = self.gate(self.reduce(self.block(x)), self.side(level, x.shape[-2:]))
        return gated


class ShapeStream(nn.Module):
    """Boundaries at the image's size (paper section 3.1).

    Args:
        in_channels: of the features it starts from.
        side_channels: of the three levels that gate it, fine to coarse.
        channels: behind each gate.
    """

    def __init__(self, in_channels: int, side_channels: Sequence[int], *, channels: Sequence[int]) -> None:
        super().__init__()
        sources = (in_channels, *channels[:-1])
        plan = zip(sources, channels, side_channels, strict=True)
        self.stages = nn.ModuleList(ShapeStage(source, target, side) for source, target, side in plan)
        self.fuse = nn.Conv2d(channels[-1], 1, 1, bias=False)

    def forward(self, start: Tensor, levels: Sequence[Tensor], size: Sequence[int]) -> Tensor:
        """Features (N, C, h, w) and three levels to boundary logits (N, 1, H, W)."""
        x = upsample_to(start, size, align_corners=True)
        for stage, level in zip(self.stages, levels, strict=True):
            x = stage(x, level)
        edges: Tensor = self.fuse(x)
        return edges


class BoundaryMap(nn.Module):
    """Learned boundaries and the image's edges as one map."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(2, 1, 1, bias=False)

    def forward(self, boundaries: Tensor, gradient: Tensor) -> Tensor:
        """Two maps (N, 1, H, W) to one, between 0 and 1."""
        return torch.sigmoid(self.mix(torch.cat([boundaries, gradient], dim=1)))


class EdgePyramid(nn.Module):
    """Atrous spatial pyramid pooling with a branch for boundaries (paper section 3.2).

    Args:
        in_channels: of the features.
        channels: of each branch.
        rates: dilations of the 3×3 convolutions.
        with_edges: have the branch for boundaries.
    """

    def __init__(self, in_channels: int, channels: int, *, rates: Sequence[int], with_edges: bool) -> None:
        super().__init__()
        self.image = ConvNormAct(in_channels, channels, kernel_size=1)
        self.edge = ConvNormAct(1, channels, kernel_size=1) if with_edges else None
        self.local = ConvNormAct(in_channels, channels, kernel_size=1)
        self.dilated = nn.ModuleList(ConvNormAct(in_channels, channels, kernel_size=3, dilation=rate) for rate in rates)
        self.out_channels = channels * (2 + with_edges + len(rates))

    def forward(self, features: Tensor, boundaries: Tensor | None) -> Tensor:
        """Features (N, C, h, w) and boundaries (N, 1, H, W) to (N, branches, h, w): image, edge, local, dilated.

        Raises:
            ValueError: one image in training: a batch norm over one mean has nothing to average.
        """
        if self.training and features.shape[0] == 1 and type(self.image.norm) is nn.BatchNorm2d:
            raise ValueError(f"Gated-SCNN averages images: {ONE_IMAGE}")
        size = features.shape[-2:]
        mean = features.mean(dim=(2, 3), keepdim=True)
        branches = [self.image(mean).expand(-1, -1, *size)]
        if self.edge is not None and boundaries is not None:
            branches.append(self.edge(upsample_to(boundaries, size, align_corners=True)))
        return torch.cat([*branches, self.local(features), *(branch(features) for branch in self.dilated)], dim=1)


class Decoder(nn.Module):
    """Context and finer features to class scores, as in DeepLabV3+ (arXiv 1802.02611)."""

    def __init__(
        self,
        in_channels: int,
        low_channels: int,
        num_classes: int,
        *,
        context_channels: int,
        fine_channels: int,
        channels: int,
    ) -> None:
        super().__init__()
        self.context = nn.Conv2d(in_channels, context_channels, 1, bias=False)
        self.fine = nn.Conv2d(low_channels, fine_channels, 1, bias=False)
        self.conv1 = ConvNormAct(fine_channels + context_channels, channels, kernel_size=3)
        self.conv2 = ConvNormAct(channels, channels, kernel_size=3)
        self.classifier = nn.Conv2d(channels, num_classes, 1, bias=False)
        nn.init.kaiming_normal_(self.classifier.weight)

    def forward(self, context: Tensor, low: Tensor) -> Tensor:
        """(N, C, h, w) and finer (N, C', h', w') to scores (N, K, h', w')."""
        fine = self.fine(low)
        joined = torch.cat([fine, upsample_to(self.context(context), fine.shape[-2:], align_corners=True)], dim=1)
        scores: Tensor = self.classifier(self.conv2(self.conv1(joined)))
        return scores


class GatedSCNN(SegModel):
    """Class stream, shape stream, pyramid and decoder; without a shape stream the paper's baseline, a DeepLabV3+."""

    class_dependent: ClassVar[tuple[str, ...]] = ("decoder.classifier.",)

    def __init__(
        self,
        backbone: Backbone,
        *,
        shape: ShapeStream | None,
        boundary: BoundaryMap | None,
        pyramid: EdgePyramid,
        decoder: Decoder,
        dual_task: DualTaskSpec,
        official_compat: bool = False,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.shape = shape
        self.boundary = boundary
        self.pyramid = pyramid
        self.decoder = decoder
        self.dual_task = dual_task
        self.official_compat = official_compat
        if official_compat:
            self.unused_side = SideMap(backbone.channels[0]).requires_grad_(False)
        self.num_classes = decoder.classifier.out_channels
        self.output_stride = backbone.strides[1]

    def forward(self, images: Tensor) -> SemanticOutput:
        """(N, 3, H, W) images, uint8 or float in 0..255, to scores (N, K, h, w).

        In training the extra `edges` holds boundary logits (N, 1, H, W).
        """
        first, low, *levels = self.backbone(images)
        if self.shape is None:
            return SemanticOutput(self.decoder(self.pyramid(levels[-1], None), low))
        edges = self.shape(first, levels, images.shape[-2:])
        boundaries = torch.sigmoid(edges)
        if self.boundary is not None:
            boundaries = self.boundary(boundaries, self._image_edges(images))
        logits = self.decoder(self.pyramid(levels[-1], boundaries), low)
        if not self.training:
            return SemanticOutput(logits)
        return SemanticOutput(logits, extras={"edges": edges.view_as(edges)})  # a view: scores do not depend on it

    def loss(self, output: SemanticOutput, target: SemanticTarget) -> dict[str, Tensor]:
        """`ce`, and in training `edge`, `attention` and `boundary` with the weights of the settings.

        `attention` is a cross-entropy too, of the pixels that are called a boundary: at first of none.
        """
        losses = {"ce": self._cross_entropy(output, target)}
        if "edges" not in output.extras:
            return losses
        weights, scores = self.dual_task, output.extras["edges"][:, 0]
        if weights.edge:
            losses["edge"] = weights.edge * self._edge_loss(scores, target)
        if weights.attention:
            seen = torch.sigmoid(scores.detach()) > weights.attention_threshold
            kept = target._replace(labels=target.labels.where(seen, target.void), mining=None)
            losses["attention"] = weights.attention * self._cross_entropy(output, kept)
        if weights.boundary:
            losses["boundary"] = weights.boundary * self._boundary_loss(output.logits, target)
        return losses

    def _image_edges(self, images: Tensor) -> Tensor:
        """(N, 1, H, W) edges of the image: 0 or 1, in the released code 0 or 255."""
        if not self.official_compat:
            return canny(images)
        bytes_ = self.backbone.normalize(images).trunc().remainder(256)  # what a cast to uint8 makes of -2 … 2.6
        return 255 * canny(bytes_)

    def _cross_entropy(self, output: SemanticOutput, target: SemanticTarget) -> Tensor:
        labels = chosen_labels(output.logits, target)
        losses = image_cross_entropies(output.logits, labels, void=target.void, class_weights=target.class_weights)
        return losses.sum() if self.official_compat else losses.mean()

    def _edge_loss(self, scores: Tensor, target: SemanticTarget) -> Tensor:
        known, labels = target.labels != target.void, target.labels
        if not self.official_compat:
            return balanced_edge_loss(scores, region_borders(labels), valid=known)
        regions = labels.where(known & (labels != 0), OUTSIDE)  # its classes begin with the second
        return balanced_edge_loss(torch.sigmoid(scores), region_borders(regions), valid=torch.ones_like(known))

    def _boundary_loss(self, logits: Tensor, target: SemanticTarget) -> Tensor:
        return semantic_to_boundary_loss(
            logits,
            target.labels,
            void=target.void,
            temperature=0.5 if self.official_compat else 1.0,
            noisy=self.training,
            released=self.official_compat,
        )


PRESETS: dict[str, ModelSpec] = {
    "gated_scnn_wideresnet38": GatedSCNNSpec(),
    "gated_scnn_wideresnet38_official": GatedSCNNSpec(official_compat=True),
    "gated_scnn_resnet50": GatedSCNNSpec(backbone=BackboneSpec(name="resnet50", output_stride=8)),
    "gated_scnn_resnet50_v1c": GatedSCNNSpec(backbone=BackboneSpec(name="resnet50c", output_stride=8)),
    "gated_scnn_resnet101": GatedSCNNSpec(backbone=BackboneSpec(name="resnet101", output_stride=8)),
    "gated_scnn_resnet101_v1c": GatedSCNNSpec(backbone=BackboneSpec(name="resnet101c", output_stride=8)),
    "gated_scnn_resnet50_baseline": GatedSCNNSpec(
        backbone=BackboneSpec(name="resnet50", output_stride=8), edge_input="none"
    ),
    "gated_scnn_resnet50_no_gradient": GatedSCNNSpec(
        backbone=BackboneSpec(name="resnet50", output_stride=8), edge_input="shape"
    ),
    "gated_scnn_efficientnet_lite0": GatedSCNNSpec(
        backbone=BackboneSpec(name="tf_efficientnet_lite0", output_stride=16),
        rates=(6, 12, 18),
        context_channels=64,
        fine_channels=24,
        head_channels=64,
    ),
}
