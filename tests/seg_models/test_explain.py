"""Explanations and deciles against slow, obvious references."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import TypeAdapter
from torch import Tensor, nn

from seg_models.deciles import consensus, deciles, normalise_map, pseudo_label, resize_map
from seg_models.explain import (
    AnyExplainer,
    CaptumSpec,
    IntegratedGradientsSpec,
    RandomSpec,
    Score,
    SmoothGradSpec,
    explain,
    prepare_model,
    random_scores,
    unit_noise,
)


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
    explain(Recorder().double(), image, target=0, explainer=SmoothGradSpec(samples=6, noise=0.25), noise=noise, chunk=4)
    points = torch.cat(seen)
    torch.testing.assert_close(points - image, 0.25 * (image.max() - image.min()) * noise)
    assert [len(points) for points in seen] == [4, 2]


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


def slow_deciles(scores: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Count, for every pixel, the pixels that come before it."""
    flat = scores.ravel().tolist()
    ranks = [
        sum(other < value or (other == value and before < index) for before, other in enumerate(flat))
        for index, value in enumerate(flat)
    ]
    return np.array([10 * rank // len(flat) for rank in ranks], np.uint8).reshape(scores.shape)


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]) | st.floats(0, 1), min_size=1, max_size=70),
    width=st.integers(1, 7),
)
def test_deciles_equal_a_slow_stable_rank_also_where_scores_are_equal(values: list[float], width: int) -> None:
    height = max(1, len(values) // width)
    scores = np.resize(np.array(values), (height, width))
    assert np.array_equal(deciles(scores), slow_deciles(scores))


@pytest.mark.parametrize("shape", [(1, 1), (3, 3), (2, 5), (10, 10), (17, 13), (224, 224)])
def test_the_top_decile_holds_a_tenth_of_the_pixels_even_where_all_scores_are_equal(shape: tuple[int, int]) -> None:
    num_pixels = shape[0] * shape[1]
    for scores in (np.zeros(shape), np.random.default_rng(0).random(shape)):
        assert int((deciles(scores) == 9).sum()) == num_pixels // 10


def test_a_label_holds_the_class_in_the_top_deciles_and_background_elsewhere() -> None:
    scores = np.arange(40, dtype=np.float64).reshape(5, 8)
    label = pseudo_label(scores, class_index=7, background=1000)
    assert label.dtype == np.uint16
    assert label.ravel().tolist() == [1000] * 36 + [7] * 4
    assert int((pseudo_label(scores, class_index=7, background=1000, top_deciles=3) == 7).sum()) == 12
    assert pseudo_label(scores, class_index=0, background=6, dtype=np.uint8).dtype == np.uint8


def test_the_random_control_labels_the_same_area_at_other_places() -> None:
    first = random_scores(seed=0, image_id="a", height=30, width=41)
    assert torch.equal(first, random_scores(seed=0, image_id="a", height=30, width=41))
    label = pseudo_label(first.numpy(), class_index=1, background=0)
    other = pseudo_label(random_scores(seed=0, image_id="b", height=30, width=41).numpy(), class_index=1, background=0)
    assert int(label.sum()) == int(other.sum()) == 30 * 41 // 10
    assert not np.array_equal(label, other)


def test_every_rule_makes_maps_comparable() -> None:
    scores = torch.tensor([[1.0, 3.0], [3.0, 5.0]], dtype=torch.float64)
    expected = {
        "none": [[1.0, 3.0], [3.0, 5.0]],
        "l1": [[1 / 12, 3 / 12], [3 / 12, 5 / 12]],
        "max": [[0.2, 0.6], [0.6, 1.0]],
        "minmax": [[0.0, 0.5], [0.5, 1.0]],
        "rank": [[0.0, 0.5], [0.5, 1.0]],
    }
    for rule, values in expected.items():
        found = normalise_map(scores, rule=rule)  # type: ignore[arg-type]  # keys of a dict are plain text
        torch.testing.assert_close(found, torch.tensor(values, dtype=torch.float64))


def test_the_consensus_is_the_mean_of_normalised_maps_and_counts_the_ones_without_signal() -> None:
    first = torch.tensor([[1.0, 3.0]], dtype=torch.float64)
    second = torch.tensor([[1e6, 0.0]], dtype=torch.float64)
    broken = torch.tensor([[float("nan"), 1.0]], dtype=torch.float64)
    found = consensus([first, torch.zeros(1, 2).double(), second, broken], rule="l1")
    assert found.scores is not None
    torch.testing.assert_close(found.scores, torch.tensor([[0.625, 0.375]], dtype=torch.float64))
    assert (found.num_used, found.num_skipped, found.skipped) == (2, 2, (1, 3))
    unnormalised = consensus([first, second], rule="none")
    assert unnormalised.scores is not None
    assert float(unnormalised.scores[0, 0]) == pytest.approx((1 + 1e6) / 2)


def test_a_consensus_of_nothing_but_zero_maps_has_no_scores() -> None:
    found = consensus([torch.zeros(2, 2)] * 3, rule="l1")
    assert found.scores is None
    assert found.num_skipped == 3


def test_maps_are_brought_to_the_size_of_the_image_bilinearly() -> None:
    ramp = torch.arange(4.0, dtype=torch.float64).expand(2, 4)
    grown = resize_map(ramp, height=2, width=8)
    torch.testing.assert_close(grown[0], torch.tensor([0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3], dtype=torch.float64))
    assert resize_map(ramp, height=2, width=4) is ramp
    shrunk = resize_map(torch.tensor([[0.0, 0.0, 0.0, 8.0]] * 4, dtype=torch.float64), height=1, width=1)
    assert 0 < float(shrunk) < 8
