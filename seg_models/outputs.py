"""What a segmentation model takes and returns.

Shapes everywhere: N batch, C channels, K classes, H W pixels, h w cells (H W over the output stride).
"""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

from torch import Tensor, nn


class SemanticOutput(NamedTuple):
    """Output of a semantic model."""

    logits: Tensor
    """(N, K, h, w) unnormalised class scores, not yet upsampled."""
    aux: tuple[Tensor, ...] = ()
    """Further logits (N, K, h', w') of auxiliary heads; empty in eval mode."""
    extras: Mapping[str, Tensor] = {}
    """What else the model's own loss compares, by name (edges, features, class scores); empty in eval mode."""


class PixelMining(Protocol):
    """Chooses the pixels that a cross-entropy learns from."""

    auxiliary: bool
    """Whether auxiliary scores choose pixels of their own, or learn from all."""

    def __call__(self, logits: Tensor, labels: Tensor, *, void: int) -> Tensor:
        """Labels (N, H, W) in which pixels that are not chosen are void, by scores (N, K, h, w)."""


class SemanticTarget(NamedTuple):
    """What a loss compares with. The LabelSpace gives `void`; the recipe gives the weights."""

    labels: Tensor
    """(N, H, W) int64 class indices, `void` where no class is known."""
    void: int
    """The index that takes part in no loss."""
    class_weights: Tensor | None = None
    """(K,) float weights of the cross-entropy, or None for equal weights."""
    mining: PixelMining | None = None
    """Which pixels the cross-entropy of class scores learns from, or None for all: `scores_cross_entropy` asks it."""


class SegModel(nn.Module, abc.ABC):
    """A network for dense prediction: uint8 images in, class scores out.

    `forward(images)` takes (N, 3, H, W) RGB images, uint8 or float in 0..255 (the backbone normalises them on
    the device), and returns a SemanticOutput.
    """

    class_dependent: ClassVar[tuple[str, ...]]
    """Prefixes of the parameter names whose shapes or meaning depend on the class list."""

    num_classes: int

    output_stride: int = 1
    """Pixels per cell of the logits: images whose sides are multiples of it align exactly with their logits."""

    @abc.abstractmethod
    def loss(self, output: SemanticOutput, target: SemanticTarget) -> dict[str, Tensor]:
        """Named scalar losses; their sum is what training minimises. Void pixels take no part."""


@runtime_checkable
class WeighsScales(Protocol):
    """A model that looks at an image at several scales and weighs them itself."""

    def predict_scales(self, images: Tensor, *, scales: Sequence[float]) -> Tensor:
        """(N, 3, H, W) images to scores (N, K, h, w) at the cells of scale 1, which is one of the scales."""
