"""Scales mixed by attention, against the paper's formulas written out; and what it is compared with."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from jobs.training.optimizers import parameter_groups
from seg_models import create_model, describe_model
from seg_models.architectures.hmsa import HIGH, HMSA, LOW, HMSASpec, ScaleAttention, mix
from seg_models.architectures.pspnet import PSPNetSpec
from seg_models.architectures.scale_baselines import AverageScales, ExplicitScales, JointAttention
from seg_models.models import change_spec
from seg_models.outputs import SegModel, SemanticOutput, SemanticTarget
from seg_models.parts.losses import upsampled_cross_entropy
from seg_models.parts.rmi import region_mutual_information, upsampled_binary_cross_entropy
from seg_models.predictor import Predictor, PredictorSpec
from seg_models.recipes.recipe import OptimizerSpec
from seg_models.spec import ModelSpec, preset

K, VOID = 3, 255


class Patches(SegModel):
    """One strided convolution and a classifier: stride 4, an auxiliary output of its own."""

    class_dependent: ClassVar[tuple[str, ...]] = ("classifier.", "aux_classifier.")

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, kernel_size=4, stride=4)
        self.classifier = nn.Conv2d(8, K, kernel_size=1)
        self.aux_classifier = nn.Conv2d(8, K, kernel_size=1)
        self.num_classes, self.output_stride = K, 4
        self.sizes: list[tuple[int, ...]] = []

    def forward(self, images: Tensor) -> SemanticOutput:
        self.sizes.append(tuple(images.shape[-2:]))
        features = self.patches(images.float() / 255)
        logits = self.classifier(features)
        if not self.training:
            return SemanticOutput(logits)
        return SemanticOutput(logits, aux=(self.aux_classifier(features),), extras={"features": features})

    def loss(self, output: SemanticOutput, target: SemanticTarget) -> dict[str, Tensor]:
        scores = {"ce": output.logits, "aux_ce": output.aux[0]}
        losses = {name: upsampled_cross_entropy(one, target.labels, void=target.void) for name, one in scores.items()}
        return {**losses, "size": output.extras["features"].square().mean()}


def make_hmsa(**settings: object) -> tuple[HMSA, Patches]:
    torch.manual_seed(0)
    inner = Patches()
    defaults: dict[str, object] = {
        "low_scale": 0.5,
        "scales": (0.5, 1.0, 2.0),
        "at_pixels": False,
        "criterion": "ce",
        "supervised_weight": 0.1,
    }
    attention = ScaleAttention(8, 4)
    model = HMSA(inner, watched=inner.classifier, attention=attention, **{**defaults, **settings})  # type: ignore[arg-type]
    return model, inner


def make_images(height: int = 32, width: int = 48) -> Tensor:
    return torch.randint(0, 256, (2, 3, height, width), generator=torch.Generator().manual_seed(0)).float()


def resized(maps: Tensor, size: tuple[int, ...]) -> Tensor:
    return functional.interpolate(maps, size=size, mode="bilinear", align_corners=False)


def one_look(model: HMSA, inner: Patches, images: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Scores, auxiliary scores and attention at a scale."""
    size = tuple(int(side * scale) for side in images.shape[-2:])
    features = inner.patches(resized(images, size) / 255)
    return inner.classifier(features), inner.aux_classifier(features), model.attention(features)


def test_a_chain_of_three_scales_is_the_formula_of_the_paper() -> None:
    model, inner = make_hmsa()
    model.eval()
    images = make_images()
    (half, _, a_half), (one, _, a_one), (two, _, _) = (one_look(model, inner, images, s) for s in (0.5, 1.0, 2.0))
    above = a_one * one + (1 - a_one) * resized(two, one.shape[-2:])
    expected = resized(a_half * half, one.shape[-2:]) + (1 - resized(a_half, one.shape[-2:])) * above
    torch.testing.assert_close(model(images).logits, expected)


@pytest.mark.parametrize("scales", [(1.0,), (0.5, 1.0), (0.25, 0.5, 1.0, 2.0), (1.0, 1.5, 2.0)])
def test_any_scales_are_looked_at_from_the_finest_to_the_coarsest(scales: tuple[float, ...]) -> None:
    model, inner = make_hmsa()
    scores = model.eval().predict_scales(make_images(), scales=scales)
    assert inner.sizes == [(int(32 * scale), int(48 * scale)) for scale in sorted(scales, reverse=True)]
    assert scores.shape == (2, K, 8, 12)


def test_where_all_scales_agree_the_mixture_agrees_with_them() -> None:
    """The weights {a_½, (1 − a_½)·a_1, (1 − a_½)·(1 − a_1)} sum to one at every cell."""
    model, inner = make_hmsa()
    nn.init.zeros_(inner.classifier.weight)
    assert inner.classifier.bias is not None
    scores = model.eval().predict_scales(make_images(), scales=(0.25, 0.5, 1.0, 2.0))
    torch.testing.assert_close(scores, inner.classifier.bias.view(1, K, 1, 1).expand_as(scores))


def test_a_training_pair_is_the_published_formula_at_the_size_of_the_pixels() -> None:
    """Enlarge scores and attention to the pixels of their own image, form the product, enlarge, add."""
    model, inner = make_hmsa(at_pixels=True)
    reference, images = copy.deepcopy(model), make_images()
    output = model.train()(images)
    inner = reference.inner  # type: ignore[assignment]
    low, low_aux, attention = (resized(one, (16, 24)) for one in one_look(reference, inner, images, 0.5))
    high, high_aux, _ = (resized(one, (32, 48)) for one in one_look(reference, inner, images, 1.0))
    for found, coarse, fine in ((output.logits, low, high), (output.aux[0], low_aux, high_aux)):
        trust = resized(attention, (32, 48))
        torch.testing.assert_close(found, resized(attention * coarse, (32, 48)) + (1 - trust) * fine)


def test_mixing_cells_comes_close_to_mixing_pixels() -> None:
    (cells, _), (pixels, _) = make_hmsa(), make_hmsa(at_pixels=True)
    images = 255 * torch.linspace(0, 1, 32)[:, None] * torch.linspace(0, 1, 48).expand(2, 3, 1, 48)
    with torch.no_grad():
        small, large = cells.eval()(images).logits, pixels.eval()(images).logits
    assert (cells.output_stride, pixels.output_stride) == (4, 1)
    assert large.shape[-2:] == images.shape[-2:]
    difference = (resized(small, large.shape[-2:]) - large).abs().max()
    assert 0 < float(difference) < 0.1 * float(large.std())


def test_the_product_is_formed_before_it_is_enlarged() -> None:
    coarse, attention, fine = torch.rand(1, 2, 2, 2), torch.rand(1, 1, 2, 2), torch.rand(1, 2, 4, 4)
    trust = resized(attention, (4, 4))
    assert not torch.allclose(mix(coarse, attention, fine), trust * resized(coarse, (4, 4)) + (1 - trust) * fine)
    torch.testing.assert_close(mix(coarse, attention, fine), resized(attention * coarse, (4, 4)) + (1 - trust) * fine)


def test_training_shows_single_scales_only_where_they_are_supervised() -> None:
    (model, _), (without, _) = make_hmsa(), make_hmsa(supervised_weight=0.0)
    extras = model.train()(make_images()).extras
    assert set(extras) == {"features", LOW, HIGH}
    assert (extras[LOW].shape[-2:], extras[HIGH].shape[-2:]) == ((4, 6), (8, 12))
    assert set(without.train()(make_images()).extras) == {"features"}


def test_the_attention_of_the_finest_scale_only_fills_batch_norms_in_training_and_rests_in_prediction() -> None:
    model, inner = make_hmsa(supervised_weight=0.0)
    calls: list[bool] = []
    model.attention.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    model.train()(make_images())
    assert calls == [True, False]
    counter = model.attention.conv0.norm.num_batches_tracked
    assert counter is not None
    assert int(counter) == 2
    model.eval()(make_images())
    assert len(calls) == 2 + 2
    assert len(inner.sizes) == 2 + 3


def target_of(images: Tensor) -> SemanticTarget:
    labels = torch.randint(0, K, (2, *images.shape[-2:]), generator=torch.Generator().manual_seed(1))
    labels[0, :8] = VOID
    return SemanticTarget(labels, VOID)


def test_cross_entropy_is_that_of_the_inner_network_and_of_each_scale() -> None:
    model, _ = make_hmsa()
    images = make_images()
    output, target = model.train()(images), target_of(images)
    losses = model.loss(output, target)
    assert list(losses) == ["ce", "aux_ce", "size", f"{LOW}_ce", f"{HIGH}_ce"]
    torch.testing.assert_close(losses["ce"], upsampled_cross_entropy(output.logits, target.labels, void=VOID))
    low = upsampled_cross_entropy(output.extras[LOW], target.labels, void=VOID)
    torch.testing.assert_close(losses[f"{LOW}_ce"], 0.1 * low)


def test_region_losses_are_halves_and_the_rest_is_binary_with_full_weight() -> None:
    model, _ = make_hmsa(criterion="rmi")
    images = make_images()
    output, target = model.train()(images), target_of(images)
    losses = model.loss(output, target)
    assert list(losses) == ["bce", "rmi", "aux_bce", "size", f"{LOW}_bce", f"{HIGH}_bce"]
    rmi = region_mutual_information(output.logits, target.labels, void=VOID)
    binary = [
        upsampled_binary_cross_entropy(scores, target.labels, void=VOID)
        for scores in (output.logits, output.aux[0], output.extras[HIGH])
    ]
    torch.testing.assert_close(losses["rmi"], 0.5 * rmi)
    for name, expected in zip(("bce", "aux_bce", f"{HIGH}_bce"), (0.5, 1.0, 0.1), strict=True):
        index = ("bce", "aux_bce", f"{HIGH}_bce").index(name)
        torch.testing.assert_close(losses[name], expected * binary[index])


def test_the_attention_sees_what_the_named_module_is_given() -> None:
    """NVIDIA's DeepLabV3+ shows it the input of the whole head."""
    spec = HMSASpec(inner=preset("pspnet_resnet10t_narrow"), looks_at="head")
    model = spec.build(K)
    assert model.attention.conv0.conv.in_channels == 2 * 128
    assert HMSASpec(inner=preset("pspnet_resnet10t_narrow")).build(K).attention.conv0.conv.in_channels == 64


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("heed", r"looks_at: PSPNet has no convolution in heed .did you mean 'head'"),
        ("head.dropout", r"looks_at: PSPNet has no convolution in head\.dropout"),
    ],
)
def test_a_module_that_cannot_be_looked_at_is_refused(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HMSASpec(inner=preset("pspnet_resnet10t_narrow"), looks_at=name).build(K)


@pytest.mark.parametrize("scales", [(0.5, 2.0), (0.0, 1.0), ()])
def test_scales_without_the_size_of_the_image_are_refused(scales: tuple[float, ...]) -> None:
    with pytest.raises(ValidationError, match=r"scales must be positive and hold 1\.0"):
        HMSASpec(scales=scales)
    with pytest.raises(ValueError, match=r"scales must be positive and hold 1\.0"):
        make_hmsa()[0].predict_scales(make_images(), scales=scales)


def test_the_predictor_lets_the_model_weigh_any_scales() -> None:
    model, inner = make_hmsa(scales=(1.0,))
    image = make_images()[0].permute(1, 2, 0).numpy().astype(np.uint8)
    spec = PredictorSpec(scales=(0.5, 1.0, 2.0), hierarchical=True)
    found = Predictor(model, spec=spec).predict(image)
    assert inner.sizes == [(64, 96), (32, 48), (16, 24)]
    with torch.no_grad():
        scores = model.predict_scales(torch.from_numpy(image).permute(2, 0, 1)[None], scales=spec.scales)
    confidence, label = resized(scores, (32, 48))[0].softmax(0).max(0)
    assert np.array_equal(found.label, label.numpy())
    np.testing.assert_allclose(found.confidence, confidence.numpy(), atol=1e-5)


def test_the_predictor_slides_a_window_in_which_scales_are_chained() -> None:
    """For machines on which twice the size of the whole image does not fit."""
    model, inner = make_hmsa()
    spec = PredictorSpec(scales=(1.0, 2.0), hierarchical=True, window=(16, 16), stride=(16, 16))
    Predictor(model, spec=spec).predict(np.zeros((32, 32, 3), np.uint8))
    assert inner.sizes == [(32, 32), (16, 16)] * 4


def test_the_predictor_refuses_to_weigh_scales_with_a_model_that_cannot() -> None:
    with pytest.raises(ValueError, match="hierarchical = true: Patches does not weigh scales"):
        Predictor(Patches(), spec=PredictorSpec(hierarchical=True))
    with pytest.raises(ValidationError, match=r"needs 1\.0 among the scales"):
        PredictorSpec(hierarchical=True, scales=(0.5, 2.0))


def test_explicit_attention_weighs_all_scales_at_every_cell() -> None:
    torch.manual_seed(0)
    inner, scales = Patches(), (0.5, 1.0, 2.0)
    attention = JointAttention(3 * 8, 16, num_scales=3)
    model = ExplicitScales(
        inner, watched=inner.classifier, attention=attention, scales=scales, criterion="ce", supervised_weight=0.0
    ).eval()
    images = make_images()
    features = [inner.patches(resized(images, (int(32 * s), int(48 * s))) / 255) for s in scales]
    weights = attention(torch.cat([resized(one, (8, 12)) for one in features], dim=1))
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(2, 8, 12))
    expected = sum(weights[:, n : n + 1] * resized(inner.classifier(one), (8, 12)) for n, one in enumerate(features))
    torch.testing.assert_close(model(images).logits, expected)


@pytest.mark.parametrize("pool", ["average", "max"])
def test_pooled_scales_are_trained_at_one(pool: str) -> None:
    torch.manual_seed(0)
    inner, images = Patches(), make_images()
    model = AverageScales(inner, scales=(1.0, 0.5), pool=pool, criterion="ce")  # type: ignore[arg-type]
    model.train()(images)
    assert inner.sizes == [(32, 48)]
    scores = torch.stack(
        [inner.classifier(inner.patches(images / 255)), resized(inner.classifier(half_of(inner, images)), (8, 12))]
    )
    expected = scores.mean(dim=0) if pool == "average" else scores.max(dim=0).values
    torch.testing.assert_close(model.eval()(images).logits, expected)


def half_of(inner: Patches, images: Tensor) -> Tensor:
    features: Tensor = inner.patches(resized(images, (16, 24)) / 255)
    return features


def training_gmac(spec: ModelSpec, *, num_classes: int, size: tuple[int, int]) -> float:
    """10⁹ multiply-adds of a training forward pass per image, counted without weights."""
    with torch.device("meta"):
        model, images = spec.build(num_classes).train(), torch.empty(2, 3, *size)
    with FlopCounterMode(display=False) as counter:
        model(images)
    return float(counter.get_total_flops()) / 2e9 / images.shape[0]


def test_a_pair_of_the_full_model_costs_what_the_sheet_says() -> None:
    """1529.8 for a look with attention, 1.25 of them a pair (specs: HMSA section 7)."""
    found = training_gmac(preset("hmsa_w48"), num_classes=19, size=(1024, 2048))
    assert found == pytest.approx(1.25 * 1529.8, rel=0.005)


def test_prediction_leaves_out_the_attention_of_the_finest_scale() -> None:
    """The sheet counts it: 8032 for scales 0.5, 1, 2. Ours is less by four times the head's 231.9."""
    spec = change_spec(preset("hmsa_w48"), {"scales": (0.5, 1.0, 2.0)})
    gmac = describe_model(spec, num_classes=19, size=(1024, 2048)).gmac
    assert gmac == pytest.approx(8032 - 4 * 231.9, rel=0.005)
    assert gmac + 4 * (1529.8 - 1297.9) == pytest.approx(8032, rel=0.005)


def test_training_on_a_pair_takes_a_quarter_of_the_explicit_form() -> None:
    """1.25 looks against 5.25, on DeepLabV3+ (the paper's table 3, specs: HMSA section 7)."""
    pair, explicit, single = (
        training_gmac(preset(f"hmsa_deeplabv3plus_resnet50{form}"), num_classes=19, size=(128, 128))
        for form in ("", "_explicit", "_average")
    )
    assert explicit / pair >= 4
    assert pair > 1.25 * single
    assert explicit > 5.25 * single


def test_the_attention_of_deeplab_sees_fine_and_coarse_features_side_by_side() -> None:
    with torch.device("meta"):
        pair, explicit = (preset(f"hmsa_deeplabv3plus_resnet50{form}").build(19) for form in ("", "_explicit"))
    assert isinstance(pair, HMSA)
    assert isinstance(explicit, ExplicitScales)
    assert pair.attention.conv0.conv.in_channels == 256 + 48
    assert explicit.attention.get_parameter("0.weight").shape == (512, 3 * (256 + 48), 3, 3)


@pytest.mark.parametrize(
    "name", ["pspnet_mobilenetv2", "hrnet_ocr_w18_small", "fcn_resnet50", "deeplabv3_resnet50", "fastfcn_resnet50_enc"]
)
def test_any_network_can_be_inside(name: str) -> None:
    with torch.device("meta"):
        model = HMSASpec(inner=preset(name)).build(K).train()
        output = model(torch.empty(2, 3, 64, 64))
    assert output.logits.shape == (2, K, 64 // model.output_stride, 64 // model.output_stride)
    assert {LOW, HIGH} <= set(output.extras)


def test_the_inner_network_can_be_changed_by_preset_name_or_table() -> None:
    for inner in ("pspnet_resnet50", {"preset": "pspnet_resnet50"}):
        spec = change_spec(preset("hmsa_w48"), {"inner": inner})
        assert isinstance(spec, HMSASpec)
        assert spec.inner == preset("pspnet_resnet50")
    narrow = change_spec(preset("hmsa_w48"), {"inner": {"backbone": {"name": "hrnet_w18"}}})
    assert isinstance(narrow, HMSASpec)
    assert narrow.inner == preset("hrnet_ocr_w18")


def test_the_backbone_of_an_inner_network_has_its_own_learning_rate_and_its_auxiliary_head_its_own_count() -> None:
    inner = PSPNetSpec.model_validate({**preset("pspnet_resnet10t_narrow").model_dump()})
    model = HMSASpec(inner=inner).build(K)
    groups = parameter_groups(model, OptimizerSpec(lr=1.0, backbone_lr_factor=0.1))
    assert sorted(group["lr"] for group in groups) == [0.1, 1.0]
    aux = describe_model(HMSASpec(inner=inner), num_classes=K, size=(64, 64)).params_aux
    assert aux == describe_model(inner, num_classes=K, size=(64, 64)).params_aux > 0


def test_no_parameter_has_two_names() -> None:
    model = create_model(HMSASpec(inner=preset("pspnet_resnet10t_narrow")), num_classes=K)
    names = list(model.state_dict())
    assert len(names) == len(set(names))
    assert {name.partition(".")[0] for name in names} == {"inner", "attention"}
    assert all(name.startswith("inner.") for name in model.class_dependent)


def modules_watched(model: HMSA) -> Iterator[nn.Module]:
    yield from model._watched


def test_a_copy_watches_its_own_classifier() -> None:
    model, inner = make_hmsa()
    twin = copy.deepcopy(model)
    (watched,) = modules_watched(twin)
    assert watched is twin.inner.get_submodule("classifier")
    assert watched is not inner.classifier
