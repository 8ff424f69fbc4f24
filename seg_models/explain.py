"""Which pixels a classifier's score depends on: SmoothGrad, integrated gradients, any Captum attribution.

Shapes: n samples, N samples of one chunk, K classes, h w pixels of the classifier's input. A chunk holds copies of
one image only, so that a result does not depend on what else is computed beside it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from seg_models.captum_adapter import captum_attribution, without_inplace
from seg_models.gradients import Piece, Score, mean_gradients
from seg_models.spec import Spec


class SmoothGradSpec(Spec):
    """SmoothGrad (arXiv 1706.03825): the mean gradient over noisy copies of the image."""

    kind: Literal["smoothgrad"] = "smoothgrad"
    samples: int = Field(50, gt=0)
    """Noisy copies of each image."""
    noise: float = Field(0.1, ge=0)
    """Standard deviation of the noise, relative to max - min of the normalised image."""
    score: Score = "probability"
    """What is differentiated: the softmax probability of the true class, or its logit."""


class IntegratedGradientsSpec(Spec):
    """Integrated gradients (arXiv 1703.01365, eq. 3): the mean gradient on the way from a baseline to the image."""

    kind: Literal["integrated_gradients"] = "integrated_gradients"
    steps: int = Field(50, gt=0)
    """Points on the way, in the middle of equal pieces."""
    baseline: float = 0.0
    """Value of every pixel of the baseline, in the normalised image (0 is the mean colour)."""
    score: Score = "probability"


class CaptumSpec(Spec):
    """An attribution method of the package captum."""

    kind: Literal["captum"] = "captum"
    method: str = "DeepLift"
    """Class in `captum.attr`, or `package.module:function`; called with the classifier."""
    arguments: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of its `attribute`; lists become tuples."""
    score: Score = "logit"


class RandomSpec(Spec):
    """Control: random scores seeded by the image's id; the labelled area is the same."""

    kind: Literal["random"] = "random"


AnyExplainer = Annotated[
    SmoothGradSpec | IntegratedGradientsSpec | CaptumSpec | RandomSpec, Field(discriminator="kind")
]


GPU_DRAW = 1 << 15
"""Numbers drawn at once on a GPU; small GPUs begin their second round of threads at about 40,000."""


def unit_noise(
    *, seed: int, image_id: str, num_samples: int, height: int, width: int, device: torch.device | str = "cpu"
) -> Tensor:
    """Standard normal noise (n, 3, height, width), the same for every classifier of one input size.

    Sample i is a function of (seed, image_id, i, height, width) and of CPU or GPU alone: more samples never change the
    first ones. A GPU draws pieces that every model of GPU draws alike; of larger ones the order depends on its size.
    """
    noise = torch.empty(num_samples, 3, height, width, device=device)
    piece = noise[0].numel() if noise.device.type == "cpu" else GPU_DRAW
    for sample in range(num_samples):
        generator = _generator(seed, image_id, sample, height, width, device=device)
        for part in noise[sample].view(-1).split(piece):
            torch.randn(part.shape, generator=generator, out=part)
    return noise


def random_scores(*, seed: int, image_id: str, height: int, width: int) -> Tensor:
    """Uniform random scores (height, width) in float64, a function of the arguments alone."""
    generator = _generator(seed, image_id, "random", height, width)
    return torch.rand(height, width, generator=generator, dtype=torch.float64)


def num_copies(explainer: AnyExplainer) -> int:
    """Passes through a classifier that explain one image; a Captum method counts as one."""
    if isinstance(explainer, SmoothGradSpec):
        return explainer.samples
    return explainer.steps if isinstance(explainer, IntegratedGradientsSpec) else 1


def prepare_model(model: nn.Module, explainer: AnyExplainer) -> nn.Module:
    """The model in the form the explainer needs: Captum gets a copy without in-place activations."""
    return without_inplace(model) if isinstance(explainer, CaptumSpec) else model


def explain(
    model: nn.Module,
    image: Tensor,
    *,
    target: int,
    explainer: AnyExplainer,
    noise: Tensor | None = None,
    seed: int = 0,
    chunk: int = 16,
) -> Tensor:
    """How much each pixel of one image (3, h, w) matters for class `target`; see `explain_images`.

    Args:
        noise: standard normal noise (n, 3, h, w) of SmoothGrad.

    Returns:
        Map (h, w), not negative, float64 on the image's device.
    """
    rows = None if noise is None else noise[None]
    return explain_images(
        model, image[None], targets=(target,), explainer=explainer, noise=rows, seed=seed, chunk=chunk
    )[0]


def explain_images(
    model: nn.Module,
    images: Tensor,
    *,
    targets: Sequence[int],
    explainer: AnyExplainer,
    noise: Tensor | None = None,
    seed: int = 0,
    chunk: int = 16,
) -> Tensor:
    """How much each pixel matters for each image's target class: the absolute attribution, summed over RGB.

    The attribution is signed until after the mean over samples (specs: PSSL section 2).

    Args:
        model: frozen classifier, normalised images (N, 3, h, w) to logits (N, K), from `prepare_model`. A
            `Classifier` with a stem is differentiated there.
        images: normalised images (B, 3, h, w).
        targets: index of the true class of each image.
        explainer: the method; a RandomSpec explains nothing, see `random_scores`.
        noise: standard normal noise (B, n, 3, h, w) of SmoothGrad.
        seed: makes Captum methods that draw random numbers reproducible.
        chunk: copies that go through the model at once; of one image, or all copies of several.

    Returns:
        Maps (B, h, w), not negative, float64 on the images' device.

    Raises:
        ValueError: SmoothGrad without noise of the right shape, or a RandomSpec.
    """
    if isinstance(explainer, SmoothGradSpec):
        attribution = _smoothgrad(model, images, targets=targets, spec=explainer, noise=noise, chunk=chunk)
    elif isinstance(explainer, IntegratedGradientsSpec):
        attribution = _integrated_gradients(model, images, targets=targets, spec=explainer, chunk=chunk)
    elif isinstance(explainer, CaptumSpec):
        attribution = torch.stack(
            [
                captum_attribution(
                    model,
                    image,
                    target=target,
                    method=explainer.method,
                    arguments=explainer.arguments,
                    softmax=explainer.score == "probability",
                    seed=seed,
                )
                for image, target in zip(images, targets, strict=True)
            ]
        )
    else:
        raise ValueError("a random control has no explanation: use random_scores")
    return attribution.double().abs().sum(dim=1)


def _smoothgrad(
    model: nn.Module,
    images: Tensor,
    *,
    targets: Sequence[int],
    spec: SmoothGradSpec,
    noise: Tensor | None,
    chunk: int,
) -> Tensor:
    """Signed mean gradients (B, 3, h, w) over noisy copies; the noise's deviation is spec.noise * (max - min)."""
    wanted = (len(images), spec.samples, *images.shape[1:])
    if noise is None or tuple(noise.shape) != wanted:
        raise ValueError(f"SmoothGrad needs noise of shape {wanted}, found {None if noise is None else noise.shape}")
    span = images.amax(dim=(1, 2, 3)) - images.amin(dim=(1, 2, 3))
    deviation = (spec.noise * span)[:, None, None, None, None]
    drawn = noise.to(images)

    def points_of(piece: Piece) -> Tensor:
        return images[piece.images, None] + deviation[piece.images] * drawn[piece.images, piece.copies]

    return mean_gradients(
        model,
        points_of,
        targets=targets,
        num_copies=spec.samples,
        score=spec.score,
        chunk=chunk,
    )


def _integrated_gradients(
    model: nn.Module, images: Tensor, *, targets: Sequence[int], spec: IntegratedGradientsSpec, chunk: int
) -> Tensor:
    """(image - baseline) times the mean gradient at the middles of equal pieces of the way between them."""
    way = images - spec.baseline
    middles = (torch.arange(spec.steps, device=images.device, dtype=images.dtype) + 0.5) / spec.steps

    def points_of(piece: Piece) -> Tensor:
        return spec.baseline + middles[None, piece.copies, None, None, None] * way[piece.images, None]

    return way.double() * mean_gradients(
        model,
        points_of,
        targets=targets,
        num_copies=spec.steps,
        score=spec.score,
        chunk=chunk,
    )


def _generator(*key: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A random generator seeded by the SHA-256 of the key."""
    digest = hashlib.sha256(json.dumps(key).encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "big"))
