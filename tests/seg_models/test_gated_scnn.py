"""Gated-SCNN against its formulas: gate, forward pass, losses, options, and the released code's ways."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional

from seg_models import create_model, describe_model
from seg_models.architectures.gated_scnn import (
    PRESETS,
    EdgePyramid,
    GatedConv,
    GatedSCNN,
    GatedSCNNSpec,
    ShapeStream,
)
from seg_models.backbones.timm_backbone import BackboneSpec
from seg_models.outputs import SemanticOutput, SemanticTarget
from seg_models.parts.dual_task import image_class_weights, semantic_to_boundary_loss
from seg_models.parts.edges import canny
from seg_models.recipes import resolve_recipe

K, VOID = 4, 255
NARROW = BackboneSpec(
    name="wideresnet38",
    output_stride=8,
    model_kwargs={"width": 1 / 16, "depths": [1, 1, 1, 1, 1, 1], "dropout": [0, 0]},
)


def build(**changes: Any) -> GatedSCNN:
    torch.manual_seed(0)
    settings = {"shape_channels": (6, 4, 3), "context_channels": 8, "fine_channels": 5, "head_channels": 8}
    model = GatedSCNNSpec.model_validate({"backbone": NARROW, **settings, **changes}).build(K)
    for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, std=0.1)
        assert norm.running_var is not None
        nn.init.uniform_(norm.running_var, 0.5, 1.5)
    return model


def pictures(n: int = 1, height: int = 37, width: int = 50) -> Tensor:
    coarse = torch.rand(n, 3, height // 6 + 1, width // 6 + 1, generator=torch.Generator().manual_seed(2))
    images = functional.interpolate(255 * coarse, size=(height, width), mode="bilinear")
    return images.to(torch.uint8)


def target(n: int = 2, size: int = 32) -> SemanticTarget:
    labels = torch.zeros(n, size, size, dtype=torch.int64)
    labels[:, :, size // 2 :] = 1
    labels[:, 20:, 5:12] = 3
    labels[0, :4] = VOID
    return SemanticTarget(labels, VOID)


def scores(n: int = 2, size: int = 32) -> SemanticOutput:
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(n, K, size // 2, size // 2, generator=generator)
    return SemanticOutput(logits, extras={"edges": 3 * torch.randn(n, 1, size, size, generator=generator)})


# Counts of the parts (specs: Gated-SCNN sections 7 and 11).


def count(module: nn.Module) -> int:
    return sum(value.numel() for value in module.parameters())


def test_every_part_has_the_parameters_of_the_sheet() -> None:
    with torch.device("meta"):
        model = PRESETS["gated_scnn_wideresnet38_official"].build(19)
    assert isinstance(model, GatedSCNN)
    assert isinstance(model.shape, ShapeStream)
    assert isinstance(model.boundary, nn.Module)
    assert count(model.backbone) == 105_062_720
    assert count(model.shape) + count(model.boundary) + count(model.unused_side) == 107_950
    assert count(model.unused_side) == 65
    assert count(model.pyramid) + count(model.decoder) == 32_107_520
    assert count(model) == 137_278_190


@pytest.mark.parametrize(
    ("backbone", "millions"),
    [("resnet50", 40.524), ("resnet50_v1c", 40.543), ("resnet101", 59.516), ("resnet101_v1c", 59.535)],
)
def test_resnets_have_the_millions_of_the_sheet(backbone: str, millions: float) -> None:
    info = describe_model(f"gated_scnn_{backbone}", num_classes=19, size=(64, 64))
    assert round(info.params_main / 1e6, 3) == millions


@pytest.mark.parametrize(("size", "gmac"), [((512, 512), 26.85), ((1024, 2048), 214.78)])
def test_the_shape_stream_has_the_multiply_adds_of_the_sheet(size: tuple[int, int], gmac: float) -> None:
    """The network with and without it; its branch of the pyramid is left out of the sheet's figure."""
    spec = PRESETS["gated_scnn_wideresnet38"]
    whole = describe_model(spec, num_classes=19, size=size).gmac
    baseline = describe_model(spec.model_copy(update={"edge_input": "none"}), num_classes=19, size=size).gmac
    cells = size[0] * size[1] / 64
    assert whole - baseline - cells * (256 + 256 * 256) / 1e9 == pytest.approx(gmac, rel=0.001)


# The gate, and the forward pass in torch functions.


def gate_pixel(gate: GatedConv, features: list[float], side: float) -> list[float]:
    """Equations 1 and 2 for one pixel, channel by channel, in eval mode."""
    state = {name: value.tolist() for name, value in gate.state_dict().items()}
    joined = [*features, side]
    normed = [
        (x - state["norm.running_mean"][c]) / (state["norm.running_var"][c] + 1e-5) ** 0.5 * state["norm.weight"][c]
        + state["norm.bias"][c]
        for c, x in enumerate(joined)
    ]
    hidden = [
        max(0.0, sum(row[c][0][0] * x for c, x in enumerate(normed)) + bias)
        for row, bias in zip(state["hidden.weight"], state["hidden.bias"], strict=True)
    ]
    raw = sum(state["gate.conv.weight"][0][c][0][0] * x for c, x in enumerate(hidden)) + state["gate.conv.bias"][0]
    scale = state["gate.norm.weight"][0] / (state["gate.norm.running_var"][0] + 1e-5) ** 0.5
    raw = (raw - state["gate.norm.running_mean"][0]) * scale + state["gate.norm.bias"][0]
    alpha = 1 / (1 + float(torch.tensor(-raw).exp()))
    return [sum(row[c][0][0] * x * (1 + alpha) for c, x in enumerate(features)) for row in state["conv.weight"]]


def test_a_gated_convolution_is_the_papers_pixel_by_pixel() -> None:
    model = build().eval()
    assert isinstance(model.shape, ShapeStream)
    gate = model.shape.stages[1].get_submodule("gate")
    assert isinstance(gate, GatedConv)
    features, side = torch.randn(1, 4, 3, 5), torch.randn(1, 1, 3, 5)
    with torch.no_grad():
        found = gate(features, side)
    for i in range(3):
        for j in range(5):
            expected = gate_pixel(gate, features[0, :, i, j].tolist(), float(side[0, 0, i, j]))
            assert found[0, :, i, j].tolist() == pytest.approx(expected, abs=1e-5)


def test_a_closed_gate_is_a_plain_convolution_and_an_open_one_doubles_it() -> None:
    gate, features, side = GatedConv(6).eval(), torch.randn(2, 6, 4, 4), torch.randn(2, 1, 4, 4)
    for bias, factor in ((-1e4, 1.0), (1e4, 2.0)):
        nn.init.constant_(gate.gate.norm.bias, bias)
        torch.testing.assert_close(gate(features, side), factor * gate.conv(features))


def big(x: Tensor, size: Any) -> Tensor:
    return functional.interpolate(x, size=size, mode="bilinear", align_corners=True)


def plain_forward(model: GatedSCNN, images: Tensor, edges_of_image: Tensor) -> tuple[Tensor, Tensor]:
    """Scores and boundary probabilities, step after step as the sheet lists them (section 1)."""
    size = images.shape[-2:]
    m1, m2, m3, m4, m7 = model.backbone(images)
    assert isinstance(model.shape, ShapeStream)
    cs = m1
    for stage, level in zip(model.shape.stages, (m3, m4, m7), strict=True):
        part = stage.get_submodule
        side = big(functional.conv2d(level, part("side").conv.weight, part("side").conv.bias), size)  # type: ignore[union-attr,arg-type]
        cs = functional.relu(cs + part("block.conv2")(part("block.conv1")(cs)))
        cs = part("gate")(part("reduce")(cs), side)
    edge_out = torch.sigmoid(model.shape.fuse(cs))
    acts = edge_out
    if model.boundary is not None:
        acts = torch.sigmoid(model.boundary.mix(torch.cat((edge_out, edges_of_image), 1)))
    pyramid, decoder = model.pyramid, model.decoder
    assert pyramid.edge is not None
    pooled = pyramid.image(functional.adaptive_avg_pool2d(m7, 1))
    branches = [big(pooled, m7.shape[-2:]), pyramid.edge(big(acts, m7.shape[-2:])), pyramid.local(m7)]
    context = decoder.context(torch.cat([*branches, *(branch(m7) for branch in pyramid.dilated)], 1))
    joined = torch.cat([decoder.fine(m2), big(context, m2.shape[-2:])], 1)
    return decoder.classifier(decoder.conv2(decoder.conv1(joined))), edge_out


@pytest.mark.parametrize("edge_input", ["shape", "shape_and_gradient"])
@pytest.mark.parametrize("official_compat", [False, True])
def test_the_forward_pass_is_the_sheets(edge_input: str, official_compat: bool) -> None:
    model, images = build(edge_input=edge_input, official_compat=official_compat).eval(), pictures()
    edges = canny(images)
    if official_compat:
        wrapped = torch.from_numpy(model.backbone.normalize(images).numpy().astype("int64").astype("uint8"))
        edges = 255 * canny(wrapped)
    assert 0 < edges.mean() < 0.9 * edges.max()
    with torch.no_grad():
        expected, _ = plain_forward(model, images, edges)
        torch.testing.assert_close(model(images).logits, expected, rtol=1e-4, atol=1e-5)


def test_the_images_edges_change_the_scores() -> None:
    model, images = build().eval(), pictures()
    with torch.no_grad():
        with_edges, _ = plain_forward(model, images, canny(images))
        without, _ = plain_forward(model, images, torch.zeros_like(canny(images)))
    assert (with_edges - without).abs().max() > 1e-4


def test_the_baseline_has_neither_shape_stream_nor_boundary_loss() -> None:
    model = build(edge_input="none").train()
    output = model(pictures(2, 32, 32))
    assert model.shape is None
    assert model.pyramid.edge is None
    assert list(model.loss(output, target())) == ["ce"]


@pytest.mark.parametrize("name", ["resnet10t", "mobilenetv2_035"])
def test_any_network_of_five_levels_is_a_class_stream(name: str) -> None:
    model = build(backbone=BackboneSpec(name=name, output_stride=8)).eval()
    with torch.no_grad():
        assert model(pictures(1, 32, 64)).logits.shape == (1, K, 32 // model.output_stride, 64 // model.output_stride)


def test_logits_have_the_stride_of_the_finer_features() -> None:
    assert build().output_stride == 2
    assert build(backbone=BackboneSpec(name="resnet10t", output_stride=8)).output_stride == 4


# Losses.


def losses(model: GatedSCNN, output: SemanticOutput, wanted: SemanticTarget) -> dict[str, float]:
    torch.manual_seed(11)
    return {name: float(value.detach()) for name, value in model.loss(output, wanted).items()}


def test_losses_are_named_and_weighted() -> None:
    output, wanted = scores(), target()
    whole = losses(build(), output, wanted)
    assert list(whole) == ["ce", "edge", "attention", "boundary"]
    halved = losses(build(dual_task={"edge": 10, "attention": 0.5, "boundary": 0.5}), output, wanted)
    assert halved["ce"] == whole["ce"]
    assert [halved[name] for name in list(whole)[1:]] == pytest.approx([whole[name] / 2 for name in list(whole)[1:]])
    assert list(losses(build(dual_task={"edge": 0, "boundary": 0}), output, wanted)) == ["ce", "attention"]


def per_image_ce(logits: Tensor, labels: Tensor) -> list[Tensor]:
    upsampled = functional.interpolate(logits, size=labels.shape[1:], mode="bilinear")
    return [
        functional.cross_entropy(
            upsampled[n : n + 1],
            labels[n : n + 1],
            image_class_weights(labels[n], num_classes=K, void=VOID),
            ignore_index=VOID,
        )
        for n in range(len(labels))
    ]


def test_the_released_code_sums_images_where_the_clean_form_averages() -> None:
    output, wanted = scores(), target()
    expected = torch.stack(per_image_ce(output.logits, wanted.labels))
    assert losses(build(), output, wanted)["ce"] == pytest.approx(float(expected.mean()), rel=1e-5)
    official = build(official_compat=True)
    assert losses(official, output, wanted)["ce"] == pytest.approx(float(expected.sum()), rel=1e-5)


def test_attention_is_the_cross_entropy_of_pixels_called_a_boundary() -> None:
    output, wanted = scores(), target()
    seen = torch.sigmoid(output.extras["edges"][:, 0]) > 0.8
    expected = torch.stack(per_image_ce(output.logits, wanted.labels.where(seen, VOID))).mean()
    assert losses(build(), output, wanted)["attention"] == pytest.approx(float(expected), rel=1e-5)
    nowhere = output._replace(extras={"edges": torch.full_like(output.extras["edges"], -5)})
    assert losses(build(), nowhere, wanted)["attention"] == 0


def test_the_released_edge_loss_takes_probabilities_for_logits_and_skips_the_first_class() -> None:
    output = scores()
    labels = torch.zeros(2, 32, 32, dtype=torch.int64)
    labels[:, :10] = VOID
    wanted = SemanticTarget(labels, VOID)
    assert losses(build(official_compat=True), output, wanted)["edge"] == 0  # road and void: no edges, so no loss
    labels[:, 20:] = 2
    edges = torch.zeros(2, 32, 32)
    edges[:, 18:22] = 1
    edges[:, 20:, :2] = edges[:, 20:, -2:] = edges[:, -2:] = 1
    share = edges.mean()
    weights = torch.where(edges == 1, 1 - share, share)
    twice = torch.sigmoid(output.extras["edges"][:, 0])
    expected = 20 * functional.binary_cross_entropy_with_logits(twice, edges, weights)
    assert losses(build(official_compat=True), output, wanted)["edge"] == pytest.approx(float(expected), rel=1e-4)


def test_the_clean_edge_loss_takes_logits_all_classes_and_no_void() -> None:
    output, wanted = scores(), target()
    plain = losses(build(), output, wanted)["edge"]
    flipped = output.extras["edges"].clone()
    flipped[0, :, :4] = 100.0
    assert losses(build(), output._replace(extras={"edges": flipped}), wanted)["edge"] == pytest.approx(plain)
    road = SemanticTarget(torch.zeros(2, 32, 32, dtype=torch.int64), VOID)
    assert losses(build(), output, road)["edge"] > 0  # its border with the outside


def test_the_boundary_loss_is_drawn_in_training_only() -> None:
    output, wanted = scores(), target()
    model = build().eval()
    still = {float(model.loss(output, wanted)["boundary"]) for _ in range(3)}
    assert still == {float(semantic_to_boundary_loss(output.logits, wanted.labels, void=VOID, noisy=False))}
    model.train()
    assert len({float(model.loss(output, wanted)["boundary"]) for _ in range(3)}) == 3


def test_the_released_boundary_loss_has_its_own_temperature_and_maps() -> None:
    output, wanted = scores(), target()
    expected = semantic_to_boundary_loss(
        output.logits, wanted.labels, void=VOID, temperature=0.5, noisy=False, released=True
    )
    found = build(official_compat=True).eval().loss(output, wanted)["boundary"]
    assert float(found) == pytest.approx(float(expected))
    assert float(found) != pytest.approx(float(build().eval().loss(output, wanted)["boundary"]), rel=0.01)


# What is refused, and recipes.


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backbone": BackboneSpec(name="convnext_atto")}, "'convnext_atto' has 4 levels, Gated-SCNN takes 5"),
        ({"edge_input": "none", "dual_task": {"edge": 1}}, "`dual_task` has no effect"),
        ({"edge_input": "canny"}, "shape_and_gradient"),
        ({"dual_task": {"edges": 1}}, "edges"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, ValidationError), match=message):
        build(**settings)


def test_one_image_in_training_is_refused_with_a_reason() -> None:
    pyramid = EdgePyramid(4, 3, rates=(2,), with_edges=False).train()
    with pytest.raises(ValueError, match="at least 2 images per worker"):
        pyramid(torch.randn(1, 4, 5, 5), None)
    assert pyramid(torch.randn(2, 4, 5, 5), None).shape == (2, 9, 5, 5)


@pytest.mark.parametrize("name", ["gated_scnn_wideresnet38_cityscapes", "gated_scnn_wideresnet38_cityscapes_official"])
def test_two_steps_of_a_published_recipe_in_a_reduced_form_lower_its_loss(name: str) -> None:
    reduced = {"backbone": NARROW.model_dump(), "context_channels": 8, "head_channels": 16}
    recipe = resolve_recipe({"base": name, "model": reduced})
    torch.manual_seed(0)
    model, images, wanted = recipe.model.build(K).train(), pictures(2, 32, 32), target()
    trained = [value for value in model.parameters() if value.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=recipe.optimizer.lr, momentum=recipe.optimizer.momentum)
    seen = []
    for _ in range(3):
        loss = torch.stack(list(model.loss(model(images), wanted).values())).sum()
        seen.append(loss.item())
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    assert seen[-1] < seen[0]


def test_a_preset_is_made_by_name() -> None:
    model = create_model("gated_scnn_resnet50", num_classes=3, backbone={"name": "resnet10t"}, context_channels=8)
    assert model.num_classes == 3


def test_mixed_precision_gives_nearly_the_losses_of_full_precision() -> None:
    model, images, wanted = build().train(), pictures(2, 32, 32), target()
    plain = losses(model, model(images), wanted)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = losses(model, model(images), wanted)
    assert mixed == pytest.approx(plain, rel=0.1, abs=0.05)
