"""An ensemble's scores against slow, obvious references."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import timm
import torch
from numpy.typing import NDArray
from torch import nn

from seg_models import ensemble as module
from seg_models.consensus import normalise_map, resize_map
from seg_models.ensemble import Ensemble, Query
from seg_models.explain import IntegratedGradientsSpec, RandomSpec, SmoothGradSpec, explain, unit_noise
from seg_models.numerics import Numerics
from seg_models.smoothing import GuidedSpec, guided_filter
from seg_models.weights.classifiers import Classifier, ClassifierSpec, Resize

EXACT = Numerics(dtype="float64", channels_last=False, fold_batch_norm=False, chunk=4)
SPEC = SmoothGradSpec(samples=2)


def classifier(seed: int, *, size: int = 32, numerics: Numerics = EXACT) -> Classifier:
    torch.manual_seed(seed)
    network: nn.Module = timm.create_model("test_resnet", num_classes=4)
    return Classifier(network, ClassifierSpec(name="own", num_classes=4, size=size), numerics=numerics)


def picture(seed: int, height: int = 40, width: int = 60) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def slow_scores(members: list[Classifier], query: Query, *, resize: Resize, meeting: tuple[int, int]) -> Any:
    """One classifier after the other, one image alone; l1-normalised maps meet at the largest input size."""
    pixels = torch.from_numpy(query.image.copy()).permute(2, 0, 1)
    total = torch.zeros(meeting, dtype=torch.float64)
    for member in members:
        x = member.prepare(pixels, resize=resize)
        noise = unit_noise(seed=7, image_id=query.id, num_samples=2, height=x.shape[1], width=x.shape[2])
        found = explain(member, x, target=query.target, explainer=SPEC, noise=noise)
        total += normalise_map(resize_map(found, height=meeting[0], width=meeting[1]), rule="l1")
    return resize_map(total / len(members), height=query.image.shape[0], width=query.image.shape[1])


@pytest.mark.parametrize(("resize", "meeting"), [("square", (48, 48)), ("short_side", (48, 64))])
def test_scores_are_the_mean_of_normalised_maps_brought_to_the_size_of_the_image(
    resize: Resize, meeting: tuple[int, int]
) -> None:
    members = [classifier(0), classifier(1), classifier(2, size=48)]
    queries = [Query(picture(number), number % 4, f"image {number}") for number in range(3)]
    found = Ensemble(members, explainer=SPEC, resize=resize, seed=7).scores(queries)
    for query, one in zip(queries, found, strict=True):
        expected = slow_scores(members, query, resize=resize, meeting=meeting)
        assert one.scores is not None
        assert one.scores.shape == (40, 60)
        torch.testing.assert_close(one.scores, expected, rtol=1e-6, atol=1e-12)


def test_images_of_different_shapes_asked_about_together_have_the_scores_of_each_alone() -> None:
    members = [classifier(0), classifier(1, size=48)]
    shapes = [(40, 60), (60, 40), (33, 33), (40, 60)]
    queries = [Query(picture(number, *shape), 1, f"image {number}") for number, shape in enumerate(shapes)]
    ensemble = Ensemble(members, explainer=SPEC)
    for query, together in zip(queries, ensemble.scores(queries), strict=True):
        (alone,) = ensemble.scores([query])
        assert together.scores is not None
        assert alone.scores is not None
        torch.testing.assert_close(together.scores, alone.scores, rtol=1e-8, atol=1e-14)


def test_noise_is_drawn_once_for_classifiers_of_one_size(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[str, int]] = []

    def counted(**arguments: Any) -> torch.Tensor:
        drawn.append((arguments["image_id"], arguments["height"]))
        return unit_noise(**arguments)

    monkeypatch.setattr(module, "unit_noise", counted)
    members = [classifier(0), classifier(1), classifier(2, size=48)]
    list(Ensemble(members, explainer=SPEC).scores([Query(picture(0), 0, "a"), Query(picture(1), 0, "b")]))
    assert drawn == [("a", 32), ("b", 32), ("a", 48), ("b", 48)]


def test_the_mean_map_is_smoothed_along_the_edges_of_the_image_before_it_grows() -> None:
    query = Query(picture(5), 2, "image")
    plain = Ensemble([classifier(0)], explainer=SPEC, resize="square")
    guided = Ensemble([classifier(0)], explainer=SPEC, resize="square", smoothing=GuidedSpec(radius=0.1, eps=1e-3))
    pixels = torch.from_numpy(query.image.copy()).permute(2, 0, 1)[None].float()
    guide = torch.nn.functional.interpolate(pixels, size=(32, 32), mode="bilinear", antialias=True)[0] / 255
    small = Query(query.image, 2, "image")
    x = plain.classifiers[0].prepare(pixels[0], resize="square")
    noise = unit_noise(seed=0, image_id=small.id, num_samples=2, height=32, width=32)
    scores = normalise_map(explain(plain.classifiers[0], x, target=2, explainer=SPEC, noise=noise), rule="l1")
    expected = resize_map(guided_filter(scores, guide=guide, radius_px=3, eps=1e-3), height=40, width=60)
    (found,) = guided.scores([query])
    assert found.scores is not None
    torch.testing.assert_close(found.scores, expected, rtol=1e-9, atol=1e-14)


def test_a_batch_fills_the_largest_chunk_with_images_of_few_copies() -> None:
    members = [classifier(0), classifier(1, numerics=EXACT.model_copy(update={"chunk": 9}))]
    sizes = {1: 9, 2: 4, 9: 1, 50: 1}
    found = {n: Ensemble(members, explainer=SmoothGradSpec(samples=n)).batch for n in sizes}
    assert found == sizes
    assert Ensemble(members, explainer=IntegratedGradientsSpec(steps=3)).batch == 3
    assert Ensemble([], explainer=RandomSpec()).batch == 1


def test_a_classifier_without_signal_is_skipped_for_the_image_and_named() -> None:
    silent = classifier(1)
    silent.network.get_classifier().weight.zero_()  # type: ignore[operator]  # a timm network
    (found,) = Ensemble([classifier(0), silent], explainer=SPEC).scores([Query(picture(0), 0, "a")])
    assert (found.num_used, found.skipped) == (1, (1,))


def test_everything_that_an_explanation_needs_goes_to_the_device_with_the_classifier() -> None:
    split = classifier(0, numerics=EXACT.model_copy(update={"stem_once": True})).to("meta")
    assert split.stem is not None
    modules = (split, split.stem.module, split.stem.precise)
    assert {parameter.device.type for module in modules for parameter in module.parameters()} == {"meta"}


def test_a_network_whose_batch_norms_have_no_statistics_would_mix_images_and_is_refused() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False))
    with pytest.raises(ValueError, match="'own' cannot be explained: batch norm '1' has no running statistics"):
        Classifier(network, ClassifierSpec(name="own", num_classes=4))
