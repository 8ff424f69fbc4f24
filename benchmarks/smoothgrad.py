"""SmoothGrad maps against Captum's NoiseTunnel(Saliency) and against a loop over samples with `.backward()`.

    python -m benchmarks.smoothgrad

One image of 224x224, gradient of a logit, signed mean over n noisy copies, on one thread. Networks have random weights
and batch norms with the statistics of random images. Every entry says how alike the two maps are for the same noise
(cosine): speed without equality is nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from unittest import mock

import captum.attr
import torch
from torch import Tensor, nn

from benchmarks.measure import Effort, Entries, Measured, Skipped, command, cpu_pairs
from benchmarks.networks import fast_bfloat16, fast_form, random_network
from seg_models.explain import SmoothGradSpec, explain, unit_noise
from seg_models.numerics import Numerics

NOISE = 0.1
TARGET = 5


@dataclass(frozen=True)
class Case:
    """A network, an image (3, h, w) and unit noise (n, 3, h, w)."""

    network: nn.Module
    image: Tensor
    noise: Tensor

    @property
    def deviation(self) -> float:
        """Of the noise that is added to the image."""
        return NOISE * float(self.image.max() - self.image.min())


def entries(effort: Effort) -> Entries:
    """The networks and precisions of the acceptance table."""
    resnet, efficientnet = ("test_resnet", "test_efficientnet") if effort.tiny else ("resnet50", "efficientnet_b0")
    case = make_case(resnet, effort=effort)
    low = "no avx512_bf16 and no AMX: bfloat16 is not faster here" if not fast_bfloat16() else None
    best = torch.float32 if low else torch.bfloat16
    return {
        "smoothgrad_resnet50_fp32": compare(case, captum_map, effort=effort),
        "smoothgrad_efficientnet_b0_fp32": compare(make_case(efficientnet, effort=effort), captum_map, effort=effort),
        "smoothgrad_resnet50_bf16": Skipped(low) if low else compare(case, captum_map, best, effort=effort),
        "smoothgrad_resnet50_loop": compare(case, loop_map, best, effort=effort),
    }


def make_case(name: str, *, effort: Effort) -> Case:
    """Network of a timm model name in eval mode, one image and its noise."""
    size, samples = (32, 2) if effort.tiny else (224, 16)
    network = random_network(name, size=size)
    noise = unit_noise(seed=0, image_id="x", num_samples=samples, height=size, width=size)
    return Case(network, torch.randn(3, size, size), noise)


def compare(
    case: Case, peer: Callable[[Case], Tensor], dtype: torch.dtype = torch.float32, *, effort: Effort
) -> Measured:
    """Our map in a precision against a peer's in float32."""
    numerics = Numerics.model_validate({"dtype": str(dtype).removeprefix("torch."), "stem_once": True})
    model = fast_form(case.network, numerics=numerics)
    with mock.patch.object(torch, "normal", lambda mean, std: mean + std * case.noise):  # Captum's draw
        cosine = torch.cosine_similarity(our_map(model, case).flatten(), peer(case).double().flatten(), dim=0)
    note = f"n={len(case.noise)}, ours in {str(dtype).removeprefix('torch.')}, cosine {float(cosine):.6f}"
    return cpu_pairs(lambda: our_map(model, drawn(case)), lambda: peer(case), effort=effort, note=note)


def drawn(case: Case) -> Case:
    """The case with noise drawn anew, as Captum does in every call."""
    height, width = case.image.shape[1:]
    noise = unit_noise(seed=1, image_id="x", num_samples=len(case.noise), height=height, width=width)
    return replace(case, noise=noise)


def our_map(model: nn.Module, case: Case) -> Tensor:
    """Ours, (h, w)."""
    spec = SmoothGradSpec(samples=len(case.noise), noise=NOISE, score="logit")
    return explain(model, case.image, target=TARGET, explainer=spec, noise=case.noise, chunk=len(case.noise))


def captum_map(case: Case) -> Tensor:
    """Captum's, (h, w), with noise that it draws itself."""
    frozen = case.network.requires_grad_(False)
    tunnel = captum.attr.NoiseTunnel(captum.attr.Saliency(frozen))
    signed = tunnel.attribute(
        case.image[None].clone().requires_grad_(),
        nt_samples=len(case.noise),
        stdevs=case.deviation,
        target=TARGET,
        abs=False,
    )
    return signed[0].detach().abs().sum(dim=0)  # type: ignore[no-any-return]


def loop_map(case: Case) -> Tensor:
    """The plain loop, (h, w): one copy at a time, `.backward()` through everything, as published."""
    network = case.network.requires_grad_(True)
    total = torch.zeros_like(case.image)
    for sample in case.noise:
        point = (case.image + case.deviation * sample).requires_grad_()
        network.zero_grad(set_to_none=True)
        network(point[None])[0, TARGET].backward()
        assert point.grad is not None
        total += point.grad
    return (total / len(case.noise)).abs().sum(dim=0)


if __name__ == "__main__":
    command(__doc__, entries)
