"""Features that are alike within a class and apart between classes.

Shapes: N batch, C classes in the batch, D channels of the embedding, H W pixels, h w cells, P cells of all images.
"""

from __future__ import annotations

import torch
from torch import Tensor


def category_terms(
    embedding: Tensor, labels: Tensor, *, void: int, near: float, far: float, piecewise: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """Variance, distance and length terms of the category-consistent loss (TPAMI, equations of section 3.4).

    With the cells i of class c, their number N_c and mean μ_c, over the classes C of the batch:
    L_var = 1/|C| Σ_c 1/N_c Σ_i φ(‖μ_c - h_i‖), L_dis = mean over pairs of max(0, 2·far - ‖μ_a - μ_b‖)²,
    L_reg = 1/|C| Σ_c ‖μ_c‖. φ is 0 up to `near`, (d - near)² up to `far` and d - far + (far - near)² beyond.

    Args:
        embedding: (N, D, h, w) the h_i.
        labels: (N, h, w) class indices, or `void`.
        void: the label that takes part in nothing.
        near: δ_v.
        far: δ_d.
        piecewise: False for (d - near)² beyond `far` too.

    Returns:
        Three float32 scalars; 0 where there is no class, or no second one.
    """
    with torch.autocast(embedding.device.type, enabled=False):
        cells = embedding.float().movedim(1, -1).flatten(0, 2)
        present = labels[labels != void].unique()
        members = (labels.reshape(-1, 1) == present).float()  # (P, |C|): products instead of scattering, so that
        counts, num_classes = members.sum(dim=0), max(1, len(present))  # the gradient is the same in every run
        means = members.t() @ cells / counts[:, None]
        distances = torch.linalg.vector_norm(members @ means - cells, dim=1)
        costs = (distances - near).clamp_min(0).square()
        if piecewise:
            costs = costs.where(distances <= far, distances - far + (far - near) ** 2)
        variance = (members.t() @ costs / counts).sum() / num_classes
        lengths = torch.linalg.vector_norm(means, dim=1).sum() / num_classes
        gaps = torch.linalg.vector_norm(means[:, None] - means, dim=2)
        pairs = max(1, len(present) * (len(present) - 1) // 2)
        distance = (2 * far - gaps).clamp_min(0).square().triu(diagonal=1).sum() / pairs
        return variance, distance, lengths


def labels_at_cells(labels: Tensor, size: torch.Size) -> Tensor:
    """Labels (N, H, W) of the pixels at the centres of (h, w) cells."""
    rows, columns = (
        ((torch.arange(cells, device=labels.device) + 0.5) * (pixels / cells)).long()
        for cells, pixels in zip(size, labels.shape[1:], strict=True)
    )
    return labels[:, rows[:, None], columns]
