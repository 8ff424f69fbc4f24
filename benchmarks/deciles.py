"""Rank deciles of a score map against thresholds by torch.quantile and np.quantile.

    python -m benchmarks.deciles

The peers interpolate between values and give equal scores one side, so that their deciles are not quite the same.
Entries without a size in their name are of 375x500 pixels, an ordinary ImageNet photograph; those without a type are
of float32. Labels are made from float64 scores.
"""

from __future__ import annotations

import numpy as np
import torch

from benchmarks.measure import Effort, Entries, Measured, command, cpu_pairs
from seg_models.ranks import deciles

LEVELS = np.linspace(0.1, 0.9, 9)


def entries(effort: Effort) -> Entries:
    """Float32 at two sizes, and float64."""
    height, width = (24, 32) if effort.tiny else (375, 500)
    return {
        **compare(height, width, effort=effort),
        **compare(224, 224, effort=effort, ending="_224"),
        **compare(height, width, effort=effort, ending="_float64", dtype=np.float64),
    }


def compare(
    height: int, width: int, *, effort: Effort, ending: str = "", dtype: type[np.floating] = np.float32
) -> dict[str, Measured]:
    """Ours against both peers for uniform random scores."""
    scores = np.random.default_rng(0).random((height, width)).astype(dtype)
    tensor, cuts = torch.from_numpy(scores), torch.from_numpy(LEVELS.astype(dtype))
    peers = {
        "deciles_torch": lambda: torch.bucketize(tensor, torch.quantile(tensor, cuts)),
        "deciles_numpy": lambda: np.digitize(scores, np.quantile(scores, LEVELS)),
    }
    repeat = 1 if effort.tiny else 10
    return {
        name + ending: cpu_pairs(lambda: deciles(scores), peer, effort=effort, repeat=repeat)
        for name, peer in peers.items()
    }


if __name__ == "__main__":
    command(__doc__, entries)
