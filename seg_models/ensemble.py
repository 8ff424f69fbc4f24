"""An ensemble of classifiers explains images: a score for every pixel.

Shapes: B images, H W pixels of an image, h w pixels of a classifier's input.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seg_models.consensus import Consensus, Mean, Normalise, resize_map
from seg_models.explain import (
    AnyExplainer,
    RandomSpec,
    SmoothGradSpec,
    explain_images,
    num_copies,
    prepare_model,
    random_scores,
    unit_noise,
)
from seg_models.smoothing import AnySmoothing, NoSmoothing, smooth_map
from seg_models.weights.classifiers import Classifier, Resize, input_size, resize_image


@dataclass(frozen=True)
class Query:
    """An image (H, W, 3) uint8 and the class that is asked about."""

    image: NDArray[np.uint8]
    target: int
    id: str
    """Seeds the noise."""


MAX_BATCH = 64
"""Images that are held at once."""


class Ensemble:
    """Explains images with every classifier and averages the maps.

    Args:
        classifiers: those of one input size should stand together, they share their noise.
        explainer: the method.
        normalise: what makes the maps of different classifiers comparable.
        smoothing: what is done to the mean map before it is brought to the image's size.
        resize: how an image becomes a classifier's input.
        seed: of the noise.
        device: where the classifiers run.
    """

    def __init__(
        self,
        classifiers: Sequence[Classifier],
        *,
        explainer: AnyExplainer,
        normalise: Normalise = "l1",
        smoothing: AnySmoothing | None = None,
        resize: Resize = "short_side",
        seed: int = 0,
        device: str = "cpu",
    ) -> None:
        self.explainer, self.normalise, self.resize = explainer, normalise, resize
        self.smoothing = smoothing or NoSmoothing()
        self.seed, self.device = seed, torch.device(device)
        self.classifiers = [classifier.to(self.device) for classifier in classifiers]
        self._models = [prepare_model(classifier, explainer) for classifier in self.classifiers]
        self._noise: dict[tuple[str, int, int], Tensor] = {}

    @property
    def batch(self) -> int:
        """How many images are asked about at once where there are enough: they fill the classifiers' chunks."""
        copies = num_copies(self.explainer)
        fills = max([1, *(classifier.numerics.chunk // copies for classifier in self.classifiers)])
        return min(fills, MAX_BATCH)

    def scores(self, queries: Sequence[Query]) -> Iterator[Consensus]:
        """How much every pixel of each image matters for its class; maps have the image's size.

        Images that have one input size go through a classifier together, so which images are asked about at once is
        part of what decides the last digits. Maps grow to the size of their image one at a time, as they are taken.
        """
        if isinstance(self.explainer, RandomSpec):
            yield from (self._random(query) for query in queries)
            return
        means = [Mean(rule=self.normalise) for _ in queries]
        pixels = [torch.from_numpy(np.array(query.image)).permute(2, 0, 1).to(self.device) for query in queries]
        sizes = [self._map_size(query.image) for query in queries]
        inputs: dict[int, Tensor] = {}
        input_px = 0
        for classifier, model in zip(self.classifiers, self._models, strict=True):
            if classifier.spec.size != input_px:
                self._noise.clear()
                input_px = classifier.spec.size
                inputs = {i: self._resized(image, size=input_px) for i, image in enumerate(pixels)}
            for members in self._groups(inputs):
                maps = self._maps(classifier, model, [inputs[i] for i in members], [queries[i] for i in members])
                for index, found in zip(members, maps, strict=True):
                    means[index].add(resize_map(found, height=sizes[index][0], width=sizes[index][1]))
        self._noise.clear()
        for mean, image in zip(means, pixels, strict=True):
            yield self._finished(mean.result(), image)

    def _random(self, query: Query) -> Consensus:
        height, width = query.image.shape[:2]
        return Consensus(random_scores(seed=self.seed, image_id=query.id, height=height, width=width), 1, ())

    def _map_size(self, image: NDArray[np.uint8]) -> tuple[int, int]:
        """Where the maps of all classifiers meet: the largest input size."""
        size = max(classifier.spec.size for classifier in self.classifiers)
        return input_size(*image.shape[:2], size=size, resize=self.resize)

    def _resized(self, image: Tensor, *, size: int) -> Tensor:
        """An image (3, H, W) as classifiers of an input size see it, (3, h, w), not normalised."""
        height, width = input_size(*image.shape[1:], size=size, resize=self.resize)
        return resize_image(image, height=height, width=width)

    def _groups(self, inputs: Mapping[int, Tensor]) -> list[list[int]]:
        """Indices of the inputs of one size, in order."""
        found: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)
        for index, image in inputs.items():
            found[tuple(image.shape)].append(index)
        return list(found.values())

    def _maps(
        self, classifier: Classifier, model: torch.nn.Module, inputs: Sequence[Tensor], queries: Sequence[Query]
    ) -> Tensor:
        """Maps (B, h, w) of images of one input size."""
        prepared = classifier.normalise(torch.stack(list(inputs)))
        return explain_images(
            model,
            prepared,
            targets=[query.target for query in queries],
            explainer=self.explainer,
            noise=self._noise_of(queries, *prepared.shape[2:]),
            seed=self.seed,
            chunk=classifier.numerics.chunk,
        )

    def _noise_of(self, queries: Sequence[Query], height: int, width: int) -> Tensor | None:
        """SmoothGrad's noise (B, n, 3, h, w); drawn once for classifiers of one size in a row."""
        if not isinstance(self.explainer, SmoothGradSpec):
            return None
        for query in queries:
            if (query.id, height, width) not in self._noise:
                self._noise[query.id, height, width] = unit_noise(
                    seed=self.seed,
                    image_id=query.id,
                    num_samples=self.explainer.samples,
                    height=height,
                    width=width,
                    device=self.device,
                )
        return torch.stack([self._noise[query.id, height, width] for query in queries])

    def _finished(self, found: Consensus, image: Tensor) -> Consensus:
        """The mean map, smoothed and brought to the size of the image (3, H, W)."""
        if found.scores is None:
            return found
        guide = resize_image(image, height=found.scores.shape[0], width=found.scores.shape[1]) / 255
        smooth = smooth_map(found.scores, guide=guide, spec=self.smoothing)
        return found._replace(scores=resize_map(smooth, height=image.shape[1], width=image.shape[2]))
