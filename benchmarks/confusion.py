"""Confusion matrix of 1024x2048 pixels with 19 classes against numpy's bincount over the valid pixels.

    python -m benchmarks.confusion

Ours also checks that every value is a class.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from benchmarks.codec import street_label
from benchmarks.measure import Effort, Entries, command, cpu_pairs
from seg_models.metrics import ConfusionMatrix

NUM_CLASSES, VOID = 19, 255


def entries(effort: Effort) -> Entries:
    """Time to count one image."""
    size = (64, 128) if effort.tiny else (1024, 2048)
    truth = street_label(*size).astype(np.int64)
    guess = truth[::-1].copy()
    truth[: len(truth) // 10] = VOID

    def ours() -> NDArray[np.int64]:
        counted = ConfusionMatrix(NUM_CLASSES, VOID)
        counted.update(guess, truth)
        return counted.matrix

    def peer() -> NDArray[np.int64]:
        valid = truth != VOID
        return np.bincount(NUM_CLASSES * truth[valid] + guess[valid], minlength=NUM_CLASSES**2)

    assert np.array_equal(ours().reshape(-1), peer())
    return {"confusion_numpy": cpu_pairs(ours, peer, effort=effort)}


if __name__ == "__main__":
    command(__doc__, entries)
