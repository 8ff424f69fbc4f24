"""CCNet: criss-cross attention.

Huang, Wang, Wei, Huang, Shi, Liu, Huang: CCNet: Criss-Cross Attention for Semantic Segmentation, ICCV 2019 and TPAMI
2020, arXiv 1811.11721.

The features of a dilated backbone are brought to 512 channels, and every position gathers from the positions of its row
and its column (section 3.2). Done twice with the same weights (R = 2, section 3.3) everything reaches everything, at
15 % of the cost of attention over all pairs. The result is laid beside the features and classified; an auxiliary head
looks at the stage before the last one in training. The journal version pulls what belongs to a class together and
pushes classes apart (category-consistent loss, section 3.4) and attends along three axes of a volume.

Deviations, each a setting where it matters:
- By default backbone, heads and activations are mmsegmentation's: deep stem of 32 channels, ReLU, a smaller first
  dilation in dilated stages. `ccnet_resnet101_official` has the released form: stem of 64, max-pooling that rounds up,
  one dilation a stage, leaky ReLU (slope 0.01), auxiliary head of 512 channels with a bias, BGR means without
  deviations in the order of our RGB input.
- Enlarging is bilinear with align_corners=False everywhere; the released code aligns corners (crops of 8·k + 1).
- No code of the category-consistent loss was released. Ours: 16 channels by a 1×1 convolution behind the last
  attention, labels at the centres of the cells, means over the batch of one worker. It is off by default.
- In a volume a position is counted once, as the paper says; the released code counts it on two axes:
  `CrissCrossAttention(axes=3, masked_axes=(0,))`.

Shapes: N batch, C channels, K classes, H W pixels, h w cells, P cells of all images, D channels of the embedding.
"""

from __future__ import annotations

from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from seg_models.backbones.dilation import dilate_as_released
from seg_models.backbones.timm_backbone import Backbone, BackboneSpec
from seg_models.outputs import SegModel, SemanticOutput, SemanticTarget
from seg_models.parts.category_consistency import category_terms, labels_at_cells
from seg_models.parts.criss_cross import criss_cross
from seg_models.parts.heads import ClassifierHead
from seg_models.parts.layers import ConvNormAct
from seg_models.parts.losses import cross_entropies
from seg_models.spec import ModelSpec, Spec


class ConsistencySpec(Spec):
    """Category-consistent loss (TPAMI, section 3.4)."""

    channels: int = Field(16, gt=0)
    """Channels of the embedding that is compared."""
    near: float = Field(0.5, ge=0)
    """A cell this near its class's mean costs nothing (δ_v)."""
    far: float = Field(1.5, gt=0)
    """Means twice this far apart cost nothing; a cell further than this from its mean costs linearly (δ_d)."""
    variance_weight: float = Field(1.0, ge=0)
    distance_weight: float = Field(1.0, ge=0)
    mean_weight: float = Field(0.001, ge=0)
    """Weight of the lengths of the means."""
    piecewise: bool = True
    """False: the cost of a cell stays quadratic beyond `far`, which converged less often in the paper."""
    warmup: int = Field(0, ge=0)
    """Training passes of a worker over which the loss rises linearly to its weight."""


class CCNetSpec(ModelSpec):
    """Settings of a CCNet."""

    arch: Literal["ccnet"] = "ccnet"
    backbone: BackboneSpec = BackboneSpec(name="resnet50c", output_stride=8)
    released_dilation: bool = False
    """ResNet as released: one dilation for all blocks of a stage, max-pooling that rounds its size up."""
    channels: int = Field(512, gt=0)
    """Channels of attention and head."""
    context: Literal["criss_cross", "non_local"] = "criss_cross"
    """What attends: `non_local` is the peer of the paper's tables, attention over all pairs of positions."""
    recurrence: int = Field(2, ge=0, le=3)
    """How often attention is applied (R); 0 leaves only the two convolutions around it."""
    shared: bool = True
    """One set of weights for every time it is applied."""
    own_once: bool = True
    """Count the own position once; False: in the row and in the column."""
    activation: Literal["relu", "leaky_relu"] = "relu"
    """Behind the batch norms of the heads; the released model has leaky ReLU of slope 0.01."""
    aux_channels: int | None = Field(256, gt=0)
    """Channels of the auxiliary head, or None for no auxiliary head."""
    aux_bias: bool = False
    """A bias in the auxiliary head's 3×3 convolution (the released model)."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Probability that a channel before a classifier is zeroed in training."""
    consistency: ConsistencySpec | None = None
    """Train with the category-consistent loss."""

    @model_validator(mode="after")
    def _check_attention(self) -> Self:
        if self.recurrence < 2 and not self.shared:
            raise ValueError(f"shared = false has no effect with recurrence = {self.recurrence}")
        if (self.recurrence == 0 or self.context == "non_local") and not self.own_once:
            raise ValueError("own_once = false has no effect without criss-cross attention")
        if self.recurrence == 0 and self.context == "non_local":
            raise ValueError("context = 'non_local' has no effect with recurrence = 0")
        return self

    def build(self, num_classes: int) -> CCNet:
        """The network for `num_classes` classes.

        Raises:
            ValueError: `released_dilation` with a backbone that is no ResNet of bottlenecks.
        """
        backbone = self.backbone.build()
        if self.released_dilation:
            dilate_as_released(backbone)
        features = backbone.channels[-1]
        return CCNet(
            backbone,
            reduce=ConvNormAct(features, self.channels, kernel_size=3, act=self._act()),
            attention=self._attention(),
            post=ConvNormAct(self.channels, self.channels, kernel_size=3, act=self._act()),
            head=ClassifierHead(
                features + self.channels, self.channels, num_classes, dropout=self.dropout, act=self._act()
            ),
            aux_head=self._aux_head(backbone.channels[-2], num_classes),
            aux_consistency=self._aux_consistency(),
        )

    def _attention(self) -> Recurrence:
        blocks: list[nn.Module] = []
        for _ in range(min(self.recurrence, 1) if self.shared else self.recurrence):
            if self.context == "non_local":
                blocks.append(NonLocalAttention(self.channels))
            else:
                blocks.append(CrissCrossAttention(self.channels, masked_axes=(0,) if self.own_once else ()))
        return Recurrence(blocks, times=self.recurrence)

    def _aux_head(self, in_channels: int, num_classes: int) -> ClassifierHead | None:
        if self.aux_channels is None:
            return None
        return ClassifierHead(
            in_channels,
            self.aux_channels,
            num_classes,
            dropout=self.dropout,
            conv_bias=self.aux_bias,
            act=self._act(),
        )

    def _aux_consistency(self) -> CategoryConsistency | None:
        return None if self.consistency is None else CategoryConsistency(self.channels, settings=self.consistency)

    def _act(self) -> nn.Module:
        return nn.ReLU(inplace=True) if self.activation == "relu" else nn.LeakyReLU(0.01, inplace=True)


class CrissCrossAttention(nn.Module):
    """x_u + γ Σ softmax(query(x_u) · key(x_i)) value(x_i) over the positions i on a line with u (equations 1 and 2).

    One softmax over row and column together; γ starts at 0, so that in the first step the convolutions learn nothing.

    Args:
        channels: channels of the features.
        key_channels: channels of queries and keys; default an eighth.
        axes: 2 for maps, 3 for volumes.
        masked_axes: axes along which a position does not see itself; default all but the last, so that it is seen
            once. The released code for volumes has (0,).
    """

    def __init__(
        self,
        channels: int,
        *,
        key_channels: int | None = None,
        axes: Literal[2, 3] = 2,
        masked_axes: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__()
        conv = nn.Conv2d if axes == 2 else nn.Conv3d
        self.key_channels = key_channels or max(1, channels // 8)
        self.masked_axes = tuple(range(axes - 1)) if masked_axes is None else masked_axes
        if axes - 1 in self.masked_axes or not set(self.masked_axes) <= set(range(axes)):
            raise ValueError(f"masked_axes must be among {tuple(range(axes - 1))}, found {self.masked_axes}")
        self.query = conv(channels, self.key_channels, kernel_size=1)
        self.key = conv(channels, self.key_channels, kernel_size=1)
        self.value = conv(channels, channels, kernel_size=1)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, features: Tensor) -> Tensor:
        """(N, C, h, w), or (N, C, h, w, d) with three axes, to the same, channels last in memory."""
        tokens = features.movedim(1, -1).contiguous()
        layers = (self.query, self.key, self.value)
        weight = torch.cat([layer.weight.flatten(1) for layer in layers])  # three projections as one product
        bias = torch.cat([layer.bias for layer in layers])  # type: ignore[misc]
        projected = functional.linear(tokens, weight, bias)
        attended = criss_cross(
            tokens.to(projected.dtype),
            projected,
            self.gamma,
            key_channels=self.key_channels,
            masked_axes=self.masked_axes,
        )
        return attended.movedim(-1, 1)


class NonLocalAttention(nn.Module):
    """The same with every position seeing all others, all pairs held at once: the peer of the paper's tables.

    Wang et al.: Non-local Neural Networks, CVPR 2018, in the form of table 3: keys of an eighth, no output convolution.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        key_channels = max(1, channels // 8)
        self.query = nn.Conv2d(channels, key_channels, kernel_size=1)
        self.key = nn.Conv2d(channels, key_channels, kernel_size=1)
        self.value = nn.Conv2d(channels, channels, kernel_size=1)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, features: Tensor) -> Tensor:
        """(N, C, h, w) to the same."""
        queries, keys, values = (
            layer(features).flatten(2).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        attended = torch.softmax(queries @ keys.transpose(1, 2), dim=-1) @ values
        out: Tensor = self.gamma * attended.transpose(1, 2).reshape(features.shape) + features
        return out


class Recurrence(nn.ModuleList):
    """Attention applied several times, with the weights of one block or of one block a time (section 3.3).

    Args:
        blocks: one, as many as `times`, or none for no attention at all.
        times: R.
    """

    def __init__(self, blocks: list[nn.Module], *, times: int) -> None:
        super().__init__(blocks)
        self.times = times

    def forward(self, features: Tensor) -> Tensor:
        """(N, C, h, w) to the same."""
        for time in range(self.times):
            features = self[time % len(self)](features)
        return features


class CategoryConsistency(nn.Module):
    """A small embedding of the attended features, and the loss that makes it alike within a class."""

    passes: Tensor

    def __init__(self, in_channels: int, *, settings: ConsistencySpec) -> None:
        super().__init__()
        self.settings = settings
        self.embed = nn.Conv2d(in_channels, settings.channels, kernel_size=1)
        self.register_buffer("passes", torch.zeros((), dtype=torch.int64))

    def forward(self, features: Tensor) -> Tensor:
        """(N, C, h, w) to (N, D, h, w)."""
        if self.training:
            self.passes += 1
        embedding: Tensor = self.embed(features)
        return embedding

    def loss(self, embedding: Tensor, labels: Tensor, *, void: int) -> Tensor:
        """L_var + L_dis + L_reg with their weights, for (N, D, h, w) and labels (N, H, W)."""
        settings = self.settings
        terms = category_terms(
            embedding,
            labels_at_cells(labels, embedding.shape[-2:]),
            void=void,
            near=settings.near,
            far=settings.far,
            piecewise=settings.piecewise,
        )
        weights = (settings.variance_weight, settings.distance_weight, settings.mean_weight)
        total = torch.stack([weight * term for weight, term in zip(weights, terms, strict=True)]).sum()
        return total * (self.passes / settings.warmup).clamp_max(1) if settings.warmup else total


class CCNet(SegModel):
    """Backbone, recurrent criss-cross attention between two convolutions, head on features and attended features."""

    class_dependent: ClassVar[tuple[str, ...]] = ("head.classifier.", "aux_head.classifier.")

    def __init__(
        self,
        backbone: Backbone,
        *,
        reduce: ConvNormAct,
        attention: Recurrence,
        post: ConvNormAct,
        head: ClassifierHead,
        aux_head: ClassifierHead | None = None,
        aux_consistency: CategoryConsistency | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.reduce = reduce
        self.attention = attention
        self.post = post
        self.head = head
        self.aux_head = aux_head
        self.aux_consistency = aux_consistency
        self.num_classes = head.classifier.out_channels
        self.output_stride = backbone.strides[-1]

    def forward(self, images: Tensor) -> SemanticOutput:
        """(N, 3, H, W) images, uint8 or float in 0..255, to scores (N, K, h, w)."""
        features = self.backbone(images)
        attended = self.attention(self.reduce(features[-1]))
        logits = self.head(torch.cat([features[-1], self.post(attended)], dim=1))
        if not self.training:
            return SemanticOutput(logits)
        return SemanticOutput(
            logits,
            aux=() if self.aux_head is None else (self.aux_head(features[-2]),),
            extras={} if self.aux_consistency is None else {"embedding": self.aux_consistency(attended)},
        )

    def loss(self, output: SemanticOutput, target: SemanticTarget) -> dict[str, Tensor]:
        """`ce` of the head, weighted `consistency` and `aux_ce` of the auxiliary head, as far as there are any."""
        losses = cross_entropies(output, target)
        if self.aux_consistency is not None and "embedding" in output.extras:
            embedding = output.extras["embedding"]
            losses["consistency"] = self.aux_consistency.loss(embedding, target.labels, void=target.void)
        return losses


OFFICIAL = CCNetSpec(
    backbone=BackboneSpec(
        name="resnet101s",
        output_stride=8,
        mean=(122.67891434 / 255, 116.66876762 / 255, 104.00698793 / 255),
        std=(1 / 255, 1 / 255, 1 / 255),
    ),
    released_dilation=True,
    activation="leaky_relu",
    aux_channels=512,
    aux_bias=True,
)
RESNET101 = BackboneSpec(name="resnet101c", output_stride=8)
PRESETS: dict[str, ModelSpec] = {
    "ccnet_resnet50": CCNetSpec(),
    "ccnet_resnet50_non_local": CCNetSpec(context="non_local", recurrence=1),
    "ccnet_resnet101": CCNetSpec(backbone=RESNET101),
    "ccnet_resnet101_official": OFFICIAL,
    "ccnet_resnet101_official_r0": OFFICIAL.model_copy(update={"recurrence": 0}),
    "ccnet_resnet101_official_r1": OFFICIAL.model_copy(update={"recurrence": 1}),
    "ccnet_resnet101_official_r3": OFFICIAL.model_copy(update={"recurrence": 3}),
    "ccnet_resnet101_consistent": CCNetSpec(backbone=RESNET101, consistency=ConsistencySpec()),
    "ccnet_mobilenetv2": CCNetSpec(
        backbone=BackboneSpec(name="mobilenetv2_100", output_stride=16), channels=128, aux_channels=64
    ),
    "ccnet_efficientnet_lite0": CCNetSpec(
        backbone=BackboneSpec(name="tf_efficientnet_lite0", output_stride=16), channels=128, aux_channels=64
    ),
    "ccnet_resnet10t_narrow": CCNetSpec(
        backbone=BackboneSpec(
            name="resnet10t", output_stride=8, model_kwargs={"channels": (16, 32, 64, 128), "stem_width": 16}
        ),
        channels=32,
        aux_channels=32,
    ),
}
