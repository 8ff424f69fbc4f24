"""FastFCN against literal forms of its parts, the counts of its sheet, its settings and its pitfalls."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from seg_models import create_model, describe_model
from seg_models.architectures.fastfcn import FastFCN, FastFCNSpec
from seg_models.architectures.fastfcn_heads import (
    ASPPHeadSpec,
    EncodingHead,
    EncodingHeadSpec,
    FCNHeadSpec,
    HeadSpec,
    LateralFusion,
    PSPHeadSpec,
)
from seg_models.architectures.fastfcn_upsampling import (
    JPU,
    JPUX,
    FPNSpec,
    JointUpsampling,
    JPUSpec,
    JPUXSpec,
    SeparableConv,
)
from seg_models.backbones.timm_backbone import BackboneSpec
from seg_models.outputs import SemanticTarget
from seg_models.parts.layers import ConvNormAct
from seg_models.recipes import resolve_recipe
from seg_models.spec import preset

NARROW: dict[str, Any] = {"name": "resnet10t", "model_kwargs": {"channels": (16, 32, 64, 128), "stem_width": 16}}
SMALL = FastFCNSpec(
    backbone=BackboneSpec(**NARROW), upsampling=JPUSpec(width=16), head=EncodingHeadSpec(channels=32, codes=8)
)
PYRAMID = (512, 1024, 2048)


def count(module: nn.Module) -> int:
    return sum(value.numel() for value in module.parameters())


def randomize_norms(module: nn.Module) -> nn.Module:
    """Running statistics and scales that a forgotten or misplaced norm would show up against."""
    generator = torch.Generator().manual_seed(7)
    for name, value in [*module.named_parameters(), *module.named_buffers()]:
        if "norm" in name and value.is_floating_point():
            value.data.copy_(0.5 + torch.rand(value.shape, generator=generator))
    return module.eval()


def make_pyramid(channels: tuple[int, int, int], *, size: tuple[int, int]) -> list[Tensor]:
    """(C3, C4, C5) of a backbone whose C3 has this size."""
    generator = torch.Generator().manual_seed(size[0])
    halves = [tuple(-(-side // factor) for side in size) for factor in (1, 2, 4)]
    return [torch.randn(2, width, *half, generator=generator) for width, half in zip(channels, halves, strict=True)]


# Counts


@pytest.mark.parametrize(("module", "expected"), [(JPUSpec(), 19_735_552), (JPUXSpec(), 19_719_168)])
def test_the_upsamplings_have_the_counts_of_the_sheet(module: JPUSpec | JPUXSpec, expected: int) -> None:
    with torch.device("meta"):
        built = module.build(PYRAMID)
    assert count(built) == expected
    assert built.out_channels == 2048


@pytest.mark.parametrize(
    ("name", "expected"),
    [("resnet50s", 23_631_808), ("resnet101s", 42_623_936), ("resnet50c", 23_527_264), ("resnet101c", 42_519_392)],
)
def test_the_backbones_have_the_counts_of_the_sheet(name: str, expected: int) -> None:
    with torch.device("meta"):
        assert count(BackboneSpec(name=name).build()) == expected


@pytest.mark.parametrize(
    ("head", "counts"),
    [
        (FCNHeadSpec(), (9_447_955, 9_468_475, 9_515_158)),
        (PSPHeadSpec(), (23_083_539, 23_104_059, 23_150_742)),
        (ASPPHeadSpec(), (16_130_323, 16_140_603, 16_163_990)),
        (ASPPHeadSpec(channels=512, project_dropout=None), (42_221_075, 42_241_595, 42_288_278)),
        (EncodingHeadSpec(), (1_611_398, 1_652_438, 1_745_804)),
        (EncodingHeadSpec(kernel_size=3), (10_000_006, 10_041_046, 10_134_412)),
    ],
    ids=["fcn", "psp", "aspp", "aspp_mmseg", "enc", "enc_3x3"],
)
def test_the_heads_have_the_counts_of_the_sheet(head: HeadSpec, counts: tuple[int, int, int]) -> None:
    with torch.device("meta"):
        assert tuple(count(head.build(PYRAMID, k, dropout=0.1)) for k in (19, 59, 150)) == counts


def test_joint_upsampling_saves_the_multiply_adds_that_the_sheet_says() -> None:
    for net, ratio in (("resnet101", 2.69), ("resnet50", 2.29)):
        joint, dilated = (
            describe_model(f"fastfcn_{net}_enc{form}", num_classes=59, size=(512, 512)).gmac
            for form in ("", "_dilated")
        )
        assert dilated / joint == pytest.approx(ratio, rel=0.005)


# Upsampling


def slow_separable(features: Tensor, block: SeparableConv) -> Tensor:
    """Depthwise, norm, 1×1, norm, ReLU; nothing between the first norm and the 1×1."""
    kernel = block.depthwise
    gaps = functional.conv2d(
        features, kernel.weight, padding=kernel.dilation, dilation=kernel.dilation, groups=features.shape[1]
    )
    return torch.relu(block.norm(functional.conv2d(block.depthwise_norm(gaps), block.pointwise.weight)))


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size", [(8, 8), (9, 13), (5, 1)])
def test_joint_pyramid_upsampling_equals_its_literal_form(size: tuple[int, int], align_corners: bool) -> None:
    module = JPU((6, 8, 10), width=4, dilations=(1, 2, 8), align_corners=align_corners)
    randomize_norms(module)
    pyramid = make_pyramid((6, 8, 10), size=size)
    parts = [
        functional.interpolate(conv(level), size=size, mode="bilinear", align_corners=align_corners)
        for conv, level in zip(module.levels, pyramid, strict=True)
    ]
    expected = torch.cat(
        [
            slow_separable(torch.cat(parts, dim=1), block)
            for block in module.branches
            if isinstance(block, SeparableConv)
        ],
        dim=1,
    )
    found = module(pyramid)
    assert found.shape == (2, module.out_channels, *size) == (2, 12, *size)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def coarse_to_fine(block: SeparableConv) -> SeparableConv:
    """A copy for an input whose three groups of four channels come in reverse."""
    order = torch.arange(12).view(3, 4).flip(0).flatten()
    copied = copy.deepcopy(block)
    copied.depthwise.weight.data = block.depthwise.weight.data[order]
    copied.pointwise.weight.data = block.pointwise.weight.data[:, order]
    for value in copied.depthwise_norm.state_dict().values():
        if value.dim():
            value.copy_(value[order])
    return copied


def test_levels_from_coarse_to_fine_are_the_same_network_with_permuted_weights() -> None:
    """The authors' order: their depthwise and 1×1 kernels are ours with the three groups of channels reversed."""
    module = JPU((6, 8, 10), width=4, dilations=(1, 2))
    randomize_norms(module)
    pyramid = make_pyramid((6, 8, 10), size=(8, 8))
    parts = [
        functional.interpolate(conv(level), size=(8, 8), mode="bilinear")
        for conv, level in zip(module.levels, pyramid, strict=True)
    ]
    reversed_parts = torch.cat(parts[::-1], dim=1)
    blocks = [block for block in module.branches if isinstance(block, SeparableConv)]
    expected = torch.cat([slow_separable(reversed_parts, coarse_to_fine(block)) for block in blocks], dim=1)
    torch.testing.assert_close(module(pyramid), expected, rtol=1e-4, atol=1e-5)
    unchanged = torch.cat([slow_separable(reversed_parts, block) for block in blocks], dim=1)
    assert not torch.allclose(unchanged, expected)


def slow_step(step: JointUpsampling, coarse: Tensor, fine: Tensor, *, align_corners: bool) -> Tensor:
    low = functional.interpolate(
        step.coarse(coarse), size=fine.shape[-2:], mode="bilinear", align_corners=align_corners
    )
    both = torch.cat([low, step.fine(fine)], dim=1)
    return torch.cat(
        [low, *(slow_separable(both, block) for block in step.branches if isinstance(block, SeparableConv))], dim=1
    )


@pytest.mark.parametrize("align_corners", [False, True])
def test_jpu_x_joins_c4_and_c3_and_then_c5(align_corners: bool) -> None:
    module = JPUX((6, 8, 10), width=8, groups=2, align_corners=align_corners)
    randomize_norms(module)
    c3, c4, c5 = make_pyramid((6, 8, 10), size=(9, 12))
    first = slow_step(module.first, c4, c3, align_corners=align_corners)
    expected = slow_step(module.second, c5, first, align_corners=align_corners)
    torch.testing.assert_close(module([c3, c4, c5]), expected, rtol=1e-4, atol=1e-5)
    dilations = [[block.depthwise.dilation[0] for block in step.branches] for step in (module.first, module.second)]  # type: ignore[union-attr, index]
    assert dilations == [[1, 2, 4], [2, 4, 8]]
    assert first.shape[1] == 16
    assert module.out_channels == 32


def test_jpu_x_has_group_norms_in_its_branches_only() -> None:
    module = JPUX((6, 8, 10), width=8, groups=2)
    norms = [type(part).__name__ for part in module.modules() if isinstance(part, nn.BatchNorm2d | nn.GroupNorm)]
    assert norms.count("GroupNorm") == 12
    assert norms.count("BatchNorm2d") == 4


def test_fpn_adds_what_lies_coarser_to_c3_and_is_as_wide_as_a_level_of_jpu() -> None:
    """Nearest enlarging written as a look at the cell whose place is ⌊i·coarse/fine⌋."""
    torch.manual_seed(0)
    module = FPNSpec(width=4).build((6, 8, 10))
    c3, c4, c5 = make_pyramid((6, 8, 10), size=(9, 12))
    fine, middle, coarse = (lateral(level) for lateral, level in zip(module.laterals, (c3, c4, c5), strict=True))
    total = torch.empty_like(fine)
    for i in range(9):
        for j in range(12):
            at, beyond = (i * 5 // 9, j * 6 // 12), ((i * 5 // 9) * 3 // 5, (j * 6 // 12) * 3 // 6)
            total[..., i, j] = fine[..., i, j] + middle[..., at[0], at[1]] + coarse[..., beyond[0], beyond[1]]
    torch.testing.assert_close(module([c3, c4, c5]), module.conv(total), rtol=1e-4, atol=1e-5)
    assert FPNSpec().width == JPUSpec().width == 512


def test_the_compared_upsamplings_differ_in_nothing_but_what_makes_the_map() -> None:
    rows = {form: preset(f"fastfcn_resnet50_enc{form}") for form in ("", "_fpn", "_bilinear", "_stride32")}
    assert {name: spec.model_copy(update={"upsampling": None}) for name, spec in rows.items()} == dict.fromkeys(
        rows, rows["_stride32"]
    )
    with torch.device("meta"):
        strides = {name: spec.build(3).output_stride for name, spec in rows.items()}
    assert strides == {"": 8, "_fpn": 8, "_bilinear": 8, "_stride32": 32}


# Heads


def test_the_encoding_head_without_laterals_reads_the_joint_map_only() -> None:
    head = EncodingHeadSpec(channels=8, codes=3).build((4, 6, 10), 5, dropout=0.1).eval()
    c3, c4, joint = (torch.randn(2, channels, 4, 4) for channels in (4, 6, 10))
    with torch.no_grad():
        assert torch.equal(head((c3, c4, joint)).logits, head((c3 + 1, c4 + 1, joint)).logits)


def test_laterals_of_other_sizes_are_enlarged_and_fused() -> None:
    fusion = LateralFusion((4, 6), 8)
    randomize_norms(fusion)
    features, c3, c4 = torch.randn(2, 8, 8, 8), torch.randn(2, 4, 8, 8), torch.randn(2, 6, 4, 4)
    first, second = fusion.laterals
    larger = functional.interpolate(second(c4), size=(8, 8), mode="bilinear")
    expected = fusion.fusion(torch.cat([features, first(c3), larger], dim=1))
    torch.testing.assert_close(fusion(features, (c3, c4)), expected, rtol=1e-4, atol=1e-5)


def test_the_auxiliary_head_reads_c4_at_stride_16() -> None:
    model = SMALL.build(5).train()
    output = model(torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8))
    assert output.logits.shape == (2, 5, 8, 12)
    assert output.aux[0].shape == (2, 5, 4, 6)
    assert output.extras["presence"].shape == (2, 5)


def test_without_upsampling_scores_have_the_stride_of_the_backbone() -> None:
    spec = SMALL.model_copy(update={"upsampling": None})
    model = spec.build(5).eval()
    assert model.output_stride == 32
    assert model(torch.zeros(1, 3, 64, 64)).logits.shape == (1, 5, 2, 2)


# Losses


def losses_of(spec: FastFCNSpec) -> dict[str, Tensor]:
    torch.manual_seed(0)
    model = spec.build(5).train()
    labels = torch.randint(0, 5, (2, 64, 64), generator=torch.Generator().manual_seed(1))
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    return model.loss(model(images), SemanticTarget(labels, 255))


def test_the_loss_of_presence_comes_weighted_between_the_main_and_the_auxiliary_loss() -> None:
    light, heavy = (
        losses_of(SMALL.model_copy(update={"head": EncodingHeadSpec(channels=32, codes=8, se_weight=weight)}))
        for weight in (0.2, 1.0)
    )
    assert list(light) == ["ce", "se", "aux_ce"]
    torch.testing.assert_close(light["se"] * 5, heavy["se"])


def test_presence_is_not_predicted_where_its_loss_is_switched_off() -> None:
    spec = SMALL.model_copy(update={"head": EncodingHeadSpec(channels=32, codes=8, se_weight=None)})
    assert list(losses_of(spec)) == ["ce", "aux_ce"]
    model = spec.build(5)
    assert not any(name.startswith("head.se.") for name in model.state_dict())


# Settings


def dilations_and_strides(spec: FastFCNSpec) -> list[tuple[int, int]]:
    with torch.device("meta"):
        network = spec.build(5).backbone.network
    blocks = [block for name in ("layer3", "layer4") for block in (network[name][0], network[name][1])]  # type: ignore[index]
    return [(block.conv2.dilation[0], block.conv2.stride[0]) for block in blocks]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("fastfcn_resnet50_enc", [(1, 2), (1, 1), (1, 2), (1, 1)]),
        ("fastfcn_resnet50_enc_dilated", [(1, 1), (2, 1), (2, 1), (4, 1)]),
        ("fastfcn_resnet50_enc_mmseg", [(1, 2), (2, 1), (2, 2), (4, 1)]),
    ],
)
def test_first_and_further_blocks_have_the_dilations_of_their_source(
    name: str, expected: list[tuple[int, int]]
) -> None:
    spec = preset(name)
    assert isinstance(spec, FastFCNSpec)
    assert dilations_and_strides(spec) == expected


def test_strided_dilations_change_the_function_and_not_the_counts() -> None:
    narrow = BackboneSpec(name="resnet50", model_kwargs={"channels": (8, 8, 16, 16), "layers": (1, 1, 2, 2)})
    plain = FastFCNSpec(backbone=narrow, upsampling=JPUSpec(width=8), head=FCNHeadSpec(channels=8))
    kept = plain.model_copy(update={"strided_dilations": (2, 4)})
    torch.manual_seed(0)
    first, second = plain.build(3).eval(), kept.build(3).eval()
    second.load_state_dict(first.state_dict())
    for module in [*first.modules(), *second.modules()]:
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)  # residual branches begin switched off
    images = torch.rand(1, 3, 64, 64) * 255
    with torch.no_grad():
        found, other = first(images).logits, second(images).logits
    assert found.shape == other.shape
    assert not torch.allclose(found, other)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": {"output_stride": 8}}, "upsampling = 'jpu' has nothing to do at backbone stride 8"),
        ({"upsampling": {"kind": "jpu_x", "width": 48}}, "width must be a multiple of 2 . groups = 64, found 48"),
        ({"upsampling": {"kind": "jpuu"}}, "jpuu"),
        ({"upsampling": None, "backbone": {"output_stride": 16}, "strided_dilations": (2, 4)}, "= 32, found 16"),
        ({"head": {"kind": "psp", "codes": 8}}, "codes"),
    ],
)
def test_settings_without_a_meaning_are_refused(changes: dict[str, Any], message: str) -> None:
    table = {"arch": "fastfcn", "backbone": {"name": "resnet50s"}, **changes}
    table["backbone"] = {"name": "resnet50s", **changes.get("backbone", {})}
    with pytest.raises(ValueError, match=message):
        create_model(table, num_classes=3)


def test_strided_dilations_need_bottleneck_blocks() -> None:
    with pytest.raises(ValueError, match="needs a ResNet of bottleneck blocks"):
        SMALL.model_copy(update={"strided_dilations": (2, 4)}).build(3)


def test_an_image_alone_trains_where_nothing_is_pooled_to_one_cell() -> None:
    images = torch.zeros(1, 3, 64, 64)
    for head in (FCNHeadSpec(channels=8), EncodingHeadSpec(channels=8, codes=4)):
        model = SMALL.model_copy(update={"head": head}).build(3).train()
        assert model(images).logits.shape == (1, 3, 8, 8)
    for pooled in (PSPHeadSpec(channels=8), ASPPHeadSpec(channels=8)):
        model = SMALL.model_copy(update={"head": pooled}).build(3).train()
        with pytest.raises(ValueError, match="at least 2 images per worker"):
            model(images)


def test_the_first_convolution_of_the_encoding_head_is_1x1_behind_jpu_and_3x3_behind_a_dilated_backbone() -> None:
    for name, kernel in (("fastfcn_resnet50_enc", 1), ("fastfcn_resnet50_enc_dilated", 3)):
        with torch.device("meta"):
            model = create_model(name, num_classes=3)
        assert isinstance(model, FastFCN)
        assert isinstance(model.head, EncodingHead)
        assert isinstance(model.head.reduce, ConvNormAct)
        assert model.head.reduce.conv.kernel_size == (kernel, kernel)


# Recipes


def test_the_recipes_hold_the_authors_settings() -> None:
    context = resolve_recipe("fastfcn_resnet50_enc_pcontext")
    assert context.steps == 80 * 312
    assert (context.optimizer.lr, context.optimizer.head_lr_factor) == (0.001, 10.0)
    assert context.loss.aux_weight == 0.2
    assert (context.augment.crop, context.augment.short_side, context.augment.scale) == ((480, 480), 520, (0.5, 2.0))
    ade = resolve_recipe("fastfcn_resnet101_enc_ade20k")
    assert ade.steps == 120 * 1263
    assert (ade.optimizer.lr, ade.optimizer.head_lr_factor) == (0.01, 10.0)
    assert resolve_recipe("fastfcn_resnet50_psp_pcontext").loss.aux_weight == 0.4
