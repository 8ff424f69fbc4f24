"""CCNet: criss-cross attention against loops over row and column, its losses against loops over classes and pixels."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from seg_models import create_model, describe_model
from seg_models.architectures.ccnet import (
    CategoryConsistency,
    CCNetSpec,
    ConsistencySpec,
    CrissCrossAttention,
    NonLocalAttention,
)
from seg_models.backbones.timm_backbone import BackboneSpec
from seg_models.parts.category_consistency import category_terms, labels_at_cells
from seg_models.recipes import OhemSpec, resolve_recipe
from seg_models.spec import preset

VOID = 99
TINY = CCNetSpec(backbone=BackboneSpec(name="mobilenetv2_035", output_stride=16), channels=16, aux_channels=16)


def attention(
    channels: int = 16, *, seed: int = 0, gamma: float = 0.7, dtype: torch.dtype = torch.float64, **settings: Any
) -> CrissCrossAttention:
    torch.manual_seed(seed)
    block = CrissCrossAttention(channels, **settings)
    nn.init.constant_(block.gamma, gamma)
    return block.to(dtype)


def features_of(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=dtype)


def neighbours(place: tuple[int, ...], sizes: tuple[int, ...], masked_axes: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Every position on a line through `place`, axis after axis; without itself on masked axes."""
    found = []
    for axis, size in enumerate(sizes):
        for i in range(size):
            if not (i == place[axis] and axis in masked_axes):
                found.append((*place[:axis], i, *place[axis + 1 :]))
    return found


def by_loops(block: CrissCrossAttention, features: Tensor) -> Tensor:
    """The formula, one position at a time."""
    queries, keys, values = block.query(features), block.key(features), block.value(features)
    out = features.clone()
    for n in range(len(features)):
        for place in itertools.product(*(range(size) for size in features.shape[2:])):
            seen = neighbours(place, features.shape[2:], block.masked_axes)
            scores = torch.stack([queries[n][:, *place] @ keys[n][:, *i] for i in seen])
            shares = torch.softmax(scores, dim=0)
            gathered = torch.stack([p * values[n][:, *i] for p, i in zip(shares, seen, strict=True)]).sum(dim=0)
            here: Any = (n, slice(None), *place)
            out[here] += block.gamma * gathered
    return out


def gradients(block: nn.Module, features: Tensor, out: Tensor) -> list[Tensor]:
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
    return list(torch.autograd.grad((out * weights).sum(), [features, *block.parameters()]))


@pytest.mark.parametrize("shape", [(2, 16, 4, 5), (1, 16, 3, 1), (1, 16, 1, 4), (3, 16, 1, 1), (2, 16, 5, 2)])
@pytest.mark.parametrize("masked_axes", [(0,), ()])
def test_attention_and_its_gradients_are_those_of_loops_over_row_and_column(
    shape: tuple[int, ...], masked_axes: tuple[int, ...]
) -> None:
    block, features = attention(masked_axes=masked_axes), features_of(*shape).requires_grad_()
    expected, found = by_loops(block, features), block(features)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(
        gradients(block, features, found), gradients(block, features, expected), rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize("shape", [(2, 16, 2, 3, 4), (1, 16, 1, 3, 2), (1, 16, 3, 2, 1)])
@pytest.mark.parametrize("masked_axes", [None, (0,)])
def test_attention_in_a_volume_is_that_of_loops_over_three_axes(
    shape: tuple[int, ...], masked_axes: tuple[int, ...] | None
) -> None:
    block, features = attention(axes=3, masked_axes=masked_axes), features_of(*shape).requires_grad_()
    expected, found = by_loops(block, features), block(features)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(
        gradients(block, features, found), gradients(block, features, expected), rtol=1e-9, atol=1e-9
    )


def test_the_own_position_is_seen_once_unless_a_mask_says_otherwise() -> None:
    once, twice, volume, released = (
        len([place for place in neighbours((1,) * len(sizes), sizes, masked) if place == (1,) * len(sizes)])
        for sizes, masked in [
            ((4, 5), attention().masked_axes),
            ((4, 5), ()),
            ((4, 5, 6), attention(axes=3).masked_axes),
            ((4, 5, 6), (0,)),
        ]
    )
    assert (once, twice, volume, released) == (1, 2, 1, 2)


def test_torch_agrees_with_the_gradients_of_the_attention() -> None:
    block, features = attention(4), features_of(1, 4, 3, 2).requires_grad_()
    assert torch.autograd.gradcheck(block, (features,))


def test_row_and_column_share_one_softmax() -> None:
    """With equal scores every one of H + W - 1 positions has the same share; two softmaxes would give halves."""
    block, features = attention(gamma=1.0), features_of(1, 16, 2, 6)
    nn.init.zeros_(block.query.weight)
    nn.init.zeros_(block.query.bias)  # type: ignore[arg-type]
    values = block.value(features)
    cross = (values[..., 0, :].sum(dim=-1) + values[..., 1, 3]) / 7
    torch.testing.assert_close(block(features)[..., 0, 3] - features[..., 0, 3], cross)


def test_a_fresh_attention_changes_nothing() -> None:
    features = features_of(2, 16, 3, 4, dtype=torch.float32)
    assert torch.equal(CrissCrossAttention(16)(features), features)


def test_memory_format_changes_nothing_but_rounding() -> None:
    block, features = attention(dtype=torch.float32), features_of(2, 16, 6, 5, dtype=torch.float32)
    last = features.to(memory_format=torch.channels_last)
    torch.testing.assert_close(block(last), block(features))
    assert block(features).is_contiguous(memory_format=torch.channels_last)


def test_bfloat16_autocast_stays_near_and_gives_float32_gradients() -> None:
    block, features = attention(dtype=torch.float32), features_of(1, 16, 6, 5, dtype=torch.float32).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = block(features)
        found = torch.autograd.grad(low.float().sum(), [features, *block.parameters()])
    assert low.dtype == torch.bfloat16
    assert all(gradient.dtype == torch.float32 for gradient in found)
    torch.testing.assert_close(low.float(), block(features), rtol=0.05, atol=0.05)


def test_two_passes_reach_every_position_and_one_does_not() -> None:
    block, features = attention(), features_of(1, 16, 4, 5).requires_grad_()
    (once,) = torch.autograd.grad(block(features)[0, :, 0, 0].sum(), features)
    (twice,) = torch.autograd.grad(block(block(features))[0, :, 0, 0].sum(), features)
    reached = once[0].abs().sum(dim=0) > 0
    assert int(reached.sum()) == 4 + 5 - 1
    assert bool((twice[0].abs().sum(dim=0) > 0).all())


def test_a_mask_that_leaves_a_position_nothing_to_see_is_refused() -> None:
    for masked in [(1,), (0, 1), (2,)]:
        with pytest.raises(ValueError, match=r"masked_axes must be among \(0,\), found"):
            CrissCrossAttention(8, masked_axes=masked)


def test_non_local_attention_sees_every_position_once() -> None:
    torch.manual_seed(0)
    block, features = NonLocalAttention(16).double(), features_of(2, 16, 3, 4)
    nn.init.constant_(block.gamma, 0.7)
    places = list(itertools.product(range(3), range(4)))
    queries, keys, values = block.query(features), block.key(features), block.value(features)
    expected = features.clone()
    for n, (y, x) in itertools.product(range(2), places):
        scores = torch.stack([queries[n, :, y, x] @ keys[n, :, i, j] for i, j in places])
        shares = zip(torch.softmax(scores, dim=0), places, strict=True)
        expected[n, :, y, x] += block.gamma * sum(p * values[n, :, i, j] for p, (i, j) in shares)
    torch.testing.assert_close(block(features), expected)


@pytest.mark.parametrize(
    ("block", "times", "gflop"),
    [
        (CrissCrossAttention, 1, 8.27),
        (CrissCrossAttention, 2, 16.54),
        (CrissCrossAttention, 3, 24.8),
        (NonLocalAttention, 1, 108.15),
    ],
)
def test_a_block_has_the_parameters_and_the_flop_of_the_sheet(block: Any, times: int, gflop: float) -> None:
    """97×97×512 cells of a crop of 769 (specs: CCNet section 6)."""
    with torch.device("meta"):
        network = block(512).eval()
        features = torch.empty(1, 512, 97, 97)
    assert sum(value.numel() for value in network.parameters()) == 328_321
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        for _ in range(times):
            features = network(features)
    assert counter.get_total_flops() / 1e9 == pytest.approx(gflop, rel=0.002)


@pytest.mark.parametrize("times", [1, 2, 3])
def test_each_time_it_is_applied_costs_the_same_and_needs_no_weights(times: int) -> None:
    rows = [
        describe_model("ccnet_resnet101_official_r0", num_classes=19, size=(769, 769)),
        describe_model(
            preset("ccnet_resnet101_official").model_copy(update={"recurrence": times}), num_classes=19, size=(769, 769)
        ),
    ]
    assert rows[1].gmac - rows[0].gmac == pytest.approx(times * 8.27 / 2, rel=0.005)
    assert rows[1].params - rows[0].params == 328_321


def test_unshared_attention_has_weights_for_every_time() -> None:
    shared, unshared = (TINY.model_copy(update={"recurrence": 3, "shared": value}) for value in (True, False))
    counts = [sum(v.numel() for v in spec.build(3).attention.parameters()) for spec in (shared, unshared)]
    assert counts[1] == 3 * counts[0]


def dilations(stage: nn.Module) -> list[int]:
    return [conv.dilation[0] for conv in stage.modules() if isinstance(conv, nn.Conv2d) and conv.kernel_size == (3, 3)]


def test_the_released_backbone_has_one_dilation_a_stage_and_rounds_pooling_up() -> None:
    with torch.device("meta"):
        model = preset("ccnet_resnet101_official").build(19).eval()
        scores = model(torch.empty(1, 3, 64, 128)).logits
        crop = model(torch.empty(1, 3, 769, 769)).logits
        plain = preset("ccnet_resnet101").build(19).eval()
    assert scores.shape[2:] == (9, 17)
    assert crop.shape[2:] == (97, 97)
    found, smaller = (
        [dilations(net.get_submodule(f"backbone.network.layer{i}")) for i in (1, 2, 3, 4)] for net in (model, plain)
    )
    assert found == [[1] * 3, [1] * 4, [2] * 23, [4] * 3]
    assert [stage[0] for stage in smaller] == [1, 1, 1, 2]


def test_released_dilation_needs_a_resnet_of_bottlenecks() -> None:
    for name in ("mobilenetv2_035", "resnet18"):
        with pytest.raises(ValueError, match="released_dilation needs a ResNet of bottlenecks"):
            CCNetSpec(backbone=BackboneSpec(name=name, output_stride=16), released_dilation=True).build(2)


def test_the_official_model_subtracts_means_and_divides_by_nothing() -> None:
    spec = preset("ccnet_resnet101_official")
    assert isinstance(spec, CCNetSpec)
    small = spec.backbone.model_copy(update={"name": "resnet10t"}).build()
    white = small.normalize(torch.full((1, 3, 1, 1), 255, dtype=torch.uint8)).flatten()
    expected = [255 - mean for mean in (122.67891434, 116.66876762, 104.00698793)]
    assert white.tolist() == pytest.approx(expected, abs=1e-3)


def test_leaky_relu_is_behind_every_norm_of_the_heads() -> None:
    for activation, kind in (("relu", nn.ReLU), ("leaky_relu", nn.LeakyReLU)):
        model = TINY.model_copy(update={"activation": activation}).build(3)
        heads = [model.get_submodule(name) for name in ("reduce", "post", "head.conv", "aux_head.conv")]
        assert {type(head.get_submodule("act")) for head in heads} == {kind}
    assert [model.get_submodule("post.act").negative_slope] == [0.01]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recurrence": 1, "shared": False}, "shared = false has no effect with recurrence = 1"),
        ({"recurrence": 0, "own_once": False}, "own_once = false has no effect"),
        ({"context": "non_local", "own_once": False}, "own_once = false has no effect"),
        ({"recurrence": 0, "context": "non_local"}, "'non_local' has no effect with recurrence = 0"),
        ({"recurrence": 4}, "less than or equal to 3"),
    ],
)
def test_settings_without_effect_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_model("ccnet_resnet50", num_classes=2, **changes)


# Category-consistent loss.


def terms_by_loops(
    embedding: Tensor, labels: Tensor, *, near: float = 0.5, far: float = 1.5, piecewise: bool = True
) -> list[Tensor]:
    """The three terms as the paper writes them, class by class and cell by cell."""
    present = sorted(set(labels[labels != VOID].tolist()))
    cells = {c: [h for h, own in zip(embedding.movedim(1, -1).flatten(0, 2), labels.flatten(), strict=True) if own == c]
             for c in present}  # fmt: skip
    means = {c: torch.stack(cells[c]).mean(dim=0) for c in present}
    variance = torch.zeros(())
    for c in present:
        costs = []
        for h in cells[c]:
            d = (means[c] - h).norm()
            if d > far and piecewise:
                costs.append(d - far + (far - near) ** 2)
            else:
                costs.append((d - near) ** 2 if d > near else 0 * d)
        variance = variance + torch.stack(costs).mean() / len(present)
    distance = torch.zeros(())
    for a, b in itertools.permutations(present, 2):
        gap = (means[a] - means[b]).norm()
        if gap <= 2 * far:
            distance = distance + (2 * far - gap) ** 2 / (len(present) * (len(present) - 1))
    lengths = torch.stack([means[c].norm() for c in present]).mean()
    return [variance, distance, lengths]


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), classes=st.integers(1, 4), piecewise=st.booleans())
def test_category_terms_and_gradients_are_those_of_loops(seed: int, classes: int, piecewise: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    embedding = torch.randn(2, 3, 3, 4, generator=generator).requires_grad_()
    labels = torch.randint(0, classes, (2, 3, 4), generator=generator)
    labels[1, 0] = VOID
    found = torch.stack(category_terms(embedding, labels, void=VOID, near=0.5, far=1.5, piecewise=piecewise))
    expected = torch.stack(terms_by_loops(embedding, labels, piecewise=piecewise))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    weights = torch.tensor([1.0, 2.0, 3.0])
    slopes = [torch.autograd.grad((terms * weights).sum(), embedding)[0] for terms in (found, expected)]
    torch.testing.assert_close(*slopes, rtol=1e-4, atol=1e-6)
    assert torch.count_nonzero(slopes[0][1, :, 0]) == 0


def cost_and_slope(d: float, *, piecewise: bool = True) -> tuple[float, float]:
    """What the two cells of a class at distance d from their mean cost together, and its slope in d."""
    distance = torch.tensor(d, requires_grad=True)
    embedding = torch.stack([-distance, distance]).view(1, 1, 1, 2)
    labels = torch.zeros(1, 1, 2, dtype=torch.int64)
    variance, _, _ = category_terms(embedding, labels, void=VOID, near=0.5, far=1.5, piecewise=piecewise)
    (slope,) = torch.autograd.grad(variance, distance)
    return variance.item(), slope.item()


def test_the_piecewise_cost_is_continuous_and_its_slope_falls_from_two_to_one() -> None:
    assert cost_and_slope(0.4) == (0, 0)
    assert cost_and_slope(1.0) == pytest.approx((0.25, 1.0))
    assert cost_and_slope(1.5) == pytest.approx((1.0, 2.0))
    assert cost_and_slope(1.501) == pytest.approx((1.001, 1.0), rel=1e-4)
    assert cost_and_slope(3.5) == pytest.approx((3.0, 1.0))
    assert cost_and_slope(3.5, piecewise=False) == pytest.approx((9.0, 6.0))


def test_a_single_class_has_no_distance_and_no_class_costs_nothing() -> None:
    embedding = torch.randn(1, 3, 2, 2, requires_grad=True)
    one = category_terms(embedding, torch.zeros(1, 2, 2, dtype=torch.int64), void=VOID, near=0.5, far=1.5)
    assert one[1].item() == 0
    none = torch.stack(category_terms(embedding, torch.full((1, 2, 2), VOID), void=VOID, near=0.5, far=1.5))
    assert none.tolist() == [0, 0, 0]
    assert not torch.autograd.grad(none.sum(), embedding)[0].any()


def test_labels_are_taken_at_the_centres_of_cells() -> None:
    labels = torch.arange(63).view(1, 7, 9)
    assert labels_at_cells(labels, torch.Size([7, 9])).equal(labels)
    assert labels_at_cells(labels, torch.Size([1, 3])).tolist() == [[[3 * 9 + 1, 3 * 9 + 4, 3 * 9 + 7]]]


def test_the_consistent_loss_is_warmed_up_over_training_passes() -> None:
    torch.manual_seed(0)
    labels, features = torch.randint(0, 3, (1, 8, 8)), torch.randn(1, 4, 4, 4)
    found = []
    for warmup in (0, 4):
        loss = CategoryConsistency(4, settings=ConsistencySpec(channels=2, warmup=warmup)).train()
        nn.init.constant_(loss.embed.weight, 0.5)
        nn.init.zeros_(loss.embed.bias)  # type: ignore[arg-type]
        found.append([loss.loss(loss(features), labels, void=VOID).item() for _ in range(6)])
        loss.eval()(features)
        assert int(loss.passes) == 6
        assert "passes" in loss.state_dict()
    full = found[0][0]
    assert found[1] == pytest.approx([full / 4, full / 2, full * 3 / 4, full, full, full])


def test_the_consistent_loss_has_the_weights_of_the_settings() -> None:
    torch.manual_seed(0)
    labels, embedding = torch.randint(0, 3, (1, 4, 4)), torch.randn(1, 16, 4, 4)
    own = CategoryConsistency(8, settings=ConsistencySpec()).loss(embedding, labels, void=VOID)
    variance, distance, lengths = category_terms(embedding, labels, void=VOID, near=0.5, far=1.5)
    assert own.item() == pytest.approx((variance + distance + 0.001 * lengths).item())


# Recipes.


def test_recipes_hold_the_published_settings() -> None:
    official = resolve_recipe("ccnet_resnet101_cityscapes")
    assert (official.steps, official.global_batch, official.augment.crop) == (60_000, 8, (769, 769))
    assert official.augment.scale == (0.7, 2.1)
    assert (official.optimizer.lr, official.optimizer.weight_decay) == (0.01, 5e-4)
    mined, consistent = (resolve_recipe(f"ccnet_resnet101_cityscapes_{name}") for name in ("ohem", "consistent"))
    assert isinstance(consistent.model, CCNetSpec)
    assert mined.loss.ohem == OhemSpec(threshold=0.7, min_kept=50_000, sample_every=8)
    assert consistent.model.consistency == ConsistencySpec(warmup=3_000)
