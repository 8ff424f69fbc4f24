"""VT-FPN: a feature pyramid whose levels exchange a few visual tokens, a peer in CFT's table 1.

Wu, Xu, Dai, Wan, Zhang, Yan, Tomizuka, Gonzalez, Keutzer, Vajda: Visual Transformers: Where Do Transformers Really
Belong in Vision Models?, ICCV 2021, arXiv 2006.03677, section 4 and figure 4; equations by the numbers of ICCV's text.

Each of four levels, brought to one width, is summed up in eight tokens. One transformer relates the tokens of all
levels; then every cell of a level asks the tokens of its level what to add to it. No level is enlarged on the way and
no 3×3 convolution follows, which is where the paper saves 6.5 times the multiply-adds of a feature pyramid. SemFPN's
doublings and sum make the scores.

Deviations:
- Tokens are wider than cells (1024 and 256 channels), so that a matrix leads from cells to tokens, and one from tokens
  to what is added, as in the pseudo-code of the paper's appendix; the equations have one width for both.
- Energies are divided by the root of their width, as in that pseudo-code; equations 3 and 5 do not say.
- Equation 5 is (X·W_Q)·(T·W_K)ᵀ; here it is X·(T·W_K·W_Qᵀ)ᵀ, which is equal and spares a product per cell. The
  pseudo-code splits W_Q into 16 groups, each a head, and the transformer's matrices into 8, and adds W_V to equation 1.

Shapes: N batch, C channels of a level, D of tokens, L tokens of a level, T of all, h w cells.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from seg_models.backbones.timm_backbone import BackboneSpec
from seg_models.parts.heads import Classifier
from seg_models.parts.pyramid import ScaleHeads
from seg_models.parts.pyramid_net import NUM_LEVELS, PyramidNet
from seg_models.parts.tokens import full_precision
from seg_models.spec import ModelSpec


class VTFPNSpec(ModelSpec):
    """Settings of a VT-FPN."""

    arch: Literal["vtfpn"] = "vtfpn"
    backbone: BackboneSpec = BackboneSpec(name="resnet50c")
    width: int = Field(256, gt=0)
    """Channels of every level of the pyramid."""
    num_tokens: int = Field(8, gt=0)
    """Tokens of each level."""
    token_channels: int = Field(1024, gt=0)
    """Channels of a token."""
    head_channels: int = Field(128, gt=0)
    """Channels of the sum over levels."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Probability that a channel before the classifier is zeroed in training."""

    def build(self, num_classes: int) -> VTFPN:
        """The network for `num_classes` classes."""
        backbone = self.backbone.build()
        channels = backbone.channels[-NUM_LEVELS:]
        return VTFPN(
            backbone,
            pyramid=TokenPyramid(
                laterals=[nn.Conv2d(level, self.width, kernel_size=1) for level in channels],
                tokenizers=[Tokenizer(self.width, self.token_channels, num_tokens=self.num_tokens) for _ in channels],
                transformer=TokenTransformer(self.token_channels),
                projectors=[Projector(self.width, self.token_channels) for _ in channels],
            ),
            head=ScaleHeads(self.width, self.head_channels, strides=backbone.strides[-NUM_LEVELS:]),
            classifier=Classifier(self.head_channels, num_classes, dropout=self.dropout),
        )


class Tokenizer(nn.Module):
    """A map summed up in a few tokens, each the mean of the cells under a mask of its own (equation 1).

    Args:
        channels: channels of the map.
        token_channels: channels of a token.
        num_tokens: number of tokens.
    """

    def __init__(self, channels: int, token_channels: int, *, num_tokens: int) -> None:
        super().__init__()
        self.masks = nn.Conv2d(channels, num_tokens, kernel_size=1, bias=False)
        self.widen = nn.Linear(channels, token_channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) to (N, L, D): softmax over the positions of X·W_A, transposed, times X."""
        masks = self.masks(x)
        with full_precision(x.device):
            share = masks.flatten(2).float().softmax(dim=-1)
            means = share @ x.flatten(2).transpose(1, 2).float()
        tokens: Tensor = self.widen(means.to(x.dtype))
        return tokens


class TokenTransformer(nn.Module):
    """Tokens told of one another: attention whose values are the tokens, then two layers (equations 3 and 4)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.keys, self.queries, self.hidden, self.project = (
            nn.Linear(channels, channels, bias=False) for _ in range(4)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """(N, T, D) to the same shape: T' = T + softmax(TK·(TQ)ᵀ)·T, then T' + ReLU(T'·F1)·F2."""
        energies: Tensor = self.keys(tokens) @ self.queries(tokens).transpose(1, 2) / math.sqrt(tokens.shape[-1])
        tokens = tokens + energies.float().softmax(dim=-1).to(tokens.dtype) @ tokens
        out: Tensor = tokens + self.project(torch.relu(self.hidden(tokens)))
        return out


class Projector(nn.Module):
    """What tokens say, added to every cell in the measure in which the cell asks for it (equation 5)."""

    def __init__(self, channels: int, token_channels: int) -> None:
        super().__init__()
        self.queries = nn.Linear(channels, channels, bias=False)
        self.keys = nn.Linear(token_channels, channels, bias=False)
        self.values = nn.Linear(token_channels, channels, bias=False)

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        """Map (N, C, h, w) and tokens (N, L, D) to a map of the same shape."""
        asked = self.keys(tokens) @ self.queries.weight  # (N, L, C): far fewer tokens than cells
        energies = asked @ x.flatten(2) / math.sqrt(x.shape[1])
        share = energies.float().softmax(dim=1).to(x.dtype)  # over tokens
        said = self.values(tokens).transpose(1, 2) @ share
        out: Tensor = x + said.unflatten(2, x.shape[-2:])
        return out


class TokenPyramid(nn.Module):
    """Levels of one width that exchange their tokens (figure 4)."""

    def __init__(
        self,
        *,
        laterals: Sequence[nn.Conv2d],
        tokenizers: Sequence[Tokenizer],
        transformer: TokenTransformer,
        projectors: Sequence[Projector],
    ) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(laterals)
        self.tokenizers = nn.ModuleList(tokenizers)
        self.transformer = transformer
        self.projectors = nn.ModuleList(projectors)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """One (N, C, h, w) per level, fine to coarse, to as many (N, width, h, w)."""
        levels = [lateral(level) for lateral, level in zip(self.laterals, features, strict=True)]
        tokens = torch.cat([tokenize(level) for tokenize, level in zip(self.tokenizers, levels, strict=True)], dim=1)
        own = self.transformer(tokens).chunk(len(levels), dim=1)
        return [project(level, some) for project, level, some in zip(self.projectors, levels, own, strict=True)]


class VTFPN(PyramidNet):
    """A pyramid whose levels exchange what they hold by visual tokens."""


PRESETS: dict[str, ModelSpec] = {
    "vtfpn_resnet50": VTFPNSpec(),
    "vtfpn_resnet101": VTFPNSpec(backbone=BackboneSpec(name="resnet101c")),
    "vtfpn_mit_b2": VTFPNSpec(backbone=BackboneSpec(name="mit_b2")),
    "vtfpn_efficientnet_lite0": VTFPNSpec(
        backbone=BackboneSpec(name="tf_efficientnet_lite0"), width=64, token_channels=128, head_channels=64
    ),
}
