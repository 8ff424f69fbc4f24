"""MiT, the Mix Transformer: backbone of SegFormer.

Xie, Wang, Yu, Anandkumar, Alvarez, Luo: SegFormer: Simple and Efficient Design for Semantic Segmentation with
Transformers, NeurIPS 2021, arXiv 2105.15203, section 3.1 and table 6.

Four stages at strides 4, 8, 16 and 32. Each begins with an overlapping patch embedding (7×7 with stride 4, then 3×3
with stride 2) and ends in a layer norm. Keys and values of a block's attention come from a map reduced by a strided
convolution, and a depthwise 3×3 convolution between the two layers of the feed-forward part takes the place of position
codes.

Modules are named as in the released checkpoints (patch_embed1, block1.0.attn.q, norm1 …): `weights` takes such a file
as it is. Layer norms have eps 1e-6 in blocks and behind stages, 1e-5 behind convolutions, as in the released code.

Deviation: a map smaller than the reduction is padded with zeros to one cell of it, so that any image size works.

Shapes: N batch, C channels, h w cells, d channels of an attention head; maps are (N, h, w, C) inside.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from timm.layers import DropPath
from timm.models import FeatureInfo
from torch import Tensor, nn
from torch.nn import functional

EPS = 1e-6


class MixTransformer(nn.Module):
    """Images to four maps, fine to coarse.

    Args:
        widths: channels of each stage.
        depths: blocks of each stage.
        heads: attention heads of each stage.
        reductions: cells of a stage, a side, that become one key.
        expansion: hidden channels of the feed-forward part, as a multiple of the width.
        drop_path_rate: probability that the last block is skipped in training; it grows linearly from 0.

    Attributes:
        feature_info: channels and strides of the levels, as timm's feature networks tell them.
    """

    def __init__(
        self,
        *,
        widths: Sequence[int],
        depths: Sequence[int],
        heads: Sequence[int] = (1, 2, 5, 8),
        reductions: Sequence[int] = (8, 4, 2, 1),
        expansion: int = 4,
        drop_path_rate: float = 0.1,
    ) -> None:
        super().__init__()
        rates = iter(drop_path_rates(drop_path_rate, num_blocks=sum(depths)))
        sources = (3, *widths)
        self.num_stages = len(widths)
        for i, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            blocks = [
                Block(width, num_heads=heads[i], reduction=reductions[i], expansion=expansion, drop_path=next(rates))
                for _ in range(depth)
            ]
            self.add_module(f"patch_embed{i + 1}", PatchEmbedding(sources[i], width, stride=4 if i == 0 else 2))
            self.add_module(f"block{i + 1}", nn.Sequential(*blocks))
            self.add_module(f"norm{i + 1}", nn.LayerNorm(width, eps=EPS))
        levels = [{"num_chs": width, "reduction": 4 * 2**i, "module": f"norm{i + 1}"} for i, width in enumerate(widths)]
        self.feature_info = FeatureInfo(levels, out_indices=tuple(range(len(levels))))
        self.pretrained_cfg: Mapping[str, object] = {}  # ImageNet's mean and deviation
        self.apply(_initialise)

    def forward(self, images: Tensor) -> list[Tensor]:
        """(N, 3, H, W) normalised images to one (N, C, h, w) per stage, rounded up at sides that do not divide."""
        features, x = [], images
        for stage in range(1, self.num_stages + 1):
            for part in ("patch_embed", "block", "norm"):
                x = self.get_submodule(f"{part}{stage}")(x)
            x = x.permute(0, 3, 1, 2)
            features.append(x)
        return features


class PatchEmbedding(nn.Module):
    """A strided convolution whose patches overlap, and a layer norm (paper section 3.1, overlapped patch merging)."""

    def __init__(self, in_channels: int, width: int, *, stride: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, width, kernel_size=2 * stride - 1, stride=stride, padding=stride - 1)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, h, w, width)."""
        cells: Tensor = self.norm(self.proj(x).permute(0, 2, 3, 1))
        return cells


class Block(nn.Module):
    """Attention and feed-forward part, each on a normed map and added to it."""

    def __init__(self, width: int, *, num_heads: int, reduction: int, expansion: int, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=EPS)
        self.attn = EfficientAttention(width, num_heads=num_heads, reduction=reduction)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.norm2 = nn.LayerNorm(width, eps=EPS)
        self.mlp = MixFeedForward(width, hidden=expansion * width)

    def forward(self, x: Tensor) -> Tensor:
        """(N, h, w, C) to the same shape."""
        x = x + self.drop_path(self.attn(self.norm1(x)))
        x = x + self.drop_path(self.mlp(self.norm2(x)))
        return x


class EfficientAttention(nn.Module):
    """Multi-head attention of all cells to the cells of a smaller map (paper equations 1 and 2).

    The paper reduces by reshaping and a linear layer; a convolution with equal kernel and stride is the same.
    """

    def __init__(self, width: int, *, num_heads: int, reduction: int) -> None:
        super().__init__()
        if width % num_heads:
            raise ValueError(f"width {width} must be a multiple of num_heads {num_heads}")
        self.num_heads = num_heads
        self.reduction = reduction
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        self.sr = nn.Conv2d(width, width, reduction, stride=reduction) if reduction > 1 else None
        self.norm = nn.LayerNorm(width) if reduction > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        """(N, h, w, C) to the same shape."""
        keys, values = self.kv(self._reduced(x)).chunk(2, dim=-1)
        queries, keys, values = (self._split(part) for part in (self.q(x), keys, values))
        mixed = functional.scaled_dot_product_attention(queries, keys, values)
        out: Tensor = self.proj(mixed.transpose(1, 2).reshape(x.shape))
        return out

    def _split(self, x: Tensor) -> Tensor:
        """(N, h, w, C) to (N, heads, h·w, d); the last axis stays contiguous, which fused attention needs."""
        heads: Tensor = x.flatten(1, 2).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        return heads

    def _reduced(self, x: Tensor) -> Tensor:
        if self.sr is None or self.norm is None:
            return x
        missing = [max(0, self.reduction - side) for side in x.shape[1:3]]
        if any(missing):
            x = functional.pad(x, (0, 0, 0, missing[1], 0, missing[0]))
        reduced: Tensor = self.norm(self.sr(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        return reduced


class MixFeedForward(nn.Module):
    """Two linear layers with a depthwise 3×3 convolution between them (paper equation 3)."""

    def __init__(self, width: int, *, hidden: int) -> None:
        super().__init__()
        conv = nn.Conv2d(hidden, hidden, kernel_size=3, padding=1, groups=hidden)
        self.fc1 = nn.Linear(width, hidden)
        self.dwconv = nn.Sequential(OrderedDict(dwconv=conv))  # released name: mlp.dwconv.dwconv
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(N, h, w, C) to the same shape."""
        hidden = self.dwconv(self.fc1(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        out: Tensor = self.fc2(functional.gelu(hidden))
        return out


def drop_path_rates(last: float, *, num_blocks: int) -> list[float]:
    """The probability of each block to be skipped, growing linearly from 0 to `last`."""
    return [last * i / max(1, num_blocks - 1) for i in range(num_blocks)]


def _initialise(module: nn.Module) -> None:
    """Linear layers: truncated normal of deviation 0.02; convolutions: He's by fan-out; biases zero."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
    elif isinstance(module, nn.Conv2d):
        fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
    else:
        return
    assert module.bias is not None
    nn.init.zeros_(module.bias)


def _mit(depths: Sequence[int], widths: Sequence[int] = (64, 128, 320, 512)) -> Callable[..., nn.Module]:
    return partial(MixTransformer, depths=depths, widths=widths)


MIT: dict[str, Callable[..., nn.Module]] = {
    "mit_b0": _mit((2, 2, 2, 2), widths=(32, 64, 160, 256)),
    "mit_b1": _mit((2, 2, 2, 2)),
    "mit_b2": _mit((3, 4, 6, 3)),
    "mit_b3": _mit((3, 4, 18, 3)),
    "mit_b4": _mit((3, 8, 27, 3)),
    "mit_b5": _mit((3, 6, 40, 3)),
}
"""Name -> constructor; its arguments may be replaced (`BackboneSpec.model_kwargs`)."""
