"""CondNet: a classifier whose kernels are made from the image.

Yu, Shao, Gao, Sang: CondNet: Conditional Classifier for Scene Segmentation, IEEE Signal Processing Letters 28, 2021,
arXiv 2109.10322.

The last convolution of other networks looks for a class by the same kernel in every image. Here a first classifier says
roughly what lies where (the guidance, learned with a Dice loss). Weighted by the probability of each class, the
features are averaged over the map; a projection of its own for each class turns that average into the kernel and the
bias by which this class is looked for in this image. What lies before the classifier is the released configuration:
ASPP with separable convolutions on a backbone of stride 8 and a decoder that looks back at stride 4. With many classes
the projections are most of the network: 39 of 81 million parameters on ADE20K with ResNet-50.

Deviations, a setting where it matters:
- The projection of class k makes the kernel and the bias of class k. The authors' code lays the C + 1 numbers of all
  classes one behind the other and cuts off K·C of them as kernels and the rest as biases: the kernel of class k then
  begins with the last k numbers of class k − 1, and all biases belong to the last class (K ≤ C + 1): `cut_flat`.
- Void takes no part in the Dice loss; in the authors' code it counts as the last class below the line.

`mask_loss` lays CFT's loss of category masks on the guidance (arXiv 2308.05581, table 3), beside the Dice loss; with
`guidance_weight = 0` it stands in its place.

Shapes: N batch, C channels, K classes, H W pixels, h w cells, P = h·w.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from seg_models.backbones.timm_backbone import Backbone, BackboneSpec
from seg_models.outputs import SegModel, SemanticOutput, SemanticTarget
from seg_models.parts.context import ASPP, separable_conv
from seg_models.parts.heads import ClassifierHead
from seg_models.parts.layers import ConvNormAct
from seg_models.parts.losses import cross_entropies
from seg_models.parts.mask_losses import MaskLossSpec, weighted_mask_losses
from seg_models.parts.resample import enlarge
from seg_models.parts.tokens import full_precision
from seg_models.spec import ModelSpec

FINE_STRIDE = 4
"""Pixels per cell of the features that the decoder looks back at."""

SMOOTH = 1e-5
"""Added above and below the line of the Dice loss (released configuration)."""


class CondNetSpec(ModelSpec):
    """Settings of a CondNet."""

    arch: Literal["condnet"] = "condnet"
    backbone: BackboneSpec = BackboneSpec(name="resnet50c", output_stride=8)
    dilations: tuple[int, ...] = (12, 24, 36)
    """Cells from tap to tap of the 3×3 branches."""
    channels: int = Field(512, gt=0)
    """Channels of the branches and of the features that are classified."""
    fine_channels: int = Field(48, gt=0)
    """Channels made of the features of stride 4."""
    aux_channels: int | None = Field(256, gt=0)
    """Channels of the auxiliary head, or None for no auxiliary head."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Probability that a channel before a classifier is zeroed in training."""
    guidance_weight: float = Field(0.2, ge=0)
    """Weight of the Dice loss of the guidance; 0 leaves it out."""
    mask_loss: MaskLossSpec | None = None
    """CFT's loss of one mask per class on the scores of the guidance, or None."""
    cut_flat: bool = False
    """Cut the generated numbers into kernels and biases across the classes, as the authors' code does."""

    def build(self, num_classes: int) -> CondNet:
        """The network for `num_classes` classes.

        Raises:
            ValueError: the backbone has no level of stride 4.
        """
        backbone = self.backbone.build()
        if FINE_STRIDE not in backbone.strides:
            raise ValueError(f"{self.backbone.name} has levels of strides {backbone.strides}; the decoder needs 4")
        width, fine = self.channels, backbone.channels[backbone.strides.index(FINE_STRIDE)]
        aspp = ASPP(backbone.channels[-1], width, dilations=self.dilations, conv=separable_conv)
        fuse = ConvNormAct(aspp.out_channels, width, kernel_size=3)
        return CondNet(
            backbone,
            context=nn.Sequential(OrderedDict(aspp=aspp, fuse=fuse)),
            fine=ConvNormAct(fine, self.fine_channels, kernel_size=1),
            refine=nn.Sequential(separable_conv(width + self.fine_channels, width, 1), separable_conv(width, width, 1)),
            classifier=ConditionalClassifier(width, num_classes, dropout=self.dropout, cut_flat=self.cut_flat),
            aux_head=self._aux_head(backbone.channels[-2], num_classes),
            guidance_weight=self.guidance_weight,
            mask_loss=self.mask_loss,
        )

    def _aux_head(self, in_channels: int, num_classes: int) -> ClassifierHead | None:
        if self.aux_channels is None:
            return None
        return ClassifierHead(in_channels, self.aux_channels, num_classes, dropout=self.dropout)


class ConditionalClassifier(nn.Module):
    """Class scores by kernels that are made from the features themselves.

    Args:
        channels: C, of the features.
        num_classes: K.
        dropout: probability that a channel is zeroed in training.
        cut_flat: cut the generated numbers across the classes.
    """

    def __init__(self, channels: int, num_classes: int, *, dropout: float = 0.1, cut_flat: bool = False) -> None:
        super().__init__()
        self.cut_flat = cut_flat
        self.dropout = nn.Dropout2d(dropout)
        self.guidance = nn.Conv2d(channels, num_classes, kernel_size=1)
        self.filters = nn.Conv2d(
            num_classes * channels, num_classes * (channels + 1), kernel_size=1, groups=num_classes
        )
        for conv in (self.guidance, self.filters):
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
            assert conv.bias is not None
            nn.init.zeros_(conv.bias)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C, h, w) to scores (N, K, h, w) and the scores (N, K, h, w) of the guidance."""
        features = self.dropout(features)
        guidance = self.guidance(features)
        kernels, biases = self.kernels(class_averages(features, guidance))
        scores = torch.einsum("nkc,ncp->nkp", kernels, features.flatten(2)) + biases[..., None]
        return scores.unflatten(2, features.shape[-2:]), guidance

    def kernels(self, averages: Tensor) -> tuple[Tensor, Tensor]:
        """Averages (N, K, C) to one kernel (N, K, C) and one bias (N, K) per class."""
        num_classes, channels = averages.shape[1:]
        numbers: Tensor = self.filters(averages.flatten(1)[..., None, None]).flatten(1)
        if self.cut_flat:
            kernels, biases = numbers.split([num_classes * channels, num_classes], dim=1)
            return kernels.unflatten(1, (num_classes, channels)), biases
        kernels, biases = numbers.unflatten(1, (num_classes, channels + 1)).split([channels, 1], dim=2)
        return kernels, biases[..., 0]


def class_averages(features: Tensor, guidance: Tensor) -> Tensor:
    """What the features of each class are like: (N, C, h, w) and (N, K, h, w) to (N, K, C).

    The mean over all cells of features × probability of the class, in float32: a rare class has a small one.
    """
    with full_precision(features.device):
        shares = guidance.flatten(2).float().softmax(dim=1)
        sums = torch.einsum("nkp,ncp->nkc", shares, features.flatten(2).float())
        return (sums / shares.shape[2]).to(features.dtype)


class CondNet(SegModel):
    """Backbone, ASPP, decoder, conditional classifier; an auxiliary head on the level before the last in training.

    Args:
        context: from the last features to the width of the decoder.
        fine: from the features of stride 4 to a few channels.
        refine: from both, side by side, to what is classified.
        classifier: to class scores and guidance.
        aux_head: to the auxiliary scores.
        guidance_weight: of the Dice loss of the guidance.
        mask_loss: what the guidance is compared by besides.
    """

    class_dependent: ClassVar[tuple[str, ...]] = (
        "classifier.guidance.",
        "classifier.filters.",
        "aux_head.classifier.",
    )
    output_stride = FINE_STRIDE

    def __init__(
        self,
        backbone: Backbone,
        *,
        context: nn.Module,
        fine: nn.Module,
        refine: nn.Module,
        classifier: ConditionalClassifier,
        aux_head: ClassifierHead | None = None,
        guidance_weight: float = 0.2,
        mask_loss: MaskLossSpec | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.context = context
        self.fine = fine
        self.refine = refine
        self.classifier = classifier
        self.aux_head = aux_head
        self.guidance_weight = guidance_weight
        self.mask_loss = mask_loss
        self.num_classes = classifier.guidance.out_channels
        self.fine_level = backbone.strides.index(FINE_STRIDE)

    def forward(self, images: Tensor) -> SemanticOutput:
        """(N, 3, H, W) images, uint8 or float in 0..255, to scores (N, K, h, w) at stride 4."""
        features = self.backbone(images)
        fine = self.fine(features[self.fine_level])
        coarse = enlarge(self.context(features[-1]), fine.shape[-2:])
        logits, guidance = self.classifier(self.refine(torch.cat([coarse, fine], dim=1)))
        if not self.training:
            return SemanticOutput(logits)
        aux = () if self.aux_head is None else (self.aux_head(features[-2]),)
        if not self.guidance_weight and self.mask_loss is None:
            return SemanticOutput(logits, aux=aux)
        # A view: the gradient of the guidance is that of its own losses, without the way over the kernels.
        return SemanticOutput(logits, aux=aux, extras={"guidance": guidance.view_as(guidance)})

    def loss(self, output: SemanticOutput, target: SemanticTarget) -> dict[str, Tensor]:
        """`ce`; in training `aux_ce`, weighted `dice_guidance_scores` and, with `mask_loss`, the mask losses."""
        losses = cross_entropies(output, target)
        guidance = output.extras.get("guidance")
        if guidance is None:
            return losses
        if self.guidance_weight:
            losses["dice_guidance_scores"] = self.guidance_weight * guidance_dice(guidance, target)
        if self.mask_loss is not None:
            losses |= weighted_mask_losses((guidance,), target, self.mask_loss)
        return losses


def guidance_dice(scores: Tensor, target: SemanticTarget) -> Tensor:
    """Dice loss of the softmax over classes, at the size of the cells; the mean over all images and classes.

    With p the probability of class k and t = (label == k) at the cells that are not void:
    1 − (2Σpt + s) / (Σp² + Σt² + s) (Milletari et al., arXiv 1606.04797; released configuration: squares, s = 1e-5).
    Labels are brought to the cells by the nearest pixel. A class that an image does not hold takes part.

    Args:
        scores: (N, K, h, w).
        target: labels (N, H, W) and their void.
    """
    labels = nearest_labels(target.labels, scores.shape[-2:])[:, None]
    known = labels != target.void
    with full_precision(scores.device):
        p = scores.float().softmax(dim=1) * known
        t = ((labels == torch.arange(scores.shape[1], device=labels.device)[:, None, None]) & known).float()
        overlap, sizes = (p * t).sum(dim=(2, 3)), (p.square() + t).sum(dim=(2, 3))
        return (1 - (2 * overlap + SMOOTH) / (sizes + SMOOTH)).mean()


def nearest_labels(labels: Tensor, size: torch.Size | tuple[int, int]) -> Tensor:
    """(N, H, W) to (N, h, w): the pixel at the upper left corner of each cell."""
    height, width = labels.shape[1:]
    h, w = size
    rows = torch.arange(h, device=labels.device) * height // h
    columns = torch.arange(w, device=labels.device) * width // w
    return labels[:, rows[:, None], columns]


PRESETS: dict[str, ModelSpec] = {
    "condnet_resnet50": CondNetSpec(),
    "condnet_resnet101": CondNetSpec(backbone=BackboneSpec(name="resnet101c", output_stride=8)),
    "condnet_efficientnet_lite0": CondNetSpec(
        backbone=BackboneSpec(name="tf_efficientnet_lite0", output_stride=16),
        dilations=(6, 12, 18),
        channels=64,
        fine_channels=24,
        aux_channels=64,
    ),
}
