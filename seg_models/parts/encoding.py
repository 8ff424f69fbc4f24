"""The parts of EncNet: an encoding layer, the gates it drives, and the loss of class presence.

Zhang, Dana, Shi, Zhang, Wang, Tyagi, Agrawal: Context Encoding for Semantic Segmentation, CVPR 2018, arXiv 1803.08904.

Shapes: N batch, C channels, K classes, h w cells, k codewords.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from seg_models.outputs import SemanticTarget
from seg_models.parts.layers import ConvNormAct


class Encoding(nn.Module):
    """Residuals to codewords, softly assigned and summed over all cells (section 2, "Context Encoding").

    a_ik = softmax over k of s_k·‖x_i - d_k‖² and e_k = Σ_i a_ik·(x_i - d_k). With ‖x - d‖² = ‖x‖² - 2x·d + ‖d‖² and
    e_k = Σ_i a_ik·x_i - (Σ_i a_ik)·d_k both are matrix products, and no (N, h·w, k, C) tensor is needed.

    Args:
        channels: C of the features.
        num_codes: number of codewords.
    """

    def __init__(self, channels: int, *, num_codes: int) -> None:
        super().__init__()
        bound = (num_codes * channels) ** -0.5
        self.codewords = nn.Parameter(torch.empty(num_codes, channels).uniform_(-bound, bound))
        self.scale = nn.Parameter(torch.empty(num_codes).uniform_(-1, 0))  # below zero: the nearest codeword wins

    def forward(self, features: Tensor) -> Tensor:
        """(N, C, h, w) to (N, k, C), in float32 under autocast too: squared distances overflow half precision."""
        device = "cpu" if features.is_meta else features.device.type  # the meta device has no autocast
        with torch.autocast(device, enabled=False):
            cells = features.float().flatten(2)
            codewords = self.codewords.expand(len(cells), -1, -1)
            squares = cells.square().sum(dim=1, keepdim=True) + self.codewords.square().sum(dim=1)[:, None]
            distances = squares - 2 * torch.bmm(codewords, cells)
            assigned = torch.softmax(self.scale[:, None] * distances, dim=1)
            return torch.bmm(assigned, cells.transpose(1, 2)) - assigned.sum(dim=2, keepdim=True) * codewords


class ContextEncoding(nn.Module):
    """Codewords describe the whole map; the description gates its channels (figure 2)."""

    def __init__(self, channels: int, *, num_codes: int) -> None:
        super().__init__()
        self.project = ConvNormAct(channels, channels, kernel_size=1)
        self.encoding = Encoding(channels, num_codes=num_codes)
        self.norm = nn.BatchNorm1d(num_codes)
        self.gate = nn.Linear(channels, channels)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C, h, w) to gated features of that shape and the description (N, C)."""
        encoded = functional.relu(self.norm(self.encoding(self.project(features)))).mean(dim=1)
        gates = torch.sigmoid(self.gate(encoded))[:, :, None, None]
        return functional.relu(features + features * gates), encoded


def presence_loss(scores: Tensor, target: SemanticTarget) -> Tensor:
    """Binary cross-entropy of which classes are in an image at all (the semantic encoding loss, SE loss).

    L = mean over images with any known pixel, and over classes, of BCE(sigmoid(score), class is present).

    Args:
        scores: (N, K) before the sigmoid.
        target: labels at full size, so that the smallest object counts.
    """
    num_classes = scores.shape[1]
    classes = target.labels.where(target.labels != target.void, num_classes).flatten(1)
    present = torch.zeros(len(scores), num_classes + 1, device=scores.device).scatter_(1, classes, 1.0)[:, :-1]
    known = present.any(dim=1).float()
    entropies = functional.binary_cross_entropy_with_logits(scores.float(), present, reduction="none").mean(dim=1)
    return (entropies * known).sum() / known.sum().clamp_min(1)
