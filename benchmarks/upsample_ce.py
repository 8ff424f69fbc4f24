"""Cross-entropy of upsampled scores by strips against the published formulation, which holds the upsampled scores.

    python -m benchmarks.upsample_ce

Loss and gradient of the scores, float32: two images of 769×769 pixels with 97×97 cells and 19 classes, as on
Cityscapes. A tenth of the pixels is void, of the others four fifths have the class with the largest score. Memory is
what a fresh process with one torch thread grows by at most. `_weighted`: classes have weights. `_ohem`: pixels that are
known with a probability above 0.7 are left out as long as 100,000 stay; which side of a limit a pixel is on may depend
on rounding. `_150`: 512×512 pixels, 128×128 cells, 150 classes, as on ADE20K.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.measure import Effort, Entries, Measured, command, cpu_pairs
from benchmarks.resident import peak_bytes
from seg_models.parts.losses import upsampled_cross_entropy, without_easy_pixels

VOID = 255
THRESHOLD, MIN_KEPT = 0.7, 100_000
Step = Callable[[], Tensor]


class Case(NamedTuple):
    """Sizes of scores and labels, and the loss; whole numbers, which a command line can hold."""

    num_classes: int = 19
    cells: int = 97
    pixels: int = 769
    weighted: int = 0
    """1: classes have weights."""
    mined: int = 0
    """1: pixels that are known well are left out (OHEM)."""


Loss = Callable[[Case, Tensor, Tensor, Tensor | None], Tensor]
CASES = {
    "": Case(),
    "_weighted": Case(weighted=1),
    "_ohem": Case(mined=1),
    "_150": Case(num_classes=150, cells=128, pixels=512),
}


def entries(effort: Effort) -> Entries:
    """Time and memory of a step, for every case."""
    found: dict[str, Measured] = {}
    for ending, case in CASES.items():
        sizes = case._replace(cells=9, pixels=33) if effort.tiny else case
        ours, peer = prepare_ours(*sizes), prepare_peer(*sizes)
        gradient = peer()
        difference = float((ours() - gradient).abs().max() / gradient.abs().max())
        note = f"largest difference of a gradient {difference:.1e} of the largest"
        found[f"upsample_ce{ending}_time"] = cpu_pairs(ours, peer, effort=effort.few, note=note)
        found[f"upsample_ce{ending}_memory"] = Measured(*peaks(*sizes), unit="bytes")
    return found


def peaks(*sizes: int) -> tuple[float, float]:
    """Bytes by which a fresh process grows for ours, and one for the peer."""
    ours, peer = (peak_bytes(f"benchmarks.upsample_ce:prepare_{kind}", *sizes) for kind in ("ours", "peer"))
    return ours, peer


def prepare_ours(*sizes: int) -> Step:
    """A step of ours, to be called any number of times."""
    return prepare(by_strips, Case(*sizes))


def prepare_peer(*sizes: int) -> Step:
    """A step of the published formulation with the same scores and labels."""
    return prepare(published, Case(*sizes))


def prepare(loss: Loss, case: Case) -> Step:
    """A step that returns the gradient of the scores; all is warmed up on a small map."""

    def step(scores: Tensor, labels: Tensor) -> Tensor:
        weights = torch.linspace(0.5, 2, case.num_classes) if case.weighted else None
        return torch.autograd.grad(loss(case, scores, labels, weights), scores)[0]

    step(*inputs(case._replace(cells=4, pixels=16)))
    scores, labels = inputs(case)
    return lambda: step(scores, labels)


def inputs(case: Case) -> tuple[Tensor, Tensor]:
    """Scores (2, K, h, w) and labels (2, H, W)."""
    generator = torch.Generator().manual_seed(0)
    scores = 3 * torch.randn(2, case.num_classes, case.cells, case.cells, generator=generator)
    nearest = torch.arange(case.pixels) * case.cells // case.pixels
    labels = scores.argmax(dim=1)[:, nearest[:, None], nearest]
    kind = torch.rand(labels.shape, generator=generator)
    wrong = torch.randint(case.num_classes, labels.shape, generator=generator)
    return scores.requires_grad_(), labels.where(kind > 0.28, wrong).where(kind > 0.1, VOID)


def by_strips(case: Case, scores: Tensor, labels: Tensor, weights: Tensor | None) -> Tensor:
    """Ours."""
    if case.mined:
        labels = without_easy_pixels(scores, labels, void=VOID, threshold=THRESHOLD, min_kept=MIN_KEPT)
    return upsampled_cross_entropy(scores, labels, void=VOID, class_weights=weights)


def published(case: Case, scores: Tensor, labels: Tensor, weights: Tensor | None) -> Tensor:
    """Scores enlarged to the size of the labels, then torch's own cross-entropy."""
    enlarged = functional.interpolate(scores, size=labels.shape[1:], mode="bilinear", align_corners=False)
    if case.mined:
        labels = hard_pixels(enlarged.detach(), labels)
    return functional.cross_entropy(enlarged, labels, weight=weights, ignore_index=VOID)


def hard_pixels(enlarged: Tensor, labels: Tensor) -> Tensor:
    """OHEM of the released codes: one sorted list of the probabilities of all pixels' own classes."""
    valid = labels != VOID
    own = enlarged.softmax(dim=1).gather(1, labels.where(valid, 0)[:, None])[:, 0]
    in_order = own[valid].sort().values
    limit = in_order[min(MIN_KEPT, len(in_order)) - 1].clamp_min(THRESHOLD)
    return labels.where(own <= limit, VOID)


if __name__ == "__main__":
    command(__doc__, entries)
