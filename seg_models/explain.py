"""Which pixels a classifier's score depends on: SmoothGrad, integrated gradients, any Captum attribution.

Shapes: n samples, N samples of one chunk, K classes, h w pixels of the classifier's input. A chunk holds copies of
one image only, so that a result does not depend on what else is computed beside it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from seg_models.captum_adapter import captum_attribution, without_inplace
from seg_models.spec import Spec

Score = Literal["probability", "logit"]


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


def unit_noise(*, seed: int, image_id: str, num_samples: int, height: int, width: int) -> Tensor:
    """Standard normal noise (n, 3, height, width), the same for every classifier of one input size.

    Sample i is a function of (seed, image_id, i, height, width) alone: more samples never change the first ones.
    """
    noise = torch.empty(num_samples, 3, height, width)
    for sample in range(num_samples):
        torch.randn(3, height, width, generator=_generator(seed, image_id, sample, height, width), out=noise[sample])
    return noise


def random_scores(*, seed: int, image_id: str, height: int, width: int) -> Tensor:
    """Uniform random scores (height, width) in float64, a function of the arguments alone."""
    generator = _generator(seed, image_id, "random", height, width)
    return torch.rand(height, width, generator=generator, dtype=torch.float64)


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
    """How much each pixel matters for class `target`: the absolute attribution, summed over RGB.

    The attribution is signed until after the mean over samples (specs: PSSL section 2).

    Args:
        model: frozen classifier, normalised images (N, 3, h, w) to logits (N, K), from `prepare_model`.
        image: one normalised image (3, h, w).
        target: index of the true class.
        explainer: the method; a RandomSpec explains nothing, see `random_scores`.
        noise: standard normal noise (n, 3, h, w) of SmoothGrad.
        seed: makes Captum methods that draw random numbers reproducible.
        chunk: copies of the image that go through the model at once.

    Returns:
        Map (h, w), not negative, float64 on the image's device.

    Raises:
        ValueError: SmoothGrad without noise of the right shape, or a RandomSpec.
    """
    if isinstance(explainer, SmoothGradSpec):
        attribution = _smoothgrad(model, image, target=target, spec=explainer, noise=noise, chunk=chunk)
    elif isinstance(explainer, IntegratedGradientsSpec):
        attribution = _integrated_gradients(model, image, target=target, spec=explainer, chunk=chunk)
    elif isinstance(explainer, CaptumSpec):
        attribution = captum_attribution(
            model,
            image,
            target=target,
            method=explainer.method,
            arguments=explainer.arguments,
            softmax=explainer.score == "probability",
            seed=seed,
        )
    else:
        raise ValueError("a random control has no explanation: use random_scores")
    return attribution.double().abs().sum(dim=0)


def _smoothgrad(
    model: nn.Module, image: Tensor, *, target: int, spec: SmoothGradSpec, noise: Tensor | None, chunk: int
) -> Tensor:
    """Signed mean gradient (3, h, w) over noisy copies; the noise's deviation is spec.noise * (max - min)."""
    wanted = (spec.samples, *image.shape)
    if noise is None or tuple(noise.shape) != wanted:
        raise ValueError(f"SmoothGrad needs noise of shape {wanted}, found {None if noise is None else noise.shape}")
    deviation = spec.noise * (image.max() - image.min())
    points = (image + deviation * part for part in torch.split(noise.to(image), chunk))
    return mean_gradient(model, points, target=target, score=spec.score)


def _integrated_gradients(
    model: nn.Module, image: Tensor, *, target: int, spec: IntegratedGradientsSpec, chunk: int
) -> Tensor:
    """(image - baseline) times the mean gradient (3, h, w) at the middles of equal pieces of the way between them."""
    way = image - spec.baseline
    middles = (torch.arange(spec.steps, device=image.device, dtype=image.dtype) + 0.5) / spec.steps
    points = (spec.baseline + part[:, None, None, None] * way for part in torch.split(middles, chunk))
    return way.double() * mean_gradient(model, points, target=target, score=spec.score)


def mean_gradient(model: nn.Module, points: Iterable[Tensor], *, target: int, score: Score) -> Tensor:
    """Signed mean over all points of the gradient of the target's score, (3, h, w) float64.

    Args:
        points: chunks (N, 3, h, w); only their running sum is kept.
    """
    total: Tensor | None = None
    count = 0
    for chunk in points:
        part = _summed_gradient(model, chunk, target=target, score=score)
        total = part if total is None else total + part
        count += len(chunk)
    if total is None:
        raise ValueError("no points to differentiate at")
    return total / count


def _summed_gradient(model: nn.Module, points: Tensor, *, target: int, score: Score) -> Tensor:
    """Sum over the N points of the gradient of the target's score with respect to the point."""
    points = points.detach().requires_grad_(True)
    logits = model(points)
    direction, factor = _logit_gradient(logits.detach().double(), target=target, score=score)
    (gradient,) = torch.autograd.grad(logits, points, grad_outputs=direction.to(logits.dtype))
    return torch.einsum("n,nchw->chw", factor, gradient.double())


def _logit_gradient(logits: Tensor, *, target: int, score: Score) -> tuple[Tensor, Tensor]:
    """Gradient of the target's score with respect to the logits, as a direction (N, K) times a factor (N,).

    For p = softmax(z): dp_t/dz_t = p_t * (sum of the other p), dp_t/dz_k = -p_t * p_k. The factor is the largest
    entry, so that the network's backward pass sees numbers near one and a nearly saturated softmax loses no
    gradient to underflow; a softmax saturated beyond float64 has factor 0.
    """
    if score == "logit":
        direction = torch.zeros_like(logits)
        direction[:, target] = 1
        return direction, torch.ones_like(logits[:, 0])
    probability = torch.softmax(logits, dim=1)
    true = probability[:, target].clone()
    probability[:, target] = 0
    gradient = -true[:, None] * probability
    gradient[:, target] = true * probability.sum(dim=1)
    factor = gradient.abs().amax(dim=1)
    return torch.where(factor[:, None] > 0, gradient / factor[:, None], 0), factor


def _generator(*key: int | str) -> torch.Generator:
    """A random generator seeded by the SHA-256 of the key."""
    digest = hashlib.sha256(json.dumps(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big"))
