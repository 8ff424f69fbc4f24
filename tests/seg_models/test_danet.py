"""DANet's own parts against references written from the formulas, the pitfalls of its sheet, and each option."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from seg_models import describe_model
from seg_models.architectures.danet import ChannelAttention, DANet, DANetSpec, PositionAttention
from seg_models.backbones.dilation import set_multi_grid
from seg_models.backbones.timm_backbone import BackboneSpec
from seg_models.export import FullSizeScores
from seg_models.models import change_spec
from seg_models.outputs import SemanticTarget
from seg_models.parts.heads import Classifier
from seg_models.parts.layers import ConvNormAct
from seg_models.recipes import resolve_recipe
from seg_models.spec import preset

VOID = 255
NARROW = BackboneSpec(name="resnet10t", output_stride=8, model_kwargs={"channels": (16, 32, 64, 128), "stem_width": 16})


def build(**changes: object) -> DANet:
    """A narrow DANet whose attentions are switched on."""
    torch.manual_seed(0)
    model = change_spec(DANetSpec(backbone=NARROW, channels=16, aux_channels=8), changes).build(3)
    assert isinstance(model, DANet)
    for branch in (model.position, model.channel):
        assert isinstance(branch.attention, PositionAttention | ChannelAttention)
        nn.init.constant_(branch.attention.gamma, 0.5)
    return model


def make_images(n: int = 2, side: int = 40) -> Tensor:
    return torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(n))


def position_pairs(attention: PositionAttention, features: Tensor) -> Tensor:
    """The published formulation: S = softmax over the rows of Qᵀ·K, gathered = V·Sᵀ."""
    queries, keys, values = (conv(features).flatten(2) for conv in (attention.query, attention.key, attention.value))
    weights = torch.softmax(torch.bmm(queries.transpose(1, 2), keys), dim=-1)
    return features + attention.gamma * torch.bmm(values, weights.transpose(1, 2)).view_as(features)


def channel_loops(features: Tensor, *, gamma: float, like: bool) -> Tensor:
    """x_c + γ Σ_d w_cd x_d with w = softmax(max − E) or softmax(E), one pair of channels at a time, in float64."""
    maps = features.double().flatten(2)
    out = maps.clone()
    for n in range(maps.shape[0]):
        for c in range(maps.shape[1]):
            products = torch.tensor([float(maps[n, c] @ other) for other in maps[n]], dtype=torch.float64)
            weights = torch.softmax(products if like else products.max() - products, dim=0)
            for d in range(maps.shape[1]):
                out[n, c] += gamma * weights[d] * maps[n, d]
    return out.view_as(features)


def test_position_attention_equals_the_published_formulation() -> None:
    torch.manual_seed(1)
    attention, features = PositionAttention(16, key_channels=2), torch.randn(2, 16, 5, 7, requires_grad=True)
    nn.init.constant_(attention.gamma, 0.7)
    found, expected = attention(features), position_pairs(attention, features)
    torch.testing.assert_close(found, expected)
    inputs = (features, *attention.parameters())
    for own, other in zip(
        torch.autograd.grad(found.square().sum(), inputs),
        torch.autograd.grad(expected.square().sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("like", [False, True])
def test_channel_attention_equals_loops_over_pairs_of_channels(like: bool) -> None:
    features = torch.randn(2, 6, 3, 4, generator=torch.Generator().manual_seed(2))
    attention = ChannelAttention(like=like)
    nn.init.constant_(attention.gamma, 0.7)
    expected = channel_loops(features, gamma=0.7, like=like)
    torch.testing.assert_close(attention(features).double(), expected, rtol=1e-4, atol=1e-5, check_dtype=False)


def test_a_channel_gathers_from_those_that_are_unlike_it() -> None:
    """Of orthogonal channels of norm 1000 each takes the mean of the others, whose products with it are 0."""
    features = torch.eye(4).mul(1000**0.5).view(1, 4, 2, 2)
    attention = ChannelAttention()
    nn.init.ones_(attention.gamma)
    others = (features.sum(dim=1, keepdim=True) - features) / 3
    torch.testing.assert_close(attention(features) - features, others)
    like = ChannelAttention(like=True)
    nn.init.ones_(like.gamma)
    torch.testing.assert_close(like(features), 2 * features)


def test_weights_of_channels_sum_to_one() -> None:
    attention = ChannelAttention()
    nn.init.ones_(attention.gamma)
    row = torch.randn(1, 1, 4, 4).expand(1, 5, 4, 4).contiguous()
    torch.testing.assert_close(attention(row), 2 * row)


def test_channel_products_are_exact_under_autocast() -> None:
    features = 4 + torch.randn(1, 8, 24, 24, generator=torch.Generator().manual_seed(3))
    attention = ChannelAttention()
    nn.init.ones_(attention.gamma)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = attention(features)
    torch.testing.assert_close(found, attention(features))


def test_both_attentions_begin_as_the_identity() -> None:
    features = torch.randn(2, 16, 4, 5)
    assert torch.equal(PositionAttention(16, key_channels=2)(features), features)
    assert torch.equal(ChannelAttention()(features), features)


def plain_conv(layer: ConvNormAct, features: Tensor) -> Tensor:
    conv, norm = layer.conv, layer.norm
    out = functional.conv2d(features, conv.weight, padding=1)
    return functional.relu(
        functional.batch_norm(out, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=1e-5)
    )


def test_the_head_equals_a_plain_composition() -> None:
    model = build().eval()
    with torch.no_grad():
        images = make_images()
        features = model.backbone(images)[-1]
        position, channel = plain_conv(model.position.reduce, features), plain_conv(model.channel.reduce, features)
        assert isinstance(model.position.attention, PositionAttention)
        position = plain_conv(model.position.refine, position_pairs(model.position.attention, position))
        gathered = channel_loops(channel, gamma=0.5, like=False).float()
        total = position + plain_conv(model.channel.refine, gathered)
        conv = model.classifier.conv
        expected = functional.conv2d(total, conv.weight, conv.bias)
        torch.testing.assert_close(model(images).logits, expected, rtol=1e-4, atol=1e-5)


def test_training_has_four_scores_and_prediction_one() -> None:
    model = build()
    output = model.train()(make_images())
    assert set(output.extras) == {"position", "channel"}
    assert {tuple(scores.shape) for scores in (output.logits, *output.aux, *output.extras.values())} == {(2, 3, 5, 5)}
    assert len(output.aux) == 1
    output = model.eval()(make_images())
    assert (output.aux, dict(output.extras)) == ((), {})


def test_the_loss_is_a_cross_entropy_of_each_score_at_full_size() -> None:
    model = build(dropout=0.0).train()
    output, labels = model(make_images()), torch.randint(0, 3, (2, 40, 40), generator=torch.Generator().manual_seed(5))
    labels[0, :7] = VOID
    losses = model.loss(output, SemanticTarget(labels, VOID))
    names = ("ce", "position_ce", "channel_ce", "aux_ce")
    scores = dict(zip(names, (output.logits, *output.extras.values(), *output.aux), strict=True))
    assert list(losses) == list(scores)
    for name, logits in scores.items():
        large = functional.interpolate(logits, size=(40, 40), mode="bilinear", align_corners=False)
        torch.testing.assert_close(losses[name], functional.cross_entropy(large, labels, ignore_index=VOID))


def test_a_branch_classifier_sees_its_own_branch_alone() -> None:
    model = build(dropout=0.0, aux_channels=None).train()
    output = model(make_images())
    for name, other in (("position", "channel"), ("channel", "position")):
        own = next(iter(model.get_submodule(name).parameters()))
        foreign = next(iter(model.get_submodule(other).parameters()))
        gradients = torch.autograd.grad(output.extras[name].sum(), (own, foreign), retain_graph=True, allow_unused=True)
        assert gradients[0] is not None
        assert gradients[1] is None
    losses = model.loss(output, SemanticTarget(torch.zeros(2, 40, 40, dtype=torch.int64), VOID))
    assert list(losses) == ["ce", "position_ce", "channel_ce"]


def test_whole_channels_are_dropped_before_a_classifier() -> None:
    torch.manual_seed(0)
    classifier = Classifier(64, 2, dropout=0.5).train()
    dropped = classifier.dropout(torch.ones(1, 64, 3, 3))
    assert {float(channel.sum()) for channel in dropped[0]} == {0.0, 18.0}


def dilations(model: nn.Module) -> list[tuple[int, ...]]:
    """Of the 3×3 convolutions of each stage."""
    network = model.get_submodule("backbone.network")
    stages = (network.get_submodule(f"layer{number}") for number in (1, 2, 3, 4))
    return [
        tuple(m.dilation[0] for m in stage.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3))
        for stage in stages
    ]


def test_stages_are_dilated_as_the_sheet_says() -> None:
    with torch.device("meta"):
        plain, official = (preset(name).build(2) for name in ("danet_resnet50", "danet_resnet50_official"))
    assert dilations(plain) == [(1,) * 3, (1,) * 4, (1, 2, 2, 2, 2, 2), (2, 4, 4)]
    assert dilations(official) == [(1,) * 3, (1,) * 4, (1, 2, 2, 2, 2, 2), (4, 8, 16)]


def test_a_multi_grid_is_repeated_and_keeps_sizes_and_weights() -> None:
    plain = BackboneSpec(name="resnet26", output_stride=16).build().eval()
    for norm in plain.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.ones_(norm.weight)  # residual branches begin switched off
    gridded = BackboneSpec(name="resnet26", output_stride=16).build().eval()
    gridded.load_state_dict(plain.state_dict())
    set_multi_grid(gridded, (3,))
    images = make_images(1, 64)
    with torch.no_grad():
        one, other = plain(images), gridded(images)
    assert [level.shape for level in one] == [level.shape for level in other]
    assert all(torch.equal(a, b) for a, b in zip(one[:-1], other[:-1], strict=True))
    assert not torch.allclose(one[-1], other[-1])


def test_a_dilation_of_the_multi_grid_reaches_as_far_as_it_says() -> None:
    """A change of one cell moves what lies `dilation` cells away and nothing in between."""
    backbone = BackboneSpec(name="resnet26", output_stride=8).build()
    set_multi_grid(backbone, (5, 1))
    conv = backbone.network.get_submodule("layer4.0.conv2")
    assert isinstance(conv, nn.Conv2d)
    features = torch.zeros(1, conv.in_channels, 1, 13)
    features[..., 6] = 1
    with torch.no_grad():
        columns = conv(features).abs().sum(dim=(0, 1, 2)).nonzero().flatten().tolist()
    assert columns == [1, 6, 11]


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        (BackboneSpec(name="mobilenetv2_035", output_stride=8), "needs a backbone with stages layer1 to layer4"),
        (BackboneSpec(name="resnet10t"), "whose last stage is dilated: set output_stride to 8 or 16, found 32"),
    ],
)
def test_a_multi_grid_that_cannot_be_is_refused(backbone: BackboneSpec, message: str) -> None:
    with pytest.raises(ValueError, match=rf"multi_grid \(4, 8\) .*{message}"):
        DANetSpec(backbone=backbone, multi_grid=(4, 8)).build(2)


def test_a_dilation_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="multi_grid"):
        DANetSpec(multi_grid=(4, 0))


# specs: DANet section 5.1, in millions: with mmsegmentation's auxiliary head.
MILLIONS = [
    ("danet_resnet50_official", 19, 49.827),
    ("danet_resnet50", 19, 49.847),
    ("danet_resnet101_official", 19, 68.819),
    ("danet_resnet101", 19, 68.839),
    ("danet_resnet50", 150, 50.082),
    ("danet_resnet101", 150, 69.074),
]


@pytest.mark.parametrize(("name", "num_classes", "millions"), MILLIONS)
def test_counts_with_the_auxiliary_head_are_those_of_the_sheet(name: str, num_classes: int, millions: float) -> None:
    spec = change_spec(preset(name), {"aux_channels": 256})
    assert round(describe_model(spec, num_classes=num_classes, size=(64, 64)).params / 1e6, 3) == millions


@pytest.mark.parametrize(("num_classes", "expected"), [(19, 23_954_619), (59, 24_016_179), (171, 24_188_547)])
def test_the_three_classifiers_and_both_branches_have_the_count_of_the_sheet(num_classes: int, expected: int) -> None:
    with torch.device("meta"):
        model = preset("danet_resnet50_official").build(num_classes)
    head = [value.numel() for name, value in model.named_parameters() if not name.startswith("backbone.")]
    assert sum(head) == expected


def test_an_exported_program_of_many_blocks_gives_equal_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seg_models.parts.attention.CPU_BLOCK_ELEMENTS", 2 * 25)  # two of 25 cells at a time
    network, images = FullSizeScores(build().eval()), make_images(1)
    exported = torch.export.export(network, (images,), strict=False)
    with torch.no_grad():
        torch.testing.assert_close(exported.module()(images), network(images), rtol=1e-4, atol=1e-5)
    softmaxes = [node for node in exported.graph.nodes if "softmax" in str(node.target)]
    assert 4 < len(softmaxes) <= 17


def test_the_released_models_recipe_trains_the_backbone_at_a_tenth() -> None:
    recipe = resolve_recipe("danet_resnet101_official_cityscapes")
    assert isinstance(recipe.model, DANetSpec)
    assert (recipe.model.multi_grid, recipe.model.aux_channels) == ((4, 8, 16), None)
    assert (recipe.optimizer.lr, recipe.optimizer.head_lr_factor) == (0.003, 10.0)
    assert (recipe.augment.crop, recipe.global_batch, recipe.steps) == ((768, 768), 8, 89_040)
