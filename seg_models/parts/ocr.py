"""Object-contextual representations: each pixel looks at the classes, each class at its pixels.

Yuan, Chen, Chen, Wang: Segmentation Transformer: Object-Contextual Representations for Semantic Segmentation,
ECCV 2020, arXiv 1909.11065 (section 3, equations 2 to 5).

Shapes: N batch, C channels, K classes, h w cells, P = h·w, D key channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from seg_models.parts.layers import ConvNormAct


class SoftRegions(nn.Module):
    """Scores that say how strongly each cell belongs to each class: 1×1 convolution, classifier."""

    def __init__(self, in_channels: int, num_classes: int, *, conv_bias: bool = True) -> None:
        super().__init__()
        self.conv = ConvNormAct(in_channels, in_channels, kernel_size=1, bias=conv_bias)
        self.classifier = nn.Conv2d(in_channels, num_classes, kernel_size=1)
        nn.init.normal_(self.classifier.weight, std=0.01)
        assert self.classifier.bias is not None
        nn.init.zeros_(self.classifier.bias)

    def forward(self, features: Tensor) -> Tensor:
        """(N, C, h, w) to (N, K, h, w)."""
        scores: Tensor = self.classifier(self.conv(features))
        return scores


class ObjectContext(nn.Module):
    """Features augmented with the representation of the classes that each pixel resembles.

    Args:
        channels: C, of features in and out.
        key_channels: D.
        dropout: probability that an output channel is zeroed in training.
    """

    def __init__(self, channels: int, key_channels: int, *, dropout: float = 0.05) -> None:
        super().__init__()
        self.query = _two_layers(channels, key_channels)
        self.key = _two_layers(channels, key_channels)
        self.value = ConvNormAct(channels, key_channels, kernel_size=1)
        self.up = ConvNormAct(key_channels, channels, kernel_size=1)
        self.fuse = ConvNormAct(2 * channels, channels, kernel_size=1)
        self.dropout = nn.Dropout2d(dropout)

    def forward(self, features: Tensor, regions: Tensor) -> Tensor:
        """Features (N, C, h, w) and region scores (N, K, h, w) to features (N, C, h, w)."""
        objects = gather(features, regions)[..., None]  # (N, C, K, 1): the classes as a picture of one column
        query, key, value = self.query(features), self.key(objects), self.value(objects)
        context = self.up(attend(query, key=key[..., 0], value=value[..., 0]))
        augmented: Tensor = self.dropout(self.fuse(torch.cat([context, features], dim=1)))
        return augmented


def gather(features: Tensor, regions: Tensor) -> Tensor:
    """Object region representations (paper eq. 2): (N, C, h, w) and (N, K, h, w) to (N, C, K).

    Each class is the mean of the features over all cells, weighted by the softmax of its scores over the cells.
    """
    weights = torch.softmax(regions.flatten(2).float(), dim=2).to(features.dtype)
    return torch.einsum("ncp,nkp->nck", features.flatten(2), weights)


def attend(query: Tensor, *, key: Tensor, value: Tensor) -> Tensor:
    """Object contextual representations (paper eq. 3 and 4): (N, D, h, w) with (N, D, K) twice to (N, D, h, w).

    The weight of a class at a cell is the softmax over the classes of query·key/√D.
    """
    likeness = torch.einsum("ndp,ndk->npk", query.flatten(2), key) * key.shape[1] ** -0.5
    weights = torch.softmax(likeness.float(), dim=2).to(value.dtype)
    return torch.einsum("npk,ndk->ndp", weights, value).reshape(query.shape)


def _two_layers(in_channels: int, out_channels: int) -> nn.Sequential:
    first = ConvNormAct(in_channels, out_channels, kernel_size=1)
    return nn.Sequential(first, ConvNormAct(out_channels, out_channels, kernel_size=1))
