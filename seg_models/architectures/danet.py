"""DANet: dual attention network.

Fu, Liu, Tian, Li, Bao, Fang, Lu: Dual Attention Network for Scene Segmentation, CVPR 2019, arXiv 1809.02983.

Two branches look at the features of a dilated backbone. One lets every position gather from all positions that look
like it (position attention, section 3.2), the other every channel from all channels (channel attention, section
3.3); each adds what it gathered to what it had, times a factor that is learned from 0. Their sum is classified, and
in training each branch is classified by itself too (three losses of weight 1).

Deviations, each a setting where it matters:
- By default the ResNet has a deep stem and an auxiliary head looks at the stage before the last one, as in
  mmsegmentation. The authors' released model has a 7×7 stem, dilations 4, 8, 16 in the last stage (`multi_grid`) and no
  auxiliary head: presets `danet_*_official`.
- Channels are weighted by softmax of their *negative* products, as in the authors' code and mmsegmentation, whose
  weights so keep their meaning: the less alike, the more. Equation 3 of the paper has no minus: `like_channels`.
- Enlarging is bilinear with align_corners=False everywhere (mmsegmentation, 512×1024); the authors' code and
  mmsegmentation's crops of 769 align corners.
- Position attention is computed in blocks and never holds all pairs of positions (`parts/attention.py`). Softmax is
  in float32 in both attentions.

Shapes: N batch, C channels, D channels of keys, K classes, H W pixels, h w cells.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from seg_models.backbones.dilation import set_multi_grid
from seg_models.backbones.timm_backbone import Backbone, BackboneSpec
from seg_models.outputs import SegModel, SemanticOutput, SemanticTarget
from seg_models.parts.attention import energy_type, position_attention, without_autocast
from seg_models.parts.heads import Classifier, ClassifierHead
from seg_models.parts.layers import ConvNormAct
from seg_models.parts.losses import cross_entropies, scores_cross_entropy
from seg_models.spec import ModelSpec


class DANetSpec(ModelSpec):
    """Settings of a DANet."""

    arch: Literal["danet"] = "danet"
    backbone: BackboneSpec = BackboneSpec(name="resnet50c", output_stride=8)
    multi_grid: tuple[PositiveInt, ...] = ()
    """Dilations of the blocks of a ResNet's last stage, such as (4, 8, 16); default: the stage's own for all."""
    channels: int = Field(512, gt=0)
    """Channels of both branches."""
    key_reduction: int = Field(8, gt=0)
    """Queries and keys of position attention have `channels` / this many channels."""
    like_channels: bool = False
    """Gather from channels that are alike (the paper's equation 3) instead of unlike (its code)."""
    aux_channels: int | None = Field(256, gt=0)
    """Channels of the auxiliary head, or None for no auxiliary head."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Probability that a channel before a classifier is zeroed in training."""

    def build(self, num_classes: int) -> DANet:
        """The network for `num_classes` classes.

        Raises:
            ValueError: a multi-grid for a backbone that cannot have one.
        """
        backbone = self.backbone.build()
        if self.multi_grid:
            set_multi_grid(backbone, self.multi_grid)
        position = PositionAttention(self.channels, key_channels=max(1, self.channels // self.key_reduction))
        channel = ChannelAttention(like=self.like_channels)
        return DANet(
            backbone,
            position=AttentionBranch(backbone.channels[-1], self.channels, attention=position),
            channel=AttentionBranch(backbone.channels[-1], self.channels, attention=channel),
            classifier=Classifier(self.channels, num_classes, dropout=self.dropout),
            position_classifier=Classifier(self.channels, num_classes, dropout=self.dropout),
            channel_classifier=Classifier(self.channels, num_classes, dropout=self.dropout),
            aux_head=self._aux_head(backbone, num_classes),
        )

    def _aux_head(self, backbone: Backbone, num_classes: int) -> ClassifierHead | None:
        if self.aux_channels is None:
            return None
        return ClassifierHead(backbone.channels[-2], self.aux_channels, num_classes, dropout=self.dropout)


class PositionAttention(nn.Module):
    """x_i + γ Σ_j softmax_j(query(x_i) · key(x_j)) value(x_j) over all positions j (equations 1 and 2).

    γ starts at 0, so that in the first step the three convolutions learn nothing.

    Args:
        channels: channels of the features.
        key_channels: channels of queries and keys.
    """

    def __init__(self, channels: int, *, key_channels: int) -> None:
        super().__init__()
        self.query = nn.Conv2d(channels, key_channels, kernel_size=1)
        self.key = nn.Conv2d(channels, key_channels, kernel_size=1)
        self.value = nn.Conv2d(channels, channels, kernel_size=1)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, features: Tensor) -> Tensor:
        """(N, C, h, w) to the same."""
        attended = position_attention(
            self.query(features).flatten(2), self.key(features).flatten(2), self.value(features).flatten(2)
        )
        return features + self.gamma * attended.view_as(features)


class ChannelAttention(nn.Module):
    """x_c + γ Σ_d softmax_d(−x_c · x_d) x_d over all channels d, maps taken as vectors (equations 3 and 4).

    The code of the authors writes softmax(max − E) of the products E, which is softmax(−E). γ starts at 0.

    Args:
        like: softmax(+E), as the paper has it.
    """

    def __init__(self, *, like: bool = False) -> None:
        super().__init__()
        self.sign = 1 if like else -1
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, features: Tensor) -> Tensor:
        """(N, C, h, w) to the same."""
        with without_autocast(features.device):  # products are sums over the whole map: thousands, with small gaps
            maps = features.to(energy_type(features)).flatten(2)
            weights = torch.softmax(self.sign * (maps @ maps.transpose(1, 2)), dim=-1)
            attended = (weights @ maps).to(features.dtype)
        return features + self.gamma * attended.view_as(features)


class AttentionBranch(nn.Sequential):
    """A 3×3 convolution to fewer channels, an attention, and a 3×3 convolution."""

    def __init__(self, in_channels: int, channels: int, *, attention: nn.Module) -> None:
        super().__init__()
        self.reduce = ConvNormAct(in_channels, channels, kernel_size=3)
        self.attention = attention
        self.refine = ConvNormAct(channels, channels, kernel_size=3)


class DANet(SegModel):
    """Backbone, two attention branches, a classifier of their sum; in training one of each branch and of the backbone.

    The classifiers of the branches count among the parameters of prediction, as everywhere in the literature, though
    prediction leaves them out.
    """

    class_dependent: ClassVar[tuple[str, ...]] = (
        "classifier.",
        "position_classifier.",
        "channel_classifier.",
        "aux_head.classifier.",
    )

    def __init__(
        self,
        backbone: Backbone,
        *,
        position: AttentionBranch,
        channel: AttentionBranch,
        classifier: Classifier,
        position_classifier: Classifier,
        channel_classifier: Classifier,
        aux_head: ClassifierHead | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.position = position
        self.channel = channel
        self.classifier = classifier
        self.position_classifier = position_classifier
        self.channel_classifier = channel_classifier
        self.aux_head = aux_head
        self.num_classes = classifier.conv.out_channels
        self.output_stride = backbone.strides[-1]

    def forward(self, images: Tensor) -> SemanticOutput:
        """(N, 3, H, W) images, uint8 or float in 0..255, to scores (N, K, h, w).

        In training `extras` holds the scores of both branches and `aux` those of the auxiliary head.
        """
        features = self.backbone(images)
        position, channel = self.position(features[-1]), self.channel(features[-1])
        logits = self.classifier(position + channel)
        if not self.training:
            return SemanticOutput(logits)
        branches = {"position": self.position_classifier(position), "channel": self.channel_classifier(channel)}
        aux = () if self.aux_head is None else (self.aux_head(features[-2]),)
        return SemanticOutput(logits, aux=aux, extras=branches)

    def loss(self, output: SemanticOutput, target: SemanticTarget) -> dict[str, Tensor]:
        """`ce` of the sum and, in training, `position_ce`, `channel_ce` and `aux_ce`, all unweighted."""
        losses = cross_entropies(output, target)
        branches = {f"{name}_ce": scores_cross_entropy(logits, target) for name, logits in output.extras.items()}
        return {"ce": losses.pop("ce"), **branches, **losses}


OFFICIAL_GRID = (4, 8, 16)
"""Dilations of the three blocks of the last stage in the authors' released model."""

PRESETS: dict[str, ModelSpec] = {
    "danet_resnet50": DANetSpec(),
    "danet_resnet101": DANetSpec(backbone=BackboneSpec(name="resnet101c", output_stride=8)),
    "danet_resnet50_official": DANetSpec(
        backbone=BackboneSpec(name="resnet50", output_stride=8), multi_grid=OFFICIAL_GRID, aux_channels=None
    ),
    "danet_resnet101_official": DANetSpec(
        backbone=BackboneSpec(name="resnet101", output_stride=8), multi_grid=OFFICIAL_GRID, aux_channels=None
    ),
    "danet_efficientnet_lite0": DANetSpec(
        backbone=BackboneSpec(name="tf_efficientnet_lite0", output_stride=16), channels=128, aux_channels=64
    ),
}
