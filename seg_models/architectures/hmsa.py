"""HMSA: hierarchical multi-scale attention around any dense network.

Tao, Sapra, Catanzaro: Hierarchical Multi-Scale Attention for Semantic Segmentation, 2020, arXiv 2005.10821.

One network looks at an image at several scales. A small head says for every cell of a scale how far that scale is to
be trusted against everything finer; one attention serves all classes. Trained on a pair of scales only (section 3),
the same head chains any number of scales in prediction:

    joint = U(a_0.5·P_0.5) + (1 − U(a_0.5))·(a_1·P_1 + (1 − a_1)·D(P_2))

so training costs 1.25 looks instead of the 5.25 of scales 0.5, 1 and 2 mixed explicitly.

Deviations, each a setting where it matters:
- Scores are mixed at the size of the cells of scale 1, and enlarged to pixels afterwards, so that no map of K
  channels at the size of the pixels is kept. The released code enlarges first: `mix_at = "pixels"`.
- The attention looks at what the classifier is given, as in the released HRNet-OCR; the released DeepLabV3+ gives it
  what the head is given: `looks_at`.
- The attention of the finest scale weighs nothing. In prediction it is not computed; in training it is, without
  gradient, since its batch norms serve that scale when a finer one is added in prediction (as in the released code).
- Mirrored images are averaged as probabilities by the Predictor (the released code averages scores).

Shapes: N batch, C channels, K classes, H W pixels, h w cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from seg_models.architectures.deeplabv3plus import DeepLabV3PlusSpec
from seg_models.architectures.hrnet_ocr import HRNetOCRSpec
from seg_models.architectures.pspnet import PRESETS as PSPNETS
from seg_models.backbones.timm_backbone import BackboneSpec
from seg_models.outputs import SegModel, SemanticOutput, SemanticTarget
from seg_models.parts.layers import ConvNormAct
from seg_models.parts.scales import (
    SCALE,
    Criterion,
    Look,
    class_dependent,
    in_channels,
    look,
    resize_like,
    scale_losses,
    scaled,
    watched_module,
)
from seg_models.spec import AnyModelSpec, ModelSpec

LOW, HIGH = f"{SCALE}low", f"{SCALE}high"


class HMSASpec(ModelSpec):
    """Settings of hierarchical multi-scale attention."""

    arch: Literal["hmsa"] = "hmsa"
    inner: AnyModelSpec = HRNetOCRSpec()
    """The network that looks at every scale: any architecture."""
    looks_at: str | None = None
    """Module of the network whose input the attention sees; default: the layer that makes its class scores."""
    attention_channels: int = Field(256, gt=0)
    """Channels of the attention head."""
    low_scale: float = Field(0.5, gt=0, lt=1)
    """The lower of the two scales of training; the other is 1."""
    scales: tuple[float, ...] = (0.5, 1.0)
    """Scales that are chained in prediction, 1 among them; `predictor.hierarchical` chains others."""
    mix_at: Literal["cells", "pixels"] = "cells"
    """Mix scores at the size of the cells (smaller) or after enlarging them to pixels (the released code)."""
    criterion: Criterion = "rmi"
    """rmi: half binary cross-entropy, half region mutual information. ce: the losses of the inner network."""
    supervised_weight: float = Field(0.05, ge=0)
    """Weight of the losses of each of the two scales alone; 0 leaves them out."""

    @model_validator(mode="after")
    def _check_scales(self) -> Self:
        check_scales(self.scales)
        return self

    def build(self, num_classes: int) -> HMSA:
        """The network for `num_classes` classes."""
        inner = self.inner.build(num_classes)
        watched = watched_module(inner, self.looks_at)
        return HMSA(
            inner,
            watched=watched,
            attention=ScaleAttention(in_channels(watched), self.attention_channels),
            low_scale=self.low_scale,
            scales=self.scales,
            at_pixels=self.mix_at == "pixels",
            criterion=self.criterion,
            supervised_weight=self.supervised_weight,
        )


class ScaleAttention(nn.Sequential):
    """How far each cell of a scale is to be trusted: 3×3, 3×3, 1×1 to one channel, sigmoid (paper section 3)."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.conv0 = ConvNormAct(in_channels, channels, kernel_size=3)
        self.conv1 = ConvNormAct(channels, channels, kernel_size=3)
        self.weight = nn.Conv2d(channels, 1, kernel_size=1, bias=False)
        self.act = nn.Sigmoid()


class HMSA(SegModel):
    """A network that looks at every scale, and the attention that weighs what it says.

    Args:
        inner: the network.
        watched: the module of it whose input the attention sees.
        attention: (N, C, h, w) to (N, 1, h, w).
        low_scale: the lower scale of training.
        scales: of prediction.
        at_pixels: mix scores after enlarging them to pixels.
        criterion: what mixed scores are compared by.
        supervised_weight: of the losses of single scales.
    """

    def __init__(
        self,
        inner: SegModel,
        *,
        watched: nn.Module,
        attention: ScaleAttention,
        low_scale: float,
        scales: Sequence[float],
        at_pixels: bool,
        criterion: Criterion,
        supervised_weight: float,
    ) -> None:
        super().__init__()
        self.inner = inner
        self._watched = (watched,)  # in a tuple: its parameters belong to `inner` and have no second name
        self.attention = attention
        self.low_scale = low_scale
        self.scales = tuple(scales)
        self.at_pixels = at_pixels
        self.criterion: Criterion = criterion
        self.supervised_weight = supervised_weight
        self.num_classes = inner.num_classes
        self.output_stride = 1 if at_pixels else inner.output_stride
        self.class_dependent = class_dependent(inner)  # type: ignore[misc]

    def forward(self, images: Tensor) -> SemanticOutput:
        """(N, 3, H, W) images, uint8 or float in 0..255, to scores (N, K, h, w): a pair in training, else a chain."""
        if self.training:
            return self._pair(images)
        return SemanticOutput(self.predict_scales(images, scales=self.scales))

    def predict_scales(self, images: Tensor, *, scales: Sequence[float]) -> Tensor:
        """Scores (N, K, h, w) from a chain of scales, from the finest to the coarsest (paper section 3).

        Raises:
            ValueError: 1 is not among the scales, or one of them is not positive.
        """
        check_scales(scales)
        finest, *coarser = sorted(set(scales), reverse=True)
        joint = self._look(scaled(images, finest)).output.logits
        for scale in coarser:
            coarse = self._look(scaled(images, scale))
            if scale >= 1:
                joint = resize_like(joint, coarse.output.logits)
            joint = mix(coarse.output.logits, self.attention(coarse.features), joint)
        return joint

    def loss(self, output: SemanticOutput, target: SemanticTarget) -> dict[str, Tensor]:
        """Losses of the mixed scores, and of the two scales alone times `supervised_weight`."""
        return scale_losses(
            self.inner, output, target, criterion=self.criterion, supervised_weight=self.supervised_weight
        )

    def _pair(self, images: Tensor) -> SemanticOutput:
        low, high = self._look(scaled(images, self.low_scale)), self._look(images)
        attention = self.attention(low.features)
        with torch.no_grad():
            self.attention(high.features)  # for its batch norms only
        (logits, *aux) = (
            mix(coarse, attention, fine) for coarse, fine in zip(_scores(low), _scores(high), strict=True)
        )
        extras = dict(high.output.extras)
        if self.supervised_weight > 0:
            extras.update({LOW: low.output.logits, HIGH: high.output.logits})
        return SemanticOutput(logits, aux=tuple(aux), extras=extras)

    def _look(self, images: Tensor) -> Look:
        return look(self.inner, images, watched=self._watched[0], at_pixels=self.at_pixels)


def mix(coarse: Tensor, attention: Tensor, fine: Tensor) -> Tensor:
    """U(a·coarse) + (1 − U(a))·fine, at the size of `fine` (paper section 3).

    The product is formed before it is enlarged. Where the attention has another size than the coarse scores, it is
    brought to theirs first.

    Args:
        coarse: (N, K, h, w) scores of the coarser scale.
        attention: (N, 1, h', w') how far they are to be trusted, 0..1.
        fine: (N, K, H, W) scores of everything finer.
    """
    trust = resize_like(attention.float(), coarse)
    return resize_like(trust * coarse, fine) + (1 - resize_like(trust, fine)) * fine


def check_scales(scales: Sequence[float]) -> None:
    """Scales of a chain are positive and end at the size of the image.

    Raises:
        ValueError: they are not or do not.
    """
    if 1.0 not in scales or min(scales) <= 0:
        raise ValueError(f"scales must be positive and hold 1.0, the size that scores come at, found {tuple(scales)}")


def _scores(seen: Look) -> tuple[Tensor, ...]:
    return seen.output.logits, *seen.output.aux


NVIDIA_DEEPLAB = DeepLabV3PlusSpec(backbone=BackboneSpec(name="resnet50", output_stride=8), separable=False)
"""DeepLabV3+ of the paper's comparison of ways to mix scales (table 3): plain 3×3 convolutions, stride 8."""

PRESETS: dict[str, ModelSpec] = {
    "hmsa_w48": HMSASpec(),
    "hmsa_deeplabv3plus_resnet50": HMSASpec(inner=NVIDIA_DEEPLAB, looks_at="refine"),
    "hmsa_pspnet_efficientnet_lite0": HMSASpec(
        inner=PSPNETS["pspnet_efficientnet_lite0"], attention_channels=32, criterion="ce"
    ),
}
