"""Confusion matrix of 1024×2048 pixels with 19 classes, a tenth of them void, against the ways of others.

    python -m benchmarks.confusion

All count the same pixels and end in equal counts. Ours takes labels and predictions in the bytes they are kept in and
refuses a value that is no class; the others get int64, as they have it after their arg-max. `_numpy`: numpy's bincount
over the valid pixels. `_mmseg`: mmsegmentation's `IoUMetric`, three float histograms of one image. `_torchmetrics`:
`MulticlassConfusionMatrix` as it comes, which looks for the distinct values first.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.codec import street_label
from benchmarks.measure import Effort, Entries, command, cpu_pairs
from seg_models.metrics import ConfusionMatrix

NUM_CLASSES, VOID = 19, 255
CALLS = 4
"""Calls that are timed together: one takes some milliseconds."""


def entries(effort: Effort) -> Entries:
    """Time to count one image."""
    guess, truth = label_maps((64, 128) if effort.tiny else (1024, 2048))
    wide = torch.from_numpy(guess).long(), torch.from_numpy(truth).long()

    def ours() -> NDArray[np.int64]:
        counted = ConfusionMatrix(NUM_CLASSES, VOID)
        counted.update(guess, truth)
        return counted.matrix

    matrix = ours()
    hits, true, seen = np.diagonal(matrix), matrix.sum(1), matrix.sum(0)
    assert np.array_equal(matrix, by_bincount(*(part.numpy() for part in wide)))
    assert np.array_equal(matrix, by_torchmetrics(*wide))
    assert np.array_equal(np.stack([hits, true + seen - hits, seen, true]), torch.stack(by_mmseg(*wide)))
    peers: dict[str, Callable[[], object]] = {
        "confusion_numpy": lambda: by_bincount(wide[0].numpy(), wide[1].numpy()),
        "confusion_mmseg": lambda: by_mmseg(*wide),
        "confusion_torchmetrics": lambda: by_torchmetrics(*wide),
    }
    return {name: cpu_pairs(ours, peer, effort=effort, repeat=CALLS) for name, peer in peers.items()}


def label_maps(size: tuple[int, int]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A prediction and a truth of these sizes, a tenth of the truth void."""
    truth = street_label(*size)
    guess = truth[::-1].copy()
    truth[: len(truth) // 10] = VOID
    return guess, truth


def by_bincount(guess: NDArray[np.int64], truth: NDArray[np.int64]) -> NDArray[np.int64]:
    """(K, K) counts of the valid pixels."""
    valid = truth != VOID
    pairs = NUM_CLASSES * truth[valid] + guess[valid]
    return np.bincount(pairs, minlength=NUM_CLASSES**2).reshape(NUM_CLASSES, NUM_CLASSES)


def by_mmseg(guess: Tensor, truth: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(K,) intersection, union, predicted and true pixels: the formulation of mmseg 1.x's `intersect_and_union`."""
    valid = truth != VOID
    guess, truth = guess[valid], truth[valid]
    both, seen, true = (histogram(values) for values in (guess[guess == truth], guess, truth))
    return both, seen + true - both, seen, true


def histogram(values: Tensor) -> Tensor:
    """(K,) float counts."""
    return torch.histc(values.float(), bins=NUM_CLASSES, min=0, max=NUM_CLASSES - 1)


def by_torchmetrics(guess: Tensor, truth: Tensor) -> Tensor:
    """(K, K) counts: the formulation of torchmetrics 1.x's `multiclass_confusion_matrix` with its default checks."""
    for values in (truth, guess):
        if len(torch.unique(values)) > NUM_CLASSES + 1:
            raise RuntimeError("more distinct values than classes")
    guess, truth = guess.flatten(), truth.flatten()
    valid = truth != VOID
    guess, truth = guess[valid], truth[valid]
    pairs = (truth * NUM_CLASSES + guess).to(torch.long)
    return torch.bincount(pairs, minlength=NUM_CLASSES**2).reshape(NUM_CLASSES, NUM_CLASSES)


if __name__ == "__main__":
    command(__doc__, entries)
