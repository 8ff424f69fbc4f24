"""Our explanations against Captum's, in float64, on a real architecture."""

from __future__ import annotations

import warnings

import pytest
import timm
import torch
from captum.attr import DeepLift, IntegratedGradients, NoiseTunnel, Saliency
from torch import Tensor, nn

from seg_models.explain import (
    CaptumSpec,
    IntegratedGradientsSpec,
    SmoothGradSpec,
    explain,
    prepare_model,
    unit_noise,
)


def small_resnet(num_classes: int = 7) -> nn.Module:
    """A random ResNet whose batch norms have statistics, so that eval mode is not the identity."""
    torch.manual_seed(0)
    model: nn.Module = timm.create_model("test_resnet", num_classes=num_classes)
    model.train()(torch.randn(8, 3, 32, 32))
    return model.double().eval().requires_grad_(False)


def picture() -> Tensor:
    """An image whose range is exactly 4: Captum rounds the noise's deviation to float32, here that changes nothing."""
    image = torch.randn(3, 32, 48, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return image.clamp(-2, 2)


def test_smoothgrad_equals_captums_noise_tunnel_for_the_same_noise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, image, target = small_resnet(), picture(), 3
    noise = unit_noise(seed=0, image_id="a", num_samples=6, height=32, width=48).double()
    deviation = 0.125 * float(image.max() - image.min())
    found = explain(model, image, target=target, explainer=SmoothGradSpec(samples=6, noise=0.125), noise=noise, chunk=4)

    def same_noise(mean: Tensor, std: Tensor) -> Tensor:
        """Captum draws (samples, ...) at once from N(mean, std)."""
        return mean + std * noise

    monkeypatch.setattr(torch, "normal", same_noise)
    tunnel = NoiseTunnel(Saliency(nn.Sequential(model, nn.Softmax(dim=1))))
    signed = tunnel.attribute(
        image[None], target=target, nt_samples=6, stdevs=deviation, nt_type="smoothgrad", abs=False
    )
    expected = signed[0].abs().sum(dim=0)
    assert float(expected.max()) > 0
    assert float((found - expected).abs().max()) <= 1e-9 * float(expected.max())


def test_integrated_gradients_equal_captums_with_the_middle_rule() -> None:
    model, image = small_resnet(), picture()
    # 16 steps: Captum rounds the width of a step to float32, and 1/16 stays exact
    found = explain(model, image, target=2, explainer=IntegratedGradientsSpec(steps=16, score="logit"), chunk=5)
    signed = IntegratedGradients(model).attribute(image[None], target=2, n_steps=16, method="riemann_middle")
    expected = signed[0].abs().sum(dim=0)
    assert float((found - expected).abs().max()) <= 1e-9 * float(expected.max())


def test_deeplift_through_the_adapter_equals_captums_own() -> None:
    model, image = small_resnet(), picture()
    spec = CaptumSpec(method="DeepLift")
    prepared = prepare_model(model, spec)
    found = explain(prepared, image, target=1, explainer=spec)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        signed = DeepLift(prepared).attribute(image[None].requires_grad_(), target=1)
    torch.testing.assert_close(found, signed[0].detach().abs().sum(dim=0))
