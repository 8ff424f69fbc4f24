"""From maps to a score per pixel, and from scores to how well they meet a human mask."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.study.maps import Maps
from seg_models.consensus import Mean, Normalise, resize_map
from seg_models.otsu import otsu_threshold
from seg_models.ranks import deciles
from seg_models.smoothing import AnySmoothing, GaussianSpec, GuidedSpec, NoSmoothing, smooth_map
from seg_models.weights.classifiers import resize_image

NUM_CLASSIFIERS = 14
MAP_SIZE = 260
"""Side of the mean map: the largest input of the ensemble."""
SUBSETS = 3
"""Random choices of M classifiers that are averaged."""


PLAIN, GAUSSIAN, GUIDED = NoSmoothing(), GaussianSpec(), GuidedSpec()
PLAIN_AND_GUIDED: tuple[AnySmoothing, ...] = (PLAIN, GUIDED)


@dataclass(frozen=True)
class Rule:
    """How a score map is made."""

    kind: str = "logit.1"
    """Which maps."""
    normalise: Normalise = "l1"
    smoothing: AnySmoothing = PLAIN
    members: tuple[int, ...] = tuple(range(NUM_CLASSIFIERS))
    axis: str = "passes"
    """The table that it belongs to."""

    @property
    def passes(self) -> int:
        """Gradient passes an image costs."""
        name, _, count = self.kind.partition(".")
        samples = {"integrated": 16, "bfloat16": 1, "random": 0}.get(name)
        return len(self.members) * (int(count) if samples is None else samples)

    @property
    def smoothing_name(self) -> str:
        """For tables."""
        sizes = self.smoothing.model_dump(exclude={"kind"}).values()
        return " ".join([self.smoothing.kind, *(f"{size:g}" for size in sizes)])


def subsets(count: int) -> list[tuple[int, ...]]:
    """Random choices of classifiers, the same in every run."""
    draw = np.random.default_rng(count)
    return [tuple(sorted(draw.permutation(NUM_CLASSIFIERS)[:count].tolist())) for _ in range(SUBSETS)]


def rules(kinds: Sequence[str]) -> Iterator[Rule]:
    """Every rule of the study over the kinds of maps that there are."""
    for kind in kinds:
        for smoothing in (PLAIN, GAUSSIAN, GUIDED):
            yield Rule(kind, smoothing=smoothing)
    deepest = max((kind for kind in kinds if kind.startswith("logit")), key=lambda kind: int(kind.partition(".")[2]))
    for smoothing in PLAIN_AND_GUIDED:
        for kind in ("logit.1", deepest):
            for count in (1, 3, 5, 10):
                yield from (Rule(kind, "l1", smoothing, members, "models") for members in subsets(count))
        for kind in (deepest, deepest.replace("logit", "probability")):
            for normalise in ("none", "l1", "max", "minmax", "rank"):
                rule = Rule(kind, smoothing=smoothing, axis="normalise")
                yield replace(rule, normalise=normalise)
    for radius in (0.05, 0.1, 0.2, 0.3):
        for eps in (1e-2, 1e-3, 3e-4, 1e-4):
            yield Rule(smoothing=GuidedSpec(radius=radius, eps=eps), axis="guided")
    for sigma in (0.01, 0.02, 0.04):
        yield Rule(smoothing=GaussianSpec(sigma=sigma), axis="gaussian")


def scores_by(rule: Rule, maps: Maps, image: Tensor) -> Tensor | None:
    """The score of every pixel of an image (3, H, W), or None where no map has a signal."""
    mean = Mean(rule=rule.normalise)
    for number in rule.members:
        stored = torch.from_numpy(maps[f"{rule.kind}/{number}"].astype(np.float64))
        if rule.normalise == "none":
            stored = stored / stored.sum().clamp_min(1e-300) * float(maps[f"{rule.kind}/{number}/sum"])
        mean.add(resize_map(stored, height=MAP_SIZE, width=MAP_SIZE))
    found = mean.result().scores
    if found is None:
        return None
    guide = resize_image(image, height=MAP_SIZE, width=MAP_SIZE) / 255
    smooth = smooth_map(found, guide=guide, spec=rule.smoothing)
    return resize_map(smooth, height=image.shape[1], width=image.shape[2])


def quality(scores: NDArray[np.float64], mask: NDArray[np.bool_]) -> dict[str, float]:
    """How well scores (H, W) find a mask: precision of the top decile, area-matched IoU, average precision."""
    order = np.argsort(-scores, axis=None, kind="stable")
    hits = mask.reshape(-1)[order]
    area = int(hits.sum())
    found = np.cumsum(hits)
    both = int(found[area - 1])
    return {
        "precision": float(mask[deciles(scores) == 9].mean()),
        "iou": both / (2 * area - both),
        "ap": float((found[hits] / (np.flatnonzero(hits) + 1)).mean()),
    }


def label_quality(chosen: NDArray[np.bool_], mask: NDArray[np.bool_]) -> dict[str, float]:
    """How well a label (H, W) covers a mask."""
    both, either = float((chosen & mask).sum()), float((chosen | mask).sum())
    return {
        "share": float(chosen.mean()),
        "precision": both / max(1.0, float(chosen.sum())),
        "recall": both / max(1.0, float(mask.sum())),
        "iou": both / max(1.0, either),
    }


def labels_by(scores: NDArray[np.float64]) -> Mapping[str, NDArray[Any]]:
    """The shares of the image that could become the label."""
    tenths = deciles(scores)
    return {
        "top decile": tenths >= 9,
        "top 2 deciles": tenths >= 8,
        "top 3 deciles": tenths >= 7,
        "otsu": scores > otsu_threshold(scores),
    }
