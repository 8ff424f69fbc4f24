"""CFT against loops and plain compositions written from its formulas, its options and its counts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from seg_models.architectures.cft import CFT, CFTBlock, CFTSpec, FeedForward, TokenAttention
from seg_models.backbones.timm_backbone import BackboneSpec
from seg_models.outputs import SemanticTarget
from seg_models.parts.mask_losses import MaskLossSpec, mask_losses
from seg_models.parts.tokens import CategoryTokens, GridTokens, WindowTokens
from seg_models.recipes import resolve_recipe
from seg_models.spec import preset

TINY_MIT = BackboneSpec(
    name="mit_b0", model_kwargs={"widths": [8, 16, 20, 32], "depths": [1, 1, 1, 1], "drop_path_rate": 0.0}
)
VOID = 255


def tiny(**changes: Any) -> CFT:
    torch.manual_seed(0)
    model = CFTSpec(backbone=TINY_MIT, width=16, fusion_channels=16, **changes).build(5)
    assert isinstance(model, CFT)
    return model


def make_images(n: int = 2, height: int = 64, width: int = 64) -> Tensor:
    return torch.randint(0, 256, (n, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def tokens_by_loops(x: Tensor, embed: CategoryTokens) -> tuple[Tensor, Tensor]:
    """One map (D, h, w): mask scores and features cell by cell, the mean under every mask."""
    width, height, columns = x.shape
    groups = embed.features.groups
    size = width // groups

    def grouped(conv: nn.Conv2d, cell: Tensor) -> Tensor:
        weight = conv.weight[:, :, 0, 0]
        parts = [weight[g * size : (g + 1) * size] @ cell[g * size : (g + 1) * size] for g in range(groups)]
        return torch.cat(parts)

    cells = [x[:, i, j] for i in range(height) for j in range(columns)]
    masks = torch.stack([embed.masks.weight[:, :, 0, 0] @ grouped(embed.mask_features, cell) for cell in cells], dim=1)
    features = [grouped(embed.features, cell) for cell in cells]
    tokens = []
    for scores in masks:
        weights = [score.exp() / scores.exp().sum() for score in scores]
        tokens.append(sum(weight * feature for weight, feature in zip(weights, features, strict=True)))
    return torch.stack([token for token in tokens if isinstance(token, Tensor)]), masks.view(-1, height, columns)


def test_category_tokens_equal_loops_over_classes_and_cells() -> None:
    torch.manual_seed(0)
    embed, x = CategoryTokens(8, num_classes=3, groups=2), torch.randn(2, 8, 4, 5)
    with torch.no_grad():
        tokens, masks = embed(x)
        for n in range(2):
            expected_tokens, expected_masks = tokens_by_loops(x[n], embed)
            torch.testing.assert_close(tokens[n], expected_tokens, rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(masks[n], expected_masks, rtol=1e-4, atol=1e-6)


def test_equal_mask_scores_give_every_class_the_mean_of_the_features() -> None:
    embed, x = CategoryTokens(8, num_classes=3, groups=2), torch.randn(1, 8, 4, 5)
    nn.init.zeros_(embed.masks.weight)
    with torch.no_grad():
        mean = embed.features(x).mean((2, 3))
        torch.testing.assert_close(embed(x)[0], mean[:, None].expand(-1, 3, -1))


def test_a_mask_of_one_cell_gives_the_features_of_that_cell() -> None:
    embed, x = CategoryTokens(4, num_classes=2, groups=1), torch.rand(1, 4, 3, 3)
    nn.init.eye_(embed.mask_features.weight.data.view(4, 4))
    embed.masks.weight.data = torch.tensor([[1e4, 0, 0, 0], [0, 1e4, 0, 0]]).view(2, 4, 1, 1)
    x[0, :2] = 0
    x[0, 0, 1, 2] = x[0, 1, 2, 0] = 1
    with torch.no_grad():
        features, (tokens, _) = embed.features(x)[0], embed(x)
    torch.testing.assert_close(tokens[0], torch.stack([features[:, 1, 2], features[:, 2, 0]]))


def attention_by_loops(low: Tensor, tokens: Tensor, attention: Any) -> Tensor:
    """One map (D, h, w) and tokens (T, D), head by head and cell by cell."""
    width, height, columns = low.shape
    size = width // attention.num_heads
    padded = functional.pad(low, (1, 1, 1, 1))
    keys, values = attention.kv(tokens).chunk(2, dim=-1)
    out = torch.empty_like(low)
    for i in range(height):
        for j in range(columns):
            patch = padded[:, i : i + 3, j : j + 3]
            query = (attention.depthwise.weight[:, 0] * patch).sum((1, 2)) + attention.depthwise.bias
            query = attention.pointwise.weight[:, :, 0, 0] @ query + attention.pointwise.bias
            mixed = []
            for head in range(attention.num_heads):
                part = slice(head * size, (head + 1) * size)
                energy = keys[:, part] @ query[part] / size**0.5
                if attention.negate_energy:
                    energy = energy.max() - energy
                mixed.append((energy.exp() / energy.exp().sum()) @ values[:, part])
            out[:, i, j] = attention.proj.weight[:, :, 0, 0] @ torch.cat(mixed) + attention.proj.bias
    return out


@pytest.mark.parametrize("negate_energy", [False, True])
def test_attention_equals_loops_over_heads_and_cells(negate_energy: bool) -> None:
    torch.manual_seed(0)
    attention = TokenAttention(12, num_heads=3, negate_energy=negate_energy)
    nn.init.normal_(attention.kv.weight)
    low, tokens = torch.randn(2, 12, 4, 5), torch.randn(2, 7, 12)
    with torch.no_grad():
        expected = torch.stack([attention_by_loops(*pair, attention) for pair in zip(low, tokens, strict=True)])
        torch.testing.assert_close(attention(low, tokens), expected, rtol=1e-4, atol=1e-5)


def test_negated_energy_is_the_plain_form_with_negated_keys() -> None:
    torch.manual_seed(0)
    plain, negated = (TokenAttention(8, num_heads=2, negate_energy=flag) for flag in (False, True))
    negated.load_state_dict(plain.state_dict())
    with torch.no_grad():
        negated.kv.weight[:8] *= -1
        negated.kv.bias[:8] *= -1
        low, tokens = torch.randn(1, 8, 6, 6), torch.randn(1, 5, 8)
        torch.testing.assert_close(negated(low, tokens), plain(low, tokens), rtol=0, atol=1e-6)


def test_a_query_of_nothing_takes_the_mean_of_the_values() -> None:
    attention = TokenAttention(8, num_heads=2, negate_energy=False)
    for parameter in attention.pointwise.parameters():
        nn.init.zeros_(parameter)
    tokens = torch.randn(1, 5, 8)
    with torch.no_grad():
        mean = attention.kv(tokens)[..., 8:].mean(1)[:, :, None, None]
        expected = attention.proj(mean).expand(-1, -1, 3, 4)
        torch.testing.assert_close(attention(torch.randn(1, 8, 3, 4), tokens), expected)


def norm(x: Tensor, layer: nn.Module) -> Tensor:
    """Layer norm over channels, written out."""
    assert isinstance(layer, nn.LayerNorm)
    centred = x - x.mean(1, keepdim=True)
    scaled = centred / (centred.square().mean(1, keepdim=True) + 1e-6).sqrt()
    return scaled * layer.weight[:, None, None] + layer.bias[:, None, None]


def composed(model: CFT, images: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The network as a plain composition: scores, and masks from coarse to fine."""
    features = model.backbone(images)
    lows = [functional.conv2d(x, conv.weight, conv.bias) for x, conv in zip(features, model.laterals, strict=True)]  # type: ignore[arg-type]
    high, levels, masks = lows[3], [lows[3]], []
    for i in (2, 1, 0):
        block: Any = model.blocks[i]
        tokens, mask = block.tokens(norm(high, block.norm_high))
        x = lows[i] + block.attention(norm(lows[i], block.norm_low), tokens)
        hidden = block.ffn.depthwise(block.ffn.expand(norm(x, block.ffn.norm)))
        high = x + block.ffn.project(functional.gelu(hidden))
        levels.append(model.level_convs[i](high))
        masks.append(mask)
    size = levels[-1].shape[-2:]
    enlarged = [functional.interpolate(level, size=size, mode="bilinear") for level in levels]
    fused: Any = model.fusion
    return model.classifier(fused.conv(torch.cat(enlarged, dim=1))), masks


def test_the_whole_network_equals_a_plain_composition() -> None:
    model = tiny().eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    images = make_images()
    with torch.no_grad():
        torch.testing.assert_close(model(images).logits, composed(model, images)[0], rtol=1e-4, atol=1e-5)


def test_masks_come_from_the_coarser_maps_and_only_in_training() -> None:
    model = tiny().train()
    output = model(make_images())
    assert {name: tuple(mask.shape) for name, mask in output.extras.items()} == {
        "masks_2": (2, 5, 2, 2),
        "masks_1": (2, 5, 4, 4),
        "masks_0": (2, 5, 8, 8),
    }
    assert output.logits.shape == (2, 5, 16, 16)
    expected = composed(model.eval(), make_images())[1]
    found = model.train()(make_images()).extras
    for mask, wanted in zip(found.values(), expected, strict=True):
        torch.testing.assert_close(mask, wanted, rtol=1e-4, atol=1e-5)


def test_the_mask_losses_are_weighted_and_supervise_the_sum_of_all_scales() -> None:
    settings = MaskLossSpec(focal_weight=3.0, dice_weight=0.5, count_void_as_negative=True)
    model = tiny(mask_loss=settings).train()
    output, labels = model(make_images()), torch.randint(0, 5, (2, 64, 64))
    labels[:, :20] = VOID
    losses = model.loss(output, SemanticTarget(labels, VOID))
    found = mask_losses(list(output.extras.values()), labels, void=VOID, count_void_as_negative=True)
    assert list(losses) == ["ce", "focal_masks", "dice_masks"]
    torch.testing.assert_close(losses["focal_masks"], 3 * found.focal)
    torch.testing.assert_close(losses["dice_masks"], 0.5 * found.dice)


def test_what_has_no_masks_has_no_mask_losses() -> None:
    labels = torch.zeros(2, 64, 64, dtype=torch.int64)
    for attend_to in ("cells", "pooled"):
        model = tiny(attend_to=attend_to).train()
        assert list(model.loss(model(make_images()), SemanticTarget(labels, VOID))) == ["ce"]


def test_without_the_mask_loss_the_masks_learn_from_the_scores_alone() -> None:
    assert preset("cft_resnet101").model_copy(update={"mask_loss": None}) == preset("cft_resnet101_no_mask_loss")
    plain, unsupervised = tiny().eval(), tiny(mask_loss=None).eval()
    with torch.no_grad():
        assert torch.equal(plain(make_images()).logits, unsupervised(make_images()).logits)
    output = unsupervised.train()(make_images())
    losses = unsupervised.loss(output, SemanticTarget(torch.zeros(2, 64, 64, dtype=torch.int64), VOID))
    assert (list(losses), dict(output.extras)) == (["ce"], {})
    torch.autograd.backward(losses["ce"])
    assert all(value.grad is not None and value.grad.any() for value in unsupervised.parameters())


def test_tokens_and_attention_leave_mixed_precision() -> None:
    torch.manual_seed(0)
    embed, attention = CategoryTokens(8, num_classes=3, groups=2), TokenAttention(8, num_heads=2, negate_energy=False)
    x = torch.randn(1, 8, 16, 16)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        tokens, masks = embed(x)
        assert (tokens.dtype, masks.dtype) == (torch.float32, torch.bfloat16)
        expected = masks.flatten(2).float().softmax(-1)
        features = embed.features(x).flatten(2).float()
    torch.testing.assert_close(tokens, torch.einsum("nkp,ncp->nkc", expected, features))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.isfinite(attention(1e4 * x, tokens)).all()


def test_averages_over_a_grid_or_windows_equal_torchs_pooling() -> None:
    x = torch.randn(2, 3, 7, 9)
    grid = functional.adaptive_avg_pool2d(x, 4).flatten(2).transpose(1, 2)
    torch.testing.assert_close(GridTokens(4)(x)[0], grid)
    windows = WindowTokens(3)(x)[0].view(2, 3, 3, 3)
    torch.testing.assert_close(windows[:, 0, 1], x[:, :, :3, 3:6].mean((2, 3)))
    torch.testing.assert_close(windows[:, 2, 0], x[:, :, 6:, :3].mean((2, 3)))


@pytest.mark.parametrize(
    "changes",
    [
        {"context": "aspp"},
        {"ffn_ratio": 0},
        {"attend_to": "pooled", "pool_cells": 3},
        {"attend_to": "pooled", "pool_window": 2},
        {"fusion": "sum"},
        {"fusion_kernel": 1, "level_convs": False},
        {"negate_energy": True},
    ],
)
def test_an_option_changes_the_scores_and_trains(changes: dict[str, Any]) -> None:
    model = tiny(**changes).train()
    output = model(make_images(2, 96, 128))  # large enough for several windows of the coarsest map
    assert output.logits.shape == (2, 5, 24, 32)
    losses = model.loss(output, SemanticTarget(torch.randint(0, 5, (2, 96, 128)), VOID))
    torch.autograd.backward(torch.stack(list(losses.values())).sum())
    assert all(value.grad is not None and value.grad.any() for value in model.parameters())
    with torch.no_grad():
        assert not torch.equal(model.eval()(make_images()).logits, tiny().eval()(make_images()).logits)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 18}, "width = 18 must be a multiple of num_heads = 4"),
        ({"pool_cells": 3}, "`pool_cells` takes effect with attend_to = 'pooled', found 'categories'"),
        ({"attend_to": "pooled", "pool_cells": 3, "pool_window": 2}, "either `pool_cells` or `pool_window`"),
        ({"fusion": "sum", "fusion_kernel": 1}, "`fusion_kernel` takes effect with fusion = 'concat'"),
        ({"attend_to": "cells", "mask_loss": None}, "`mask_loss` takes effect with attend_to = 'categories', found"),
    ],
)
def test_settings_without_effect_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CFTSpec(**changes)


def test_a_block_has_the_parameters_of_the_sheet() -> None:
    with torch.device("meta"):
        model = CFTSpec(backbone=TINY_MIT).build(150)
    assert isinstance(model, CFT)
    for block in model.blocks:
        assert isinstance(block, CFTBlock)
        assert isinstance(block.ffn, FeedForward)
        whole, ffn = (sum(value.numel() for value in part.parameters()) for part in (block, block.ffn))
        assert (whole, whole - ffn) == (874_240, 337_920)


# backbone -> parameters of everything else with 19, 59 and 150 classes (specs: CFT section 10).
HEADS = {
    "cft_resnet50": (7_641_107, 7_682_107, 7_775_382),
    "cft_resnet101": (7_641_107, 7_682_107, 7_775_382),
    "cft_mit_b1": (6_920_211, 6_961_211, 7_054_486),
    "cft_swin_tiny": (7_026_707, 7_067_707, 7_160_982),
    "cft_swin_base": (7_149_587, 7_190_587, 7_283_862),
    "cft_swin_large": (7_395_347, 7_436_347, 7_529_622),
}


@pytest.mark.parametrize("name", HEADS)
def test_heads_have_the_parameters_of_the_sheet(name: str) -> None:
    found = []
    for num_classes in (19, 59, 150):
        with torch.device("meta"):
            model = preset(name).build(num_classes)
        found.append(sum(value.numel() for key, value in model.named_parameters() if not key.startswith("backbone.")))
    assert tuple(found) == HEADS[name]


# model, side of the image -> 10^9 multiply-adds of everything but the backbone, 150 classes (specs: CFT section 6).
HEAD_GMACS = [
    ("cft_swin_tiny", 512, 69.36),
    ("cft_swin_base", 512, 69.61),
    ("cft_swin_large", 512, 70.12),
    ("cft_swin_large", 640, 109.53),
    ("semfpn_mit_b2", 512, 21.45),
    ("cft_mit_b2", 512, 69.13),
    ("cft_mit_b2_no_ffn", 512, 57.66),
    ("cft_mit_b2_naive", 512, 104.17),
    ("cft_mit_b2_naive_no_ffn", 512, 92.70),
    ("cft_mit_b2_pooled_2x2", 512, 66.87),
    ("cft_mit_b2_pooled_2x2_no_ffn", 512, 55.40),
    ("cft_mit_b2_pooled", 512, 68.47),
    ("cft_mit_b2_pooled_no_ffn", 512, 57.00),
    ("cft_mit_b2_sum", 512, 48.74),
    ("cft_mit_b2_sum128", 512, 37.93),
    ("cft_mit_b2_light", 512, 22.08),
]


@pytest.mark.parametrize(("name", "side", "gmac"), HEAD_GMACS)
def test_heads_have_the_multiply_adds_of_the_sheet(name: str, side: int, gmac: float) -> None:
    with torch.device("meta"):
        model: Any = preset(name).build(150).eval()
    images = torch.empty(1, 3, side, side, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as whole:
        model(images)
    with torch.no_grad(), FlopCounterMode(display=False) as backbone:
        model.backbone(images)
    found = (whole.get_total_flops() - backbone.get_total_flops()) / 2e9
    assert found == pytest.approx(gmac, rel=0.005)


def test_the_ade20k_recipe_holds_the_settings_of_the_sheet() -> None:
    recipe = resolve_recipe("cft_resnet101_ade20k")
    optimizer, schedule = recipe.optimizer, recipe.schedule
    assert optimizer.kind == "adamw"
    assert (optimizer.lr, optimizer.head_lr_factor) == (6e-5, 10)
    assert (optimizer.weight_decay, optimizer.head_decay_factor) == (2e-5, 500)
    assert (schedule.kind, schedule.power, schedule.warmup_steps, schedule.warmup_factor) == ("poly", 1.0, 1500, 1e-6)
    assert (recipe.steps, recipe.global_batch, recipe.augment.crop) == (160_000, 16, (512, 512))
