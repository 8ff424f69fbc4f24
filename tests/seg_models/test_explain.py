"""Explanations against slow, obvious references."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from seg_models.consensus import pseudo_label
from seg_models.explain import (
    AnyExplainer,
    CaptumSpec,
    IntegratedGradientsSpec,
    RandomSpec,
    SmoothGradSpec,
    explain,
    prepare_model,
    random_scores,
    unit_noise,
)
from seg_models.gradients import Score


class TinyClassifier(nn.Module):
    """Conv, in-place ReLU, pooling, linear: enough to be nonlinear in every input pixel."""

    def __init__(self, num_classes: int = 5, sharpness: float = 1.0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.act = nn.ReLU(inplace=True)
        self.fc = nn.Linear(6, num_classes)
        self.sharpness = sharpness

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.sharpness * self.fc(self.act(self.conv(images)).mean(dim=(2, 3)))
        return scores


def tiny(seed: int = 0, *, sharpness: float = 1.0, dtype: torch.dtype = torch.float64) -> TinyClassifier:
    torch.manual_seed(seed)
    return TinyClassifier(sharpness=sharpness).to(dtype).eval().requires_grad_(False)


def picture(height: int = 9, width: int = 12) -> Tensor:
    return torch.randn(3, height, width, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def noise_for(image: Tensor, samples: int) -> Tensor:
    height, width = image.shape[1:]
    return unit_noise(seed=1, image_id="a", num_samples=samples, height=height, width=width).double()


def gradient_at(model: nn.Module, point: Tensor, *, target: int, score: Score) -> Tensor:
    """One plain backward pass through the score itself."""
    point = point.clone().requires_grad_(True)
    logits = model(point[None])[0]
    value = logits.softmax(0)[target] if score == "probability" else logits[target]
    (gradient,) = torch.autograd.grad(value, point)
    return gradient


def slow_smoothgrad(model: nn.Module, image: Tensor, *, target: int, spec: SmoothGradSpec, noise: Tensor) -> Tensor:
    """The sheet's formula, one sample after the other: abs after the mean, sum over RGB."""
    deviation = spec.noise * (float(image.max()) - float(image.min()))
    gradients = [gradient_at(model, image + deviation * sample, target=target, score=spec.score) for sample in noise]
    return torch.stack(gradients).mean(dim=0).abs().sum(dim=0)


@pytest.mark.parametrize("score", ["probability", "logit"])
@pytest.mark.parametrize("chunk", [1, 4, 7, 16])
def test_smoothgrad_equals_a_loop_over_samples_for_every_chunk_size(score: Score, chunk: int) -> None:
    model, image = tiny(), picture()
    spec = SmoothGradSpec(samples=7, score=score)
    noise = noise_for(image, 7)
    found = explain(model, image, target=2, explainer=spec, noise=noise, chunk=chunk)
    expected = slow_smoothgrad(model, image, target=2, spec=spec, noise=noise)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-16)


def test_the_absolute_value_is_taken_after_the_mean_over_samples() -> None:
    model, image = tiny(), picture()
    spec = SmoothGradSpec(samples=8, noise=0.8)
    noise = noise_for(image, 8)
    found = explain(model, image, target=1, explainer=spec, noise=noise)
    deviation = spec.noise * float(image.max() - image.min())
    gradients = torch.stack(
        [gradient_at(model, image + deviation * sample, target=1, score="probability") for sample in noise]
    )
    abs_before = gradients.abs().mean(dim=0).sum(dim=0)
    assert (found <= abs_before + 1e-15).all()
    assert float((abs_before - found).max()) > 0.05 * float(abs_before.max())


def test_the_noise_is_relative_to_the_range_of_the_normalised_image() -> None:
    image = picture()
    seen: list[Tensor] = []

    class Recorder(TinyClassifier):
        def forward(self, images: Tensor) -> Tensor:
            seen.append(images.detach().clone())
            return super().forward(images)

    noise = noise_for(image, 6)
    explain(Recorder().double(), image, target=0, explainer=SmoothGradSpec(samples=6, noise=0.25), noise=noise, chunk=3)
    points = torch.cat(seen)
    torch.testing.assert_close(points - image, 0.25 * (image.max() - image.min()) * noise)
    assert [len(points) for points in seen] == [3, 3]


def test_the_class_asked_for_is_explained_not_the_predicted_one() -> None:
    model, image = tiny(), picture()
    spec, noise = SmoothGradSpec(samples=4), noise_for(image, 4)
    maps = [explain(model, image, target=target, explainer=spec, noise=noise) for target in range(5)]
    for target, found in enumerate(maps):
        torch.testing.assert_close(found, slow_smoothgrad(model, image, target=target, spec=spec, noise=noise))
    assert not torch.allclose(maps[0] / maps[0].sum(), maps[1] / maps[1].sum())


def test_a_nearly_saturated_softmax_in_float32_keeps_its_explanation() -> None:
    image = picture()
    gap = 200.0
    exact, rounded = tiny(sharpness=gap), tiny(sharpness=gap, dtype=torch.float32)
    rounded.load_state_dict(exact.state_dict())
    target = int(exact(image[None]).argmax())
    noise = noise_for(image, 4)
    spec = SmoothGradSpec(samples=4)
    probability = exact(image[None]).softmax(1)[0, target]
    assert float(probability.float()) == 1.0  # the plain float32 gradient is all rounding here
    found = explain(rounded, image.float(), target=target, explainer=spec, noise=noise.float())
    expected = explain(exact, image, target=target, explainer=spec, noise=noise)
    torch.testing.assert_close(found / found.sum(), expected / expected.sum(), rtol=2e-2, atol=1e-7)


def test_integrated_gradients_add_up_to_the_difference_of_the_scores() -> None:
    model, image = tiny(), picture()
    spec = IntegratedGradientsSpec(steps=400, score="probability", baseline=0.1)
    found = explain(model, image, target=3, explainer=spec, chunk=64)
    way = image - 0.1
    middles = [0.1 + (index + 0.5) / 400 * way for index in range(400)]
    gradients = torch.stack([gradient_at(model, point, target=3, score="probability") for point in middles])
    signed = way * gradients.mean(dim=0)
    torch.testing.assert_close(found, signed.abs().sum(dim=0), rtol=1e-9, atol=1e-15)
    difference = model(image[None]).softmax(1)[0, 3] - model(torch.full_like(image, 0.1)[None]).softmax(1)[0, 3]
    assert abs(float(signed.sum() - difference)) < 1e-3 * abs(float(difference)) + 1e-6


def test_deeplift_runs_through_the_captum_adapter_on_a_copy_without_inplace_activations() -> None:
    model, image = tiny(), picture()
    spec = CaptumSpec(method="DeepLift", arguments={"baselines": 0.0})
    prepared = prepare_model(model, spec)
    assert isinstance(prepared, TinyClassifier)
    assert model.act.inplace
    assert not prepared.act.inplace
    found = explain(prepared, image, target=2, explainer=spec)
    assert found.shape == image.shape[1:]
    assert float(found.max()) > 0
    torch.testing.assert_close(found, explain(prepared, image, target=2, explainer=spec))


def test_the_captum_adapter_takes_functions_and_brings_layer_maps_to_the_size_of_the_image() -> None:
    model, image = tiny(), picture()
    spec = CaptumSpec(method=f"{__name__}:layer_method")
    found = explain(prepare_model(model, spec), image, target=2, explainer=spec)
    assert found.shape == image.shape[1:]
    torch.testing.assert_close(found, torch.full_like(found, 2.0))


def layer_method(model: nn.Module) -> object:
    """An attribution of a layer of half the image's size, with the target's index as value."""

    class Half:
        def attribute(self, images: Tensor, *, target: int) -> Tensor:
            return torch.full((1, 1, images.shape[2] // 2, images.shape[3] // 2), float(target))

    return Half()


def test_a_captum_method_that_does_not_exist_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ValueError, match="did you mean 'DeepLift'"):
        explain(tiny(), picture(), target=0, explainer=CaptumSpec(method="DeepLft"))
    with pytest.raises(ValueError, match="cannot explain"):
        explain(tiny(), picture(), target=0, explainer=CaptumSpec(method="Saliency", arguments={"nonsense": 1}))


def test_captum_methods_that_draw_random_numbers_depend_on_the_seed_alone() -> None:
    model, image = tiny(), picture()
    spec = CaptumSpec(method=f"{__name__}:noisy_method")
    first, again, other = (explain(model, image, target=2, explainer=spec, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def noisy_method(model: nn.Module) -> object:
    """Captum's own SmoothGrad, which draws from torch's global generator."""
    from captum.attr import NoiseTunnel, Saliency

    return NoiseTunnel(Saliency(model))


def test_unit_noise_is_a_function_of_seed_id_sample_and_size_alone() -> None:
    few = unit_noise(seed=5, image_id="a", num_samples=2, height=6, width=8)
    many = unit_noise(seed=5, image_id="a", num_samples=4, height=6, width=8)
    assert torch.equal(few, many[:2])
    assert not torch.equal(many[0], many[1])
    for other in (
        unit_noise(seed=6, image_id="a", num_samples=2, height=6, width=8),
        unit_noise(seed=5, image_id="b", num_samples=2, height=6, width=8),
        unit_noise(seed=5, image_id="a", num_samples=2, height=8, width=6).transpose(2, 3),
    ):
        assert not torch.equal(few, other)
    sample = unit_noise(seed=0, image_id="x", num_samples=1, height=200, width=200)
    assert abs(float(sample.mean())) < 0.02
    assert abs(float(sample.std()) - 1) < 0.02


def test_smoothgrad_without_fitting_noise_is_refused() -> None:
    with pytest.raises(ValueError, match="needs noise of shape"):
        explain(tiny(), picture(), target=0, explainer=SmoothGradSpec(samples=3))
    with pytest.raises(ValueError, match="random_scores"):
        explain(tiny(), picture(), target=0, explainer=RandomSpec())


@pytest.mark.parametrize("kind", ["smoothgrad", "integrated_gradients", "captum", "random"])
def test_explainers_survive_json(kind: str) -> None:
    adapter: TypeAdapter[AnyExplainer] = TypeAdapter(AnyExplainer)
    explainer = adapter.validate_python({"kind": kind})
    assert adapter.validate_json(adapter.dump_json(explainer)) == explainer


def test_the_random_control_labels_the_same_area_at_other_places() -> None:
    first = random_scores(seed=0, image_id="a", height=30, width=41)
    assert torch.equal(first, random_scores(seed=0, image_id="a", height=30, width=41))
    label = pseudo_label(first.numpy(), class_index=1, background=0)
    other = pseudo_label(random_scores(seed=0, image_id="b", height=30, width=41).numpy(), class_index=1, background=0)
    assert int(label.sum()) == int(other.sum()) == 30 * 41 // 10
    assert not np.array_equal(label, other)
