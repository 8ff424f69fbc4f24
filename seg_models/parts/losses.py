"""Cross-entropy of upsampled class scores that never holds the upsampled scores.

A (1001, 256, 256) map of PSSL takes 262 MB per image in float32, and its gradient as much again. Here the scores are
upsampled, compared and turned into their gradient strip by strip inside the forward pass; only the gradient at the
size of the cells is kept.

Shapes: N batch, K classes, h w cells, H W pixels of the label, r rows of a strip.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from seg_models.outputs import SemanticOutput, SemanticTarget
from seg_models.parts.resample import bilinear_matrix, near_inputs, resample, rows_per_strip, strips


def upsampled_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    void: int,
    class_weights: Tensor | None = None,
    max_elements: int | None = None,
) -> Tensor:
    """Weighted mean cross-entropy of bilinearly upsampled scores (align_corners=False).

    L = Σ w[label]·(−log softmax(score)[label]) / Σ w[label] over the pixels that are not void (specs: PSSL section 6).
    Void pixels have no gradient; a batch of only void has loss 0 and gradient 0. Under data-parallel training the
    mean is over the pixels of the rank.

    Args:
        logits: (N, K, h, w) scores of any float type.
        labels: (N, H, W) int64 class indices, or `void`.
        void: the label that takes part in nothing.
        class_weights: (K,) weights w, default 1.
        max_elements: largest K·r·W of a strip; default by device.

    Returns:
        A float32 scalar.

    Raises:
        ValueError: shapes that do not belong together.
    """
    if labels.dim() != 3 or logits.dim() != 4 or labels.shape[0] != logits.shape[0]:
        raise ValueError(
            f"logits must be (N, K, h, w) and labels (N, H, W), found {tuple(logits.shape)} and {tuple(labels.shape)}"
        )
    weights = torch.ones(logits.shape[1]) if class_weights is None else class_weights
    if weights.shape != logits.shape[1:2]:
        raise ValueError(f"{weights.numel()} class weights for {logits.shape[1]} classes")
    weights = weights.to(device=logits.device, dtype=torch.float32)
    with torch.autocast(logits.device.type, enabled=False):
        loss: Tensor = _UpsampledCrossEntropy.apply(  # type: ignore[no-untyped-call]
            logits, labels, void, weights, max_elements
        )
    return loss


def scores_cross_entropy(logits: Tensor, target: SemanticTarget, *, auxiliary: bool = False) -> Tensor:
    """The upsampled cross-entropy of class scores (N, K, h, w) over the pixels that the target chooses for them."""
    labels = chosen_labels(logits, target, auxiliary=auxiliary)
    return upsampled_cross_entropy(logits, labels, void=target.void, class_weights=target.class_weights)


def chosen_labels(logits: Tensor, target: SemanticTarget, *, auxiliary: bool = False) -> Tensor:
    """The labels (N, H, W) that class scores learn from: where hard pixels are mined, the others are void."""
    if target.mining is None or (auxiliary and not target.mining.auxiliary):
        return target.labels
    return target.mining(logits, target.labels, void=target.void)


def cross_entropies(output: SemanticOutput, target: SemanticTarget) -> dict[str, Tensor]:
    """`ce` of the scores and, where an auxiliary head gave scores too, `aux_ce` of those, both unweighted."""
    losses = {"ce": scores_cross_entropy(output.logits, target)}
    if output.aux:
        losses["aux_ce"] = scores_cross_entropy(output.aux[0], target, auxiliary=True)
    return losses


class _UpsampledCrossEntropy(torch.autograd.Function):
    """Loss and gradient in one pass over strips."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, labels: Tensor, void: int, weights: Tensor, max_elements: int | None
    ) -> Tensor:
        loss, total, gradient = _sums_over_strips(
            logits, labels, void=void, weights=weights, with_gradient=ctx.needs_input_grad[0], max_elements=max_elements
        )
        scale = torch.where(total > 0, 1 / total, torch.zeros_like(total))
        if gradient is not None:
            ctx.save_for_backward(gradient.mul_(scale))
            ctx.dtype = logits.dtype
        return loss * scale

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        # Rounded only now: without the scale of the loss a share of a pixel is too small for float16.
        return (gradient * grad_loss).to(ctx.dtype), None, None, None, None


def _sums_over_strips(
    logits: Tensor, labels: Tensor, *, void: int, weights: Tensor, with_gradient: bool, max_elements: int | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Σ w·nll over all pixels, Σ w, and the gradient of the first (N, K, h, w) in float32 or None.

    Classes and weights of pixels are made strip by strip too: for a batch they would take as much as all else here.
    """
    (_, num_classes, h, w), (_, height, width) = logits.shape, labels.shape
    rows = bilinear_matrix(h, height, device=logits.device)
    columns = bilinear_matrix(w, width, device=logits.device)
    num_rows = rows_per_strip(num_classes, width, device=logits.device, max_elements=max_elements)
    gradient = torch.zeros(logits.shape, device=logits.device) if with_gradient else None
    losses, totals = [], []
    for n, image in enumerate(logits):
        cells = image.float()
        for strip in strips(height, rows=num_rows):
            near = near_inputs(strip, num_in=h, ratio=h / height)
            valid = (labels[n, strip] != void).reshape(1, -1)
            classes = labels[n, strip].reshape(1, -1).where(valid, 0)
            pixel_weights = weights[classes] * valid
            loss, part_gradient = _strip_loss(
                cells[:, near],
                rows=rows[strip, near],
                columns=columns,
                classes=classes,
                weights=pixel_weights,
                with_gradient=with_gradient,
            )
            losses.append(loss)
            totals.append(pixel_weights.sum())
            if gradient is not None and part_gradient is not None:
                gradient[n, :, near] += part_gradient  # neighbouring strips share cells
    return torch.stack(losses).sum(), torch.stack(totals).sum(), gradient


def _strip_loss(
    cells: Tensor, *, rows: Tensor, columns: Tensor, classes: Tensor, weights: Tensor, with_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """Loss sum of one strip and its gradient with respect to `cells`.

    Args:
        cells: (K, h, w) scores.
        rows: (r, h) interpolation of the strip's rows.
        columns: (W, w) interpolation of the columns.
        classes: (1, r·W) labels.
        weights: (1, r·W) weight of each pixel.
        with_gradient: also compute the gradient.
    """
    num_classes, num_rows, width = cells.shape[0], rows.shape[0], columns.shape[0]
    scores = resample(cells, rows=rows, columns=columns).view(num_classes, num_rows * width)
    log_probabilities = torch.log_softmax(scores, dim=0)
    loss = -(log_probabilities.gather(0, classes) * weights).sum()
    if not with_gradient:
        return loss, None
    slope = log_probabilities.exp_()  # d nll / d score = softmax - one-hot
    slope.scatter_(0, classes, slope.gather(0, classes) - 1)
    slope.mul_(weights)
    return loss, resample(slope.view(num_classes, num_rows, width), rows=rows.t(), columns=columns.t())


def without_easy_pixels(
    logits: Tensor,
    labels: Tensor,
    *,
    void: int,
    threshold: float,
    min_kept: int,
    sample_every: int = 1,
    max_elements: int | None = None,
) -> Tensor:
    """Labels in which pixels that are known well already are void: online hard example mining (OHEM).

    Kept are the pixels whose upsampled probability of their own class is at most `threshold`, and where these are
    fewer than `min_kept` pixels of the batch, that many of the least probable.

    Args:
        logits: (N, K, h, w) scores of any float type.
        labels: (N, H, W) int64 class indices, or `void`.
        void: the label that takes part in nothing.
        threshold: largest probability of a pixel that is always kept.
        min_kept: pixels of the batch that are kept at least, as far as there are any.
        sample_every: look for the least probable in every n-th pixel of every n-th row only.
        max_elements: largest K·r·W of a strip; default by device.

    Returns:
        (N, H, W) int64.
    """
    probabilities = true_class_probabilities(logits, labels, void=void, max_elements=max_elements)
    seen = probabilities[:, ::sample_every, ::sample_every].flatten()
    num_kept = min(min_kept // sample_every**2, seen.numel())
    limit = torch.full_like(seen[0], threshold)
    if num_kept:  # where too few pixels have a class this is infinite, and all of them are kept
        limit = limit.maximum(seen.topk(num_kept, largest=False, sorted=False).values.max())
    return labels.where(probabilities <= limit, void)


@torch.no_grad()
def true_class_probabilities(logits: Tensor, labels: Tensor, *, void: int, max_elements: int | None = None) -> Tensor:
    """Softmax of the upsampled scores at each pixel's own class, (N, H, W) float32; infinite where void.

    The scores are upsampled strip by strip as in `upsampled_cross_entropy`, and never held as a whole.
    """
    (_, num_classes, h, w), (_, height, width) = logits.shape, labels.shape
    rows = bilinear_matrix(h, height, device=logits.device)
    columns = bilinear_matrix(w, width, device=logits.device)
    num_rows = rows_per_strip(num_classes, width, device=logits.device, max_elements=max_elements)
    found = torch.empty(labels.shape, device=logits.device)
    with torch.autocast(logits.device.type, enabled=False):
        for n, image in enumerate(logits):
            for strip in strips(height, rows=num_rows):
                near = near_inputs(strip, num_in=h, ratio=h / height)
                scores = resample(image[:, near].float(), rows=rows[strip, near], columns=columns)
                valid = labels[n, strip] != void
                own = scores.gather(0, labels[n, strip].where(valid, 0)[None])[0]
                found[n, strip] = (own - scores.logsumexp(dim=0)).exp().where(valid, torch.inf)
    return found
