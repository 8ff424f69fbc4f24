"""Sums of gradients over pieces of images and copies, at the input and at the stem."""

from __future__ import annotations

import math

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from seg_models.explain import IntegratedGradientsSpec, SmoothGradSpec, explain, explain_images
from seg_models.gradients import pieces
from seg_models.numerics import Numerics
from seg_models.weights.classifiers import Classifier, ClassifierSpec

SPEC = ClassifierSpec(name="own", num_classes=5)


def network() -> nn.Module:
    """A random ResNet whose batch norms have statistics."""
    torch.manual_seed(0)
    model: nn.Module = timm.create_model("test_resnet", num_classes=5)
    with torch.no_grad():
        model.train()(torch.randn(8, 3, 32, 32))
    return model.eval()


def classifier(**changes: object) -> Classifier:
    return Classifier(network(), SPEC, numerics=Numerics.model_validate(changes))


PLAIN = {"dtype": "float64", "channels_last": False, "fold_batch_norm": False}


def pictures(count: int = 3) -> Tensor:
    return torch.randn(count, 3, 32, 40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def noise(count: int = 3, samples: int = 4) -> Tensor:
    return torch.randn(count, samples, 3, 32, 40, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


@given(num_images=st.integers(1, 9), num_copies=st.integers(1, 9), chunk=st.integers(1, 30))
def test_pieces_hold_every_copy_of_every_image_once_and_are_as_large_as_promised(
    num_images: int, num_copies: int, chunk: int
) -> None:
    seen = torch.zeros(num_images, num_copies, dtype=torch.int64)
    for piece in pieces(num_images=num_images, num_copies=num_copies, chunk=chunk):
        part = seen[piece.images, piece.copies]
        assert part.shape[0] == 1 or part.shape[1] == num_copies
        assert 0 < part.numel() <= chunk if chunk >= num_copies else chunk <= part.numel() < 2 * chunk
        seen[piece.images, piece.copies] += 1
    assert bool((seen == 1).all())


@pytest.mark.parametrize("score", ["probability", "logit"])
@pytest.mark.parametrize("chunk", [1, 3, 4, 8, 100])
def test_images_explained_together_have_the_maps_that_each_has_alone(score: str, chunk: int) -> None:
    model, spec = classifier(**PLAIN), SmoothGradSpec.model_validate({"samples": 4, "score": score})
    targets = (3, 0, 3)
    found = explain_images(model, pictures(), targets=targets, explainer=spec, noise=noise(), chunk=chunk)
    for index, target in enumerate(targets):
        alone = explain(model, pictures()[index], target=target, explainer=spec, noise=noise()[index], chunk=1)
        torch.testing.assert_close(found[index], alone, rtol=1e-10, atol=1e-16)


@pytest.mark.parametrize("score", ["probability", "logit"])
def test_going_through_the_stem_once_changes_nothing_but_rounding(score: str) -> None:
    spec = SmoothGradSpec.model_validate({"samples": 4, "score": score})
    plain, split = classifier(**PLAIN), classifier(**PLAIN | {"stem_once": True, "fold_batch_norm": True})
    assert split.stem is not None
    arguments = {"targets": (1, 2, 4), "explainer": spec, "noise": noise()}
    expected = explain_images(plain, pictures(), **arguments)  # type: ignore[arg-type]
    for chunk in (2, 8):
        found = explain_images(split, pictures(), chunk=chunk, **arguments)  # type: ignore[arg-type]
        assert float((found - expected).abs().max()) < 1e-9 * float(expected.max())


def test_a_network_with_a_module_called_stem_is_explained_at_its_input() -> None:
    torch.manual_seed(0)
    model = timm.create_model("regnety_002", num_classes=5).double().eval().requires_grad_(False)
    assert isinstance(model.stem, nn.Module)
    found = explain(model, pictures()[0], target=1, explainer=SmoothGradSpec(samples=2), noise=noise()[0, :2])
    assert float(found.max()) > 0


def test_integrated_gradients_go_through_the_stem_once_too() -> None:
    spec = IntegratedGradientsSpec(steps=6)
    plain, split = classifier(**PLAIN), classifier(**PLAIN | {"stem_once": True})
    expected = explain_images(plain, pictures(), targets=(1, 2, 4), explainer=spec, chunk=4)
    found = explain_images(split, pictures(), targets=(1, 2, 4), explainer=spec, chunk=12)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-14)


@pytest.mark.parametrize("stem_once", [False, True])
@pytest.mark.parametrize(("dtype", "cosine"), [("float32", 0.99999), ("bfloat16", 0.99)])
def test_every_form_gives_the_map_of_the_plain_float64_network(dtype: str, cosine: float, stem_once: bool) -> None:
    spec = SmoothGradSpec(samples=4)
    expected = explain_images(classifier(**PLAIN), pictures(), targets=(0, 1, 2), explainer=spec, noise=noise())
    fast = classifier(dtype=dtype, stem_once=stem_once)
    found = explain_images(fast, pictures().float(), targets=(0, 1, 2), explainer=spec, noise=noise())
    alike = torch.cosine_similarity(found.flatten(1), expected.flatten(1))
    assert float(alike.min()) >= cosine
    assert not fast.network.training
    assert next(fast.network.parameters()).dtype == getattr(torch, dtype)


def test_a_saturated_image_beside_others_keeps_its_own_explanation() -> None:
    """The factor that keeps tiny gradients alive belongs to each image, not to the chunk."""
    mixing = nn.Conv2d(3, 2, 1, bias=False)
    model = nn.Sequential(mixing, nn.AdaptiveAvgPool2d(1), nn.Flatten()).requires_grad_(False)
    mixing.weight.copy_(torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]])[:, :, None, None])
    images = torch.stack([torch.full((3, 4, 4), gap / 6) for gap in (100.0, 0.1)])
    quiet = SmoothGradSpec(samples=2, noise=0.0)
    found = explain_images(model, images, targets=(0, 0), explainer=quiet, noise=torch.zeros(2, 2, 3, 4, 4), chunk=4)
    for scores, gap in zip(found, (100.0, 0.1), strict=True):
        probability = 1 / (1 + math.exp(-gap))
        slope = probability * (1 / (1 + math.exp(gap)))
        expected = torch.full((4, 4), slope * 6 / 16, dtype=torch.float64)
        torch.testing.assert_close(scores, expected, rtol=1e-4, atol=0.0)
