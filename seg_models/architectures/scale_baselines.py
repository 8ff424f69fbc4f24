"""What hierarchical attention is compared with: scales mixed explicitly, or pooled.

Explicit: Chen, Yang, Wang, Xu, Yuille: Attention to Scale, CVPR 2016, arXiv 1511.03339. The features of all scales,
laid side by side, give one weight per scale and cell; training and prediction look at the same scales.
Pooled: the network is trained at scale 1 alone, and its scores of several scales are averaged, or their maximum taken.
Both are rows of table 3 of Tao et al. (HMSA), arXiv 2005.10821.

Deviations:
- The weights of the explicit form are a softmax over the scales, as in Chen et al.; NVIDIA's code leaves them as the
  convolution gives them, and pads its 1×1 convolution by one cell.
- Scores are mixed at the size of the cells of scale 1, not at that of the pixels.

Shapes: N batch, C channels, K classes, S scales, H W pixels, h w cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from seg_models.architectures.hmsa import NVIDIA_DEEPLAB, check_scales
from seg_models.architectures.hrnet_ocr import HRNetOCRSpec
from seg_models.architectures.pspnet import PRESETS as PSPNETS
from seg_models.outputs import SegModel, SemanticOutput, SemanticTarget
from seg_models.parts.scales import (
    SCALE,
    Criterion,
    class_dependent,
    in_channels,
    look,
    resize_like,
    scale_losses,
    scaled,
    watched_module,
)
from seg_models.spec import AnyModelSpec, ModelSpec


class ExplicitScalesSpec(ModelSpec):
    """Settings of attention to scale."""

    arch: Literal["hmsa_explicit"] = "hmsa_explicit"
    inner: AnyModelSpec = HRNetOCRSpec()
    """The network that looks at every scale: any architecture."""
    looks_at: str | None = None
    """Module of the network whose input the attention sees; default: the layer that makes its class scores."""
    attention_channels: int = Field(512, gt=0)
    """Channels of the attention head."""
    scales: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Scales of training and prediction, 1 among them."""
    criterion: Criterion = "rmi"
    """rmi: half binary cross-entropy, half region mutual information. ce: the losses of the inner network."""
    supervised_weight: float = Field(0.05, ge=0)
    """Weight of the losses of each scale alone; 0 leaves them out."""

    @model_validator(mode="after")
    def _check_scales(self) -> Self:
        check_scales(self.scales)
        return self

    def build(self, num_classes: int) -> ExplicitScales:
        """The network for `num_classes` classes."""
        inner = self.inner.build(num_classes)
        watched = watched_module(inner, self.looks_at)
        wide = len(self.scales) * in_channels(watched)
        return ExplicitScales(
            inner,
            watched=watched,
            attention=JointAttention(wide, self.attention_channels, num_scales=len(self.scales)),
            scales=self.scales,
            criterion=self.criterion,
            supervised_weight=self.supervised_weight,
        )


class AverageScalesSpec(ModelSpec):
    """Settings of a network whose scores of several scales are pooled in prediction."""

    arch: Literal["hmsa_average"] = "hmsa_average"
    inner: AnyModelSpec = HRNetOCRSpec()
    """The network that looks at every scale: any architecture."""
    scales: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Scales of prediction, 1 among them; training sees scale 1."""
    pool: Literal["average", "max"] = "average"
    """The mean of the scores, or their maximum."""
    criterion: Criterion = "rmi"
    """rmi: half binary cross-entropy, half region mutual information. ce: the losses of the inner network."""

    @model_validator(mode="after")
    def _check_scales(self) -> Self:
        check_scales(self.scales)
        return self

    def build(self, num_classes: int) -> AverageScales:
        """The network for `num_classes` classes."""
        return AverageScales(
            self.inner.build(num_classes), scales=self.scales, pool=self.pool, criterion=self.criterion
        )


class JointAttention(nn.Sequential):
    """The weight of each scale at each cell, from the features of all: 3×3, ReLU, 1×1, softmax over the scales."""

    def __init__(self, in_channels: int, channels: int, *, num_scales: int) -> None:
        super().__init__(
            nn.Conv2d(in_channels, channels, kernel_size=3, padding=1, bias=False),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, num_scales, kernel_size=1, bias=False),
            nn.Softmax(dim=1),
        )


class ExplicitScales(SegModel):
    """A network that looks at fixed scales, and one attention over all of them."""

    def __init__(
        self,
        inner: SegModel,
        *,
        watched: nn.Module,
        attention: JointAttention,
        scales: Sequence[float],
        criterion: Criterion,
        supervised_weight: float,
    ) -> None:
        super().__init__()
        self.inner = inner
        self._watched = (watched,)  # in a tuple: its parameters belong to `inner` and have no second name
        self.attention = attention
        self.scales = tuple(sorted(scales))
        self.criterion: Criterion = criterion
        self.supervised_weight = supervised_weight
        self.num_classes = inner.num_classes
        self.output_stride = inner.output_stride
        self.class_dependent = class_dependent(inner)  # type: ignore[misc]

    def forward(self, images: Tensor) -> SemanticOutput:
        """(N, 3, H, W) images, uint8 or float in 0..255, to scores (N, K, h, w)."""
        looks = [look(self.inner, scaled(images, scale), watched=self._watched[0]) for scale in self.scales]
        middle = looks[self.scales.index(1.0)]
        weights = self.attention(torch.cat([resize_like(one.features, middle.features) for one in looks], dim=1))
        logits, *aux = (
            _weighted(scores, weights.float(), like)
            for like, *scores in zip(
                (middle.output.logits, *middle.output.aux),
                *((one.output.logits, *one.output.aux) for one in looks),
                strict=True,
            )
        )
        extras = dict(middle.output.extras)
        if self.training and self.supervised_weight > 0:
            extras.update({f"{SCALE}{n}": one.output.logits for n, one in enumerate(looks)})
        return SemanticOutput(logits, aux=tuple(aux), extras=extras)

    def loss(self, output: SemanticOutput, target: SemanticTarget) -> dict[str, Tensor]:
        """Losses of the mixed scores, and of each scale alone times `supervised_weight`."""
        return scale_losses(
            self.inner, output, target, criterion=self.criterion, supervised_weight=self.supervised_weight
        )


class AverageScales(SegModel):
    """A network as it is in training; in prediction its scores of several scales are pooled."""

    def __init__(
        self,
        inner: SegModel,
        *,
        scales: Sequence[float],
        pool: Literal["average", "max"],
        criterion: Criterion,
    ) -> None:
        super().__init__()
        self.inner = inner
        self.scales = tuple(sorted(scales))
        self.pool = pool
        self.criterion: Criterion = criterion
        self.num_classes = inner.num_classes
        self.output_stride = inner.output_stride
        self.class_dependent = class_dependent(inner)  # type: ignore[misc]

    def forward(self, images: Tensor) -> SemanticOutput:
        """(N, 3, H, W) images, uint8 or float in 0..255, to scores (N, K, h, w)."""
        if self.training:
            output: SemanticOutput = self.inner(images)
            return output
        every = [self.inner(scaled(images, scale)).logits.float() for scale in self.scales]
        middle = every[self.scales.index(1.0)]
        scores = torch.stack([resize_like(one, middle) for one in every])
        return SemanticOutput(scores.mean(dim=0) if self.pool == "average" else scores.amax(dim=0))

    def loss(self, output: SemanticOutput, target: SemanticTarget) -> dict[str, Tensor]:
        """Losses of the network at scale 1."""
        return scale_losses(self.inner, output, target, criterion=self.criterion, supervised_weight=0.0)


def _weighted(scores: Sequence[Tensor], weights: Tensor, like: Tensor) -> Tensor:
    """Σ_s w_s·scores_s at the size of `like`: S tensors (N, K, h_s, w_s) and weights (N, S, h, w)."""
    at_cells = resize_like(weights, like)
    parts = [at_cells[:, n : n + 1] * resize_like(one, like) for n, one in enumerate(scores)]
    return torch.stack(parts).sum(dim=0)


PRESETS: dict[str, ModelSpec] = {
    "hmsa_deeplabv3plus_resnet50_explicit": ExplicitScalesSpec(inner=NVIDIA_DEEPLAB, looks_at="refine"),
    "hmsa_deeplabv3plus_resnet50_average": AverageScalesSpec(inner=NVIDIA_DEEPLAB),
    "hmsa_deeplabv3plus_resnet50_max": AverageScalesSpec(inner=NVIDIA_DEEPLAB, pool="max"),
    "hmsa_pspnet_efficientnet_lite0_explicit": ExplicitScalesSpec(
        inner=PSPNETS["pspnet_efficientnet_lite0"], attention_channels=32, scales=(0.5, 1.0), criterion="ce"
    ),
    "hmsa_pspnet_efficientnet_lite0_average": AverageScalesSpec(
        inner=PSPNETS["pspnet_efficientnet_lite0"], scales=(0.5, 1.0), criterion="ce"
    ),
}
