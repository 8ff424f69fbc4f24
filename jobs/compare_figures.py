"""What one evaluation says beside another: every figure, and whether its change over single images could be chance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000
_TOGETHER = 64
"""Resamples that are averaged in one product."""
LESS_IS_BETTER = ("ece",)
Figures = Mapping[str, float | None]


def shared_figures(before: Figures, after: Figures) -> list[str]:
    """Names of the figures that both know, in the order of the first."""
    return [name for name, was in before.items() if was is not None and after.get(name) is not None]


def changes(
    before: Figures, after: Figures, *, images_before: Mapping[str, Figures], images_after: Mapping[str, Figures]
) -> list[dict[str, Any]]:
    """One row for each figure that both know: figure, baseline, evaluation, change, per_image.

    Args:
        before: figures of the whole set.
        after: the same of the other evaluation.
        images_before: image id -> its figures.
        images_after: the same of the other evaluation.
    """
    names = shared_figures(before, after)
    shared = sorted(images_before.keys() & images_after.keys())
    rows = []
    for name in names:
        was, now = before[name], after[name]
        assert was is not None
        assert now is not None
        differences = np.array([_difference(images_before[key], images_after[key], name) for key in shared])
        single = per_image(differences, less_is_better=name in LESS_IS_BETTER)
        rows.append({"figure": name, "baseline": was, "evaluation": now, "change": now - was, "per_image": single})
    return rows


def per_image(differences: NDArray[np.float64], *, less_is_better: bool = False) -> dict[str, Any] | None:
    """How many images became better and worse, their mean change and its 95 % interval; None without images.

    The interval is that of a paired bootstrap (Efron, 1979) over images with a fixed seed: the mean of as many images,
    drawn with replacement, again and again.

    Args:
        differences: (images,) changes of a figure, nan where an image lacks it in one of the evaluations.
        less_is_better: of the figure.
    """
    known = differences[~np.isnan(differences)]
    if not len(known):
        return None
    rng = np.random.default_rng(0)
    means = []
    for _ in range(-(-RESAMPLES // _TOGETHER)):
        means.append(known[rng.integers(0, len(known), (_TOGETHER, len(known)))].mean(axis=1))
    low, high = np.quantile(np.concatenate(means)[:RESAMPLES], (0.025, 0.975))
    gained = -known if less_is_better else known
    return {
        "images": len(known),
        "better": int((gained > 0).sum()),
        "worse": int((gained < 0).sum()),
        "mean_gain": float(known.mean()),
        "interval": [float(low), float(high)],
    }


def _difference(before: Figures, after: Figures, name: str) -> float:
    was, now = before.get(name), after.get(name)
    return float("nan") if was is None or now is None else now - was
