"""An ensemble of classifiers explains one image: a score for every pixel."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seg_models.deciles import Consensus, Normalise, consensus, resize_map
from seg_models.explain import (
    AnyExplainer,
    RandomSpec,
    SmoothGradSpec,
    explain,
    prepare_model,
    random_scores,
    unit_noise,
)
from seg_models.weights.classifiers import Classifier, Resize


class Member(NamedTuple):
    """One classifier of an ensemble."""

    classifier: Classifier
    chunk: int
    """Copies of the image that go through it at once."""


class Ensemble:
    """Explains images with every classifier and averages the maps.

    Args:
        members: the classifiers; those of one input size should stand together, they share their noise.
        explainer: the method.
        normalise: what makes the maps of different classifiers comparable.
        resize: how an image becomes a classifier's input.
        seed: of the noise.
        device: where the classifiers run.
    """

    def __init__(
        self,
        members: Sequence[Member],
        *,
        explainer: AnyExplainer,
        normalise: Normalise = "l1",
        resize: Resize = "short_side",
        seed: int = 0,
        device: str = "cpu",
    ) -> None:
        self.explainer, self.normalise, self.resize = explainer, normalise, resize
        self.seed, self.device = seed, torch.device(device)
        self.members = [member._replace(classifier=member.classifier.to(self.device)) for member in members]
        self._models = [prepare_model(member.classifier, explainer) for member in self.members]
        self._noise: tuple[tuple[Any, ...], Tensor] | None = None

    def scores(self, image: NDArray[np.uint8], *, target: int, image_id: str) -> Consensus:
        """How much every pixel of an image (H, W, 3) matters for class `target`; maps have the image's size."""
        height, width = image.shape[:2]
        if isinstance(self.explainer, RandomSpec):
            return Consensus(random_scores(seed=self.seed, image_id=image_id, height=height, width=width), 1, ())
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).to(self.device)
        maps = (resize_map(found, height=height, width=width) for found in self._maps(pixels, target, image_id))
        return consensus(maps, rule=self.normalise)

    def _maps(self, pixels: Tensor, target: int, image_id: str) -> Iterator[Tensor]:
        """The map (h, w) of every classifier in turn, at its own input size."""
        for member, model in zip(self.members, self._models, strict=True):
            prepared = member.classifier.prepare(pixels, resize=self.resize)
            yield explain(
                model,
                prepared,
                target=target,
                explainer=self.explainer,
                noise=self._noise_of(image_id, *prepared.shape[1:]),
                seed=self.seed,
                chunk=member.chunk,
            )

    def _noise_of(self, image_id: str, height: int, width: int) -> Tensor | None:
        """SmoothGrad's noise for this image and input size; drawn once for classifiers of one size in a row."""
        if not isinstance(self.explainer, SmoothGradSpec):
            return None
        key = (image_id, height, width)
        if self._noise is None or self._noise[0] != key:
            noise = unit_noise(
                seed=self.seed,
                image_id=image_id,
                num_samples=self.explainer.samples,
                height=height,
                width=width,
            )
            self._noise = (key, noise.to(self.device))
        return self._noise[1]
