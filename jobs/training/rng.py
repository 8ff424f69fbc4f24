"""Random generators of a training worker: saved, restored, and seeded where there is nothing to restore.

At the size the group had, every worker goes on with its own random numbers. In a group of another size all workers are
seeded anew from (seed, step, workers, rank): what they draw is then a function of these four, and of nothing that
happened before. The order of the samples and their augmentation do not draw from these generators at all.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch


def rng_state(device: torch.device) -> dict[str, Any]:
    """The state of every global random generator of this process."""
    kind, words, position, has_gauss, gauss = np.random.get_state(legacy=True)  # noqa: NPY002 (models may use it)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "numpy": (str(kind), torch.from_numpy(np.asarray(words).astype(np.int64)), position, has_gauss, gauss),
        "python": random.getstate(),
    }


def restore_rng(state: dict[str, Any], device: torch.device) -> None:
    """Put every global random generator of this process back to a saved state."""
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)
    kind, words, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((kind, words.numpy().astype(np.uint32), position, has_gauss, gauss))  # noqa: NPY002
    random.setstate(state["python"])


def start_rng(
    saved: Sequence[dict[str, Any]], *, seed: int, step: int, rank: int, world: int, device: torch.device
) -> None:
    """Go on with the random numbers of `saved` (one state per rank) where the group has its size, else seed anew."""
    if len(saved) == world:
        restore_rng(saved[rank], device)
    else:
        seed_rng(seed, step, world, rank)


def seed_rng(*key: int) -> None:
    """Seed every global random generator of this process."""
    seed = int(np.random.SeedSequence([value % 2**64 for value in key]).generate_state(1)[0])
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002 (models may use it)
    random.seed(seed)
