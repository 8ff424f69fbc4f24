"""CFT: category feature transformer.

Tang, Liu, Liu, Liu, Jiang, Zhang, Han, Wang: Category Feature Transformer for Semantic Segmentation, 2023,
arXiv 2308.05581.

A feature pyramid whose levels are merged by attention in place of addition. Going from coarse to fine, the coarser map
is summed up in one feature per class, the mean of its cells under that class's mask (a softmax over positions). Every
cell of the finer map then asks these features (a softmax over classes), so that the cost grows with cells × classes and
not with cells × cells, and no map is upsampled on the way. The masks are trained to be those of the classes.

Deviations, each a setting where it matters (specs: CFT section 4):
- Attention is softmax(q·k); the authors' code has softmax(max − q·k): `negate_energy`. Negating the half of `kv` that
  makes keys turns one into the other.
- Void pixels take no part in the mask losses; in the authors' code they count as pixels of other classes:
  `mask_loss.count_void_as_negative`.
- The losses of the masks are averaged over the masks of all images, as in the authors' code.
- Swin gives its stages' outputs without the layer norms that mmsegmentation lays behind them.

Ablations of the paper's table 2: `attend_to` and `ffn_ratio`; the rows that the sheet counts besides: `fusion`,
`fusion_kernel`, `level_convs`.

Shapes: N batch, C channels, K classes, H W pixels, h w cells, D width, d = D / heads, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from seg_models.backbones.timm_backbone import Backbone, BackboneSpec
from seg_models.outputs import SegModel, SemanticOutput, SemanticTarget
from seg_models.parts.context import projected_aspp
from seg_models.parts.heads import Classifier
from seg_models.parts.layers import ConvNormAct
from seg_models.parts.losses import cross_entropies
from seg_models.parts.mask_losses import MaskLossSpec, weighted_mask_losses
from seg_models.parts.pyramid import ScaleHeads
from seg_models.parts.resample import upsample_to
from seg_models.parts.tokens import CategoryTokens, CellTokens, GridTokens, WindowTokens, full_precision
from seg_models.spec import ModelSpec

NUM_LEVELS = 4
DEFAULT_POOL = 12


class CFTSpec(ModelSpec):
    """Settings of a CFT."""

    arch: Literal["cft"] = "cft"
    backbone: BackboneSpec = BackboneSpec(name="resnet50c")
    width: int = Field(256, gt=0)
    """Channels of every level of the pyramid."""
    num_heads: int = Field(4, gt=0)
    """Heads of the attention, and groups of the convolutions before masks and category features."""
    ffn_ratio: int = Field(4, ge=0)
    """Hidden channels of the feed-forward part, as a multiple of the width; 0 leaves it out."""
    context: Literal["identity", "aspp"] = "identity"
    """What the coarsest level passes before it is attended to."""
    attend_to: Literal["categories", "cells", "pooled"] = "categories"
    """What finer cells attend to: category features, every coarser cell (naive), or averages of cells. Only category
    features have masks and their losses."""
    pool_cells: int | None = Field(None, gt=0)
    """Side of the grid of averages (`attend_to = "pooled"`); default 12."""
    pool_window: int | None = Field(None, gt=0)
    """Average over windows of this many cells a side instead of a grid of fixed size."""
    fusion: Literal["concat", "sum"] = "concat"
    """Levels side by side and one convolution, or SemFPN's doublings and sum."""
    fusion_channels: int = Field(256, gt=0)
    """Channels before the classifier."""
    fusion_kernel: Literal[1, 3] = 3
    """Side of the convolution over the levels side by side."""
    level_convs: bool = True
    """A 3×3 convolution on each merged level before the fusion."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Probability that a channel before the classifier is zeroed in training."""
    mask_loss: MaskLossSpec | None = MaskLossSpec()
    """What the masks are compared by, or None for masks without a loss of their own (table 3)."""
    negate_energy: bool = False
    """Attend by softmax(max − q·k), the form of the authors' code."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.width % self.num_heads:
            raise ValueError(f"width = {self.width} must be a multiple of num_heads = {self.num_heads}")
        pools = [name for name in ("pool_cells", "pool_window") if getattr(self, name) is not None]
        if pools and self.attend_to != "pooled":
            raise ValueError(f"`{pools[0]}` takes effect with attend_to = 'pooled', found {self.attend_to!r}")
        if len(pools) == 2:
            raise ValueError("set either `pool_cells` or `pool_window`, not both")
        if self.fusion == "sum" and self.fusion_kernel != 3:
            raise ValueError("`fusion_kernel` takes effect with fusion = 'concat', found 'sum'")
        if self.mask_loss != MaskLossSpec() and self.attend_to != "categories":
            raise ValueError(f"`mask_loss` takes effect with attend_to = 'categories', found {self.attend_to!r}")
        return self

    def build(self, num_classes: int) -> CFT:
        """The network for `num_classes` classes."""
        backbone = self.backbone.build()
        channels, strides = backbone.channels[-NUM_LEVELS:], backbone.strides[-NUM_LEVELS:]
        return CFT(
            backbone,
            laterals=[nn.Conv2d(level, self.width, kernel_size=1) for level in channels],
            context=self._context(),
            blocks=[self._block(num_classes) for _ in channels[1:]],
            level_convs=[self._level_conv() for _ in channels[1:]],
            fusion=self._fusion(strides),
            classifier=Classifier(self.fusion_channels, num_classes, dropout=self.dropout),
            mask_loss=self.mask_loss,
        )

    def _context(self) -> nn.Module:
        if self.context == "identity":
            return nn.Identity()
        return projected_aspp(self.width, self.width, dilations=(6, 12, 18), dropout=self.dropout)

    def _block(self, num_classes: int) -> CFTBlock:
        return CFTBlock(
            self.width,
            tokens=self._tokens(num_classes),
            attention=TokenAttention(self.width, num_heads=self.num_heads, negate_energy=self.negate_energy),
            ffn=FeedForward(self.width, hidden=self.ffn_ratio * self.width) if self.ffn_ratio else None,
        )

    def _tokens(self, num_classes: int) -> nn.Module:
        if self.attend_to == "categories":
            return CategoryTokens(self.width, num_classes=num_classes, groups=self.num_heads)
        if self.attend_to == "cells":
            return CellTokens()
        if self.pool_window is not None:
            return WindowTokens(self.pool_window)
        return GridTokens(self.pool_cells or DEFAULT_POOL)

    def _level_conv(self) -> nn.Module:
        return nn.Conv2d(self.width, self.width, kernel_size=3, padding=1) if self.level_convs else nn.Identity()

    def _fusion(self, strides: Sequence[int]) -> nn.Module:
        if self.fusion == "sum":
            return ScaleHeads(self.width, self.fusion_channels, strides=strides)
        return ConcatFusion(len(strides) * self.width, self.fusion_channels, kernel_size=self.fusion_kernel)


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of a map."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) to the same shape."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class TokenAttention(nn.Module):
    """Category feature transformation: every cell of a map attends to the tokens of a coarser one.

    Args:
        width: channels of map and tokens.
        num_heads: heads of width / num_heads channels.
        negate_energy: softmax over max − q·k.
    """

    def __init__(self, width: int, *, num_heads: int, negate_energy: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.negate_energy = negate_energy
        self.depthwise = nn.Conv2d(width, width, kernel_size=3, padding=1, groups=width)
        self.pointwise = nn.Conv2d(width, width, kernel_size=1)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Conv2d(width, width, kernel_size=1)
        nn.init.trunc_normal_(self.kv.weight, std=0.02)
        nn.init.zeros_(self.kv.bias)

    def forward(self, low: Tensor, tokens: Tensor) -> Tensor:
        """Map (N, D, h, w) and tokens (N, T, D) to a map (N, D, h, w)."""
        queries = self.pointwise(self.depthwise(low)).flatten(2).transpose(1, 2).contiguous()
        keys, values = self.kv(tokens).chunk(2, dim=-1)
        with full_precision(low.device):
            queries, keys, values = (self._split(part.float()) for part in (queries, keys, values))
            if self.negate_energy:
                keys = -keys
            mixed = functional.scaled_dot_product_attention(queries, keys, values)
        mixed = mixed.transpose(1, 2).flatten(2).transpose(1, 2)
        out: Tensor = self.proj(mixed.unflatten(2, low.shape[-2:]).to(low.dtype))
        return out

    def _split(self, x: Tensor) -> Tensor:
        """(N, T, D) to (N, heads, T, d); the last axis stays contiguous, which fused attention needs."""
        heads: Tensor = x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        return heads


class FeedForward(nn.Module):
    """Normed map through 1×1, depthwise 3×3, GELU, 1×1 (SegFormer's feed-forward part)."""

    def __init__(self, width: int, *, hidden: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(width)
        self.expand = nn.Conv2d(width, hidden, kernel_size=1)
        self.depthwise = nn.Conv2d(hidden, hidden, kernel_size=3, padding=1, groups=hidden)
        self.project = nn.Conv2d(hidden, width, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, D, h, w) to the same shape."""
        out: Tensor = self.project(functional.gelu(self.depthwise(self.expand(self.norm(x)))))
        return out


class CFTBlock(nn.Module):
    """A finer level takes in a coarser one; the size is that of the finer."""

    def __init__(self, width: int, *, tokens: nn.Module, attention: TokenAttention, ffn: FeedForward | None) -> None:
        super().__init__()
        self.norm_low = ChannelNorm(width)
        self.norm_high = ChannelNorm(width)
        self.tokens = tokens
        self.attention = attention
        self.ffn = ffn

    def forward(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor | None]:
        """Finer (N, D, h, w) and coarser (N, D, h', w') to (N, D, h, w) and mask scores (N, K, h', w') or None."""
        tokens, masks = self.tokens(self.norm_high(high))
        x = low + self.attention(self.norm_low(low), tokens)
        return (x if self.ffn is None else x + self.ffn(x)), masks


class ConcatFusion(nn.Module):
    """Levels enlarged to the finest, side by side with the coarsest first, and one convolution."""

    def __init__(self, in_channels: int, channels: int, *, kernel_size: int) -> None:
        super().__init__()
        self.conv = ConvNormAct(in_channels, channels, kernel_size=kernel_size)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """One (N, D, h, w) per level, fine to coarse, to (N, C, h, w) of the finest."""
        size = levels[0].shape[-2:]
        fused: Tensor = self.conv(torch.cat([upsample_to(level, size) for level in reversed(levels)], dim=1))
        return fused


class CFT(SegModel):
    """Backbone, laterals, a chain of blocks from coarse to fine, fusion, classifier."""

    class_dependent: ClassVar[tuple[str, ...]] = (
        "classifier.conv.",
        *(f"blocks.{i}.tokens.masks." for i in range(NUM_LEVELS - 1)),
    )

    def __init__(
        self,
        backbone: Backbone,
        *,
        laterals: Sequence[nn.Module],
        context: nn.Module,
        blocks: Sequence[CFTBlock],
        level_convs: Sequence[nn.Module],
        fusion: nn.Module,
        classifier: Classifier,
        mask_loss: MaskLossSpec | None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.laterals = nn.ModuleList(laterals)
        self.context = context
        self.blocks = nn.ModuleList(blocks)
        self.level_convs = nn.ModuleList(level_convs)
        self.fusion = fusion
        self.classifier = classifier
        self.mask_loss = mask_loss
        self.num_classes = classifier.conv.out_channels
        self.output_stride = backbone.strides[-len(laterals)]

    def forward(self, images: Tensor) -> SemanticOutput:
        """(N, 3, H, W) images, uint8 or float in 0..255, to scores (N, K, h, w) of the finest level."""
        features = self.backbone(images)[-len(self.laterals) :]
        *lows, high = [lateral(level) for lateral, level in zip(self.laterals, features, strict=True)]
        high = self.context(high)
        levels, masks = [high], {}
        for i in reversed(range(len(lows))):
            high, mask = self.blocks[i](lows[i], high)
            levels.insert(0, self.level_convs[i](high))
            if mask is not None and self.training and self.mask_loss is not None:
                masks[f"masks_{i}"] = mask.view_as(mask)  # of its own: its gradient is that of the loss alone
        return SemanticOutput(self.classifier(self.fusion(levels)), extras=masks)

    def loss(self, output: SemanticOutput, target: SemanticTarget) -> dict[str, Tensor]:
        """`ce` of the scores and, in training, `focal_masks` and `dice_masks` of the summed masks, weighted."""
        losses = cross_entropies(output, target)
        if output.extras and self.mask_loss is not None:
            losses |= weighted_mask_losses(tuple(output.extras.values()), target, self.mask_loss)
        return losses


SWIN = {"dynamic_img_size": True, "always_partition": True}
"""timm's arguments for images of any size."""


def _mit(name: str, **changes: Any) -> CFTSpec:
    return CFTSpec(backbone=BackboneSpec(name=name), **changes)


def _swin(name: str) -> CFTSpec:
    return CFTSpec(backbone=BackboneSpec(name=name, model_kwargs=SWIN))


PRESETS: dict[str, ModelSpec] = {
    "cft_resnet50": CFTSpec(),
    "cft_resnet101": CFTSpec(backbone=BackboneSpec(name="resnet101c")),
    "cft_resnet101_no_mask_loss": CFTSpec(backbone=BackboneSpec(name="resnet101c"), mask_loss=None),
    **{f"cft_mit_b{i}": _mit(f"mit_b{i}") for i in range(6)},
    "cft_swin_tiny": _swin("swin_tiny_patch4_window7_224"),
    "cft_swin_small": _swin("swin_small_patch4_window7_224"),
    "cft_swin_base": _swin("swin_base_patch4_window12_384"),
    "cft_swin_large": _swin("swin_large_patch4_window12_384"),
    "cft_mit_b2_no_ffn": _mit("mit_b2", ffn_ratio=0),
    "cft_mit_b2_naive": _mit("mit_b2", attend_to="cells"),
    "cft_mit_b2_naive_no_ffn": _mit("mit_b2", attend_to="cells", ffn_ratio=0),
    "cft_mit_b2_pooled": _mit("mit_b2", attend_to="pooled"),
    "cft_mit_b2_pooled_no_ffn": _mit("mit_b2", attend_to="pooled", ffn_ratio=0),
    "cft_mit_b2_pooled_2x2": _mit("mit_b2", attend_to="pooled", pool_cells=2),
    "cft_mit_b2_pooled_2x2_no_ffn": _mit("mit_b2", attend_to="pooled", pool_cells=2, ffn_ratio=0),
    "cft_mit_b2_sum": _mit("mit_b2", fusion="sum"),
    "cft_mit_b2_sum128": _mit("mit_b2", fusion="sum", fusion_channels=128),
    "cft_mit_b2_light": _mit("mit_b2", fusion_kernel=1, level_convs=False),
    "cft_efficientnet_lite0": CFTSpec(
        backbone=BackboneSpec(name="tf_efficientnet_lite0"), width=64, ffn_ratio=2, fusion_channels=64
    ),
}
