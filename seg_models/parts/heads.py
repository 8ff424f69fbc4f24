"""Heads: features in, class scores out.

Shapes: N batch, C channels, K classes, h w cells.
"""

from __future__ import annotations

from torch import Tensor, nn

from seg_models.parts.layers import ConvNormAct


class ClassifierHead(nn.Module):
    """A 3×3 convolution, dropout of whole channels, and a 1×1 convolution to the classes.

    Args:
        in_channels: channels of the features.
        channels: width between the two convolutions.
        num_classes: channels of the scores.
        dropout: probability that a channel is zeroed in training.
        conv_bias: give the 3×3 convolution a bias before its batch norm (PaddleSeg does).
        act: activation between the two convolutions; default ReLU.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        num_classes: int,
        *,
        dropout: float = 0.1,
        conv_bias: bool = False,
        act: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.conv = ConvNormAct(in_channels, channels, kernel_size=3, bias=conv_bias, act=act)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(channels, num_classes, kernel_size=1)
        nn.init.normal_(self.classifier.weight, std=0.01)
        assert self.classifier.bias is not None
        nn.init.zeros_(self.classifier.bias)

    def forward(self, features: Tensor) -> Tensor:
        """(N, C, h, w) to (N, K, h, w)."""
        scores: Tensor = self.classifier(self.dropout(self.conv(features)))
        return scores


class Classifier(nn.Module):
    """Dropout of whole channels and a 1×1 convolution to the classes.

    Args:
        channels: channels of the features.
        num_classes: channels of the scores.
        dropout: probability that a channel is zeroed in training.
    """

    def __init__(self, channels: int, num_classes: int, *, dropout: float = 0.1) -> None:
        super().__init__()
        self.dropout = nn.Dropout2d(dropout)
        self.conv = nn.Conv2d(channels, num_classes, kernel_size=1)
        nn.init.normal_(self.conv.weight, std=0.01)
        assert self.conv.bias is not None
        nn.init.zeros_(self.conv.bias)

    def forward(self, features: Tensor) -> Tensor:
        """(N, C, h, w) to (N, K, h, w)."""
        scores: Tensor = self.conv(self.dropout(features))
        return scores
