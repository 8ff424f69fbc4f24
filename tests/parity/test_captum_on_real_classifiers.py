"""Our maps against Captum's on real classifiers and a photograph, for the same noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from captum.attr import NoiseTunnel, Saliency
from PIL import Image
from torch import Tensor

from seg_models.explain import SmoothGradSpec, explain, unit_noise
from seg_models.numerics import Numerics
from seg_models.weights.classifiers import Classifier, ClassifierSpec, build_classifier, lite_ensemble
from seg_models.weights.collected import collected_ensemble

SAMPLES = 4
SPEC = SmoothGradSpec(samples=SAMPLES, noise=0.125, score="logit")
PLAIN = Numerics(channels_last=False, fold_batch_norm=False)


def specs(data: Path) -> list[ClassifierSpec]:
    return [*lite_ensemble(), *collected_ensemble(str(data / "weights/imagenet-classifiers"))]


def photograph(data: Path) -> Tensor:
    path = sorted((data / "datasets/ecssd-500/images").iterdir())[3]
    return torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)


def both(
    ours: Classifier, plain: Classifier, image: Tensor, monkeypatch: pytest.MonkeyPatch, target: int = 207
) -> tuple[Tensor, Tensor]:
    """Our map of the form under test, and Captum's of the plain network."""
    noise = unit_noise(seed=0, image_id="a", num_samples=SAMPLES, height=image.shape[1], width=image.shape[2])
    noise = noise.to(image.dtype)
    deviation = 0.125 * float(image.max() - image.min())
    # Captum rounds the deviation to float32; the noise is ours in any case.
    monkeypatch.setattr(torch, "normal", lambda mean, std: mean + deviation * noise)
    signed = NoiseTunnel(Saliency(plain.network)).attribute(
        image[None], target=target, nt_samples=SAMPLES, stdevs=deviation, nt_type="smoothgrad", abs=False
    )
    return explain(ours, image, target=target, explainer=SPEC, noise=noise), signed[0].abs().sum(dim=0)


@pytest.mark.real
@pytest.mark.parametrize("stem_once", [False, True])
def test_every_real_classifier_in_its_fast_form_has_captums_map(
    shared_data: Path, stem_once: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = photograph(shared_data)
    alike = {}
    for spec in specs(shared_data):
        fast = build_classifier(spec, numerics=Numerics(stem_once=stem_once))
        plain = build_classifier(spec, numerics=PLAIN)
        found, expected = both(fast, plain, fast.prepare(pixels, resize="square"), monkeypatch)
        alike[spec.label] = float(torch.cosine_similarity(found.flatten(), expected.double().flatten(), dim=0))
    assert len(alike) == 14
    assert min(alike.values()) >= 0.99999, alike


@pytest.mark.real
def test_in_float64_the_fast_form_equals_captum_to_a_billionth(
    shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = photograph(shared_data)
    exact = Numerics(dtype="float64", stem_once=True)
    for spec in specs(shared_data)[3:5]:
        fast, plain = build_classifier(spec, numerics=exact), build_classifier(spec, numerics=PLAIN)
        plain.network.double()
        found, expected = both(fast, plain, fast.prepare(pixels, resize="square").double(), monkeypatch)
        assert float((found - expected).abs().max()) <= 1e-9 * float(expected.max())
