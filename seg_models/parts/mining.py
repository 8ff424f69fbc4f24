"""Hard pixels only: which pixels a cross-entropy learns from, by what the network says of them already.

Shrivastava, Gupta, Girshick: Training Region-based Object Detectors with Online Hard Example Mining, CVPR 2016; per
pixel as in the code of HRNet (OhemCrossEntropy), CCNet and mmsegmentation (OHEMPixelSampler).
"""

from __future__ import annotations

from torch import Tensor

from seg_models.parts.losses import without_easy_pixels


class HardPixels:
    """The `mining` of a SemanticTarget.

    Args:
        threshold: largest probability of the own class of a pixel that is always kept.
        min_kept: pixels per image that are kept at least, the hardest of the whole batch (mmsegmentation's count).
        sample_every: look for these in every n-th pixel of every n-th row.
        auxiliary: auxiliary scores have hard pixels of their own; else they learn from all pixels.
    """

    def __init__(self, *, threshold: float, min_kept: int, sample_every: int = 1, auxiliary: bool = False) -> None:
        self.threshold, self.min_kept, self.sample_every = threshold, min_kept, sample_every
        self.auxiliary = auxiliary
        self.was_used = False
        """Whether a loss has asked: a network may have none that learns from a choice of pixels."""

    def __call__(self, logits: Tensor, labels: Tensor, *, void: int) -> Tensor:
        """Labels (N, H, W) in which the pixels that scores (N, K, h, w) tell well are void."""
        self.was_used = True
        return without_easy_pixels(
            logits,
            labels,
            void=void,
            threshold=self.threshold,
            min_kept=self.min_kept * len(labels),
            sample_every=self.sample_every,
        )
