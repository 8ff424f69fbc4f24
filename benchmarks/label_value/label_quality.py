"""How right a teacher's labels are where people drew some too."""

from __future__ import annotations

from typing import Any

import numpy as np

from pipelines.codecs import decode_label
from pipelines.tables import Dataset
from seg_models.metrics import ConfusionMatrix


def compare_labels(dataset: str, labels: str, *, truth: str, split: str) -> dict[str, Any]:
    """Compare two label sets of a split, row for row.

    Returns:
        `kept`: the share of pixels with a class in `labels`; of those, `miou` and `pixel_accuracy` against `truth`,
        0 where there are none.
    """
    opened = Dataset.open(dataset)
    guessed, drawn = opened.labels(labels), opened.labels(truth)
    space = drawn.label_space
    matrix = ConfusionMatrix(space.num_classes, space.void)
    kept = pixels = 0
    for file in guessed.files(split=split):
        pairs = zip(*(table.read(file.key, columns=["label"])["label"] for table in (guessed, drawn)), strict=True)
        for ours, theirs in pairs:
            label, human = decode_label(ours.as_py()), decode_label(theirs.as_py())
            known = label != space.void
            matrix.update(np.where(known, label, 0), np.where(known, human, space.void))
            kept, pixels = kept + int(known.sum()), pixels + label.size
    return {
        "kept": round(kept / pixels, 4),
        "miou": round(matrix.miou(), 4) if kept else 0.0,
        "pixel_accuracy": round(matrix.pixel_accuracy(), 4) if kept else 0.0,
    }
