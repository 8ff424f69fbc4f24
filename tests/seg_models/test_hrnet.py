"""HRNetV2 against timm's, its fusion and the object context against loops written from the formulas."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from seg_models import create_model
from seg_models.architectures.hrnet_ocr import HRNetOCR, HRNetOCRSpec, LevelsSideBySide
from seg_models.backbones.hrnet import HighResolutionNet, HRNetSpec, ParallelBranches
from seg_models.parts.ocr import attend, gather

SMALL = {"width": 8, "num_blocks": 1, "num_modules": (1, 1, 1)}


def timm_trunk(name: str) -> nn.Module:
    network: nn.Module = timm.create_model(name, features_only=True, feature_location="", out_indices=(1, 2, 3, 4))
    return network


def with_lively_norms(network: nn.Module) -> nn.Module:
    """Running statistics and scales that a wrong place would show."""
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.running_mean, module.running_var):
                assert tensor is not None
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
    return network.eval()


def test_the_trunk_of_width_48_has_the_count_of_the_sheet_and_the_names_of_timm() -> None:
    with torch.device("meta"):
        backbone, timms = HRNetSpec(name="hrnet_w48").build(), timm_trunk("hrnet_w48")
    assert sum(value.numel() for value in backbone.parameters()) == 65_325_120
    assert (backbone.channels, backbone.strides) == ((48, 96, 192, 384), (4, 8, 16, 32))
    ours, theirs = backbone.network.state_dict(), timms.state_dict()
    assert {name: value.shape for name, value in ours.items()} == {name: value.shape for name, value in theirs.items()}


def test_the_trunk_equals_timms_where_cells_are_repeated() -> None:
    theirs = with_lively_norms(timm_trunk("hrnet_w18_small_v2"))
    spec = HRNetSpec(name="hrnet_w18_small_v2", fuse_interp="nearest")
    ours = spec.build().network.eval()
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for found, expected in zip(ours(images), theirs(images), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("sizes", [[(8, 12), (4, 6), (2, 3)], [(9, 5), (5, 3), (3, 2)]])
def test_every_branch_receives_the_sum_of_all_at_its_own_size(sizes: list[tuple[int, int]]) -> None:
    torch.manual_seed(0)
    widths = (4, 8, 16)
    module = ParallelBranches(widths, 1, "bilinear", False)
    with_lively_norms(module)
    levels = [torch.randn(1, width, *size) for width, size in zip(widths, sizes, strict=True)]
    found = module([level.clone() for level in levels])
    levels = [branch(level) for branch, level in zip(module.branches, levels, strict=True)]
    for target, size in enumerate(sizes):
        total = levels[target]
        for source, level in enumerate(levels):
            path = module.get_submodule(f"fuse_layers.{target}.{source}")
            if source > target:
                total = total + functional.interpolate(path(level), size=size, mode="bilinear", align_corners=False)
            elif source < target:
                assert len(list(path.children())) == target - source
                total = total + path(level)
        torch.testing.assert_close(found[target], total.clamp_min(0))


def test_corners_can_be_aligned_and_change_the_result() -> None:
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    results = []
    for settings in ({}, {"align_corners": True}, {"fuse_interp": "nearest"}):
        torch.manual_seed(0)
        network = HRNetSpec.model_validate({"name": "hrnet_w18", "model_kwargs": SMALL, **settings}).build().network
        with torch.no_grad():
            results.append(network.eval()(images)[0])
    assert not any(torch.equal(results[one], results[other]) for one, other in ((0, 1), (0, 2), (1, 2)))


def test_levels_are_laid_side_by_side_at_the_finest_size() -> None:
    levels = [torch.rand(1, 2, 8, 8), torch.rand(1, 3, 4, 4)]
    joined = LevelsSideBySide()(levels)
    enlarged = functional.interpolate(levels[1], scale_factor=2, mode="bilinear", align_corners=False)
    torch.testing.assert_close(joined, torch.cat([levels[0], enlarged], dim=1))


def test_weights_of_a_classifier_are_taken_by_name_and_its_head_is_left_out(tmp_path: Path) -> None:
    classifier = timm.create_model("hrnet_w18_small_v2", pretrained=False)
    save_file({name: value.contiguous() for name, value in classifier.state_dict().items()}, tmp_path / "a.safetensors")
    spec = HRNetSpec(name="hrnet_w18_small_v2", weights=str(tmp_path / "a.safetensors"))
    network = spec.build().network
    given = classifier.state_dict()
    assert all(torch.equal(value, given[name]) for name, value in network.state_dict().items())


def test_weights_of_another_width_are_refused(tmp_path: Path) -> None:
    network = HighResolutionNet(width=8, num_blocks=1, num_modules=(1, 1, 1))
    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="do not fit the backbone"):
        HRNetSpec(name="hrnet_w18_small_v2", weights=str(tmp_path / "a.safetensors")).build()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "hrnet_w49"}, "unknown HRNet 'hrnet_w49'.*hrnet_w4"),
        ({"output_stride": 8}, r"output_stride = 8: the strides of an HRNet are \(4, 8, 16, 32\)"),
        ({"fuse_interp": "nearest", "align_corners": True}, "align_corners = true has no effect"),
    ],
)
def test_settings_an_hrnet_cannot_have_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        HRNetSpec.model_validate(settings)


def test_an_argument_the_network_does_not_have_is_refused() -> None:
    with pytest.raises(ValueError, match=r"backbone 'hrnet_w18' cannot be made: .*depth"):
        HRNetSpec(name="hrnet_w18", model_kwargs={"depth": 3}).build()


def test_each_class_gathers_the_mean_of_the_features_weighted_over_the_cells() -> None:
    torch.manual_seed(0)
    features, regions = torch.randn(2, 3, 2, 4), torch.randn(2, 5, 2, 4)
    found = gather(features, regions)
    for n in range(2):
        for k in range(5):
            weights = regions[n, k].exp() / regions[n, k].exp().sum()
            for c in range(3):
                torch.testing.assert_close(found[n, c, k], (weights * features[n, c]).sum())


def test_each_cell_sees_the_classes_it_resembles() -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(1, 4, 2, 3), torch.randn(1, 4, 5), torch.randn(1, 4, 5)
    found = attend(query, key=key, value=value)
    for y in range(2):
        for x in range(3):
            likeness = torch.stack([query[0, :, y, x] @ key[0, :, k] / 2 for k in range(5)])
            weights = likeness.exp() / likeness.exp().sum()
            expected = sum((weights[k] * value[0, :, k] for k in range(5)), start=torch.zeros(4))
            torch.testing.assert_close(found[0, :, y, x], expected)


def tiny_ocr(**settings: object) -> HRNetOCRSpec:
    table = {"backbone": {"name": "hrnet_w18", "model_kwargs": SMALL}, "channels": 16, "key_channels": 8, **settings}
    return HRNetOCRSpec.model_validate(table)


def test_without_biases_the_form_of_mmsegmentation_is_built() -> None:
    official, theirs = (tiny_ocr(conv_bias=bias).build(3).state_dict() for bias in (True, False))
    assert set(official) - set(theirs) == {"neck.conv.bias", "regions.conv.conv.bias"}


def test_the_auxiliary_scores_are_those_that_gather_the_classes() -> None:
    model, seen = tiny_ocr().build(3).train(), list[Tensor]()
    assert isinstance(model, HRNetOCR)
    model.context.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1]))
    output = model(torch.zeros(2, 3, 64, 64))
    assert torch.equal(output.aux[0], seen[0])
    assert output.logits.shape == output.aux[0].shape == (2, 3, 16, 16)


def test_presets_of_both_widths_differ_in_the_trunk_alone() -> None:
    with torch.device("meta"):
        narrow, wide = (create_model(f"hrnet_ocr_{width}", num_classes=2) for width in ("w18", "w48"))
    assert isinstance(narrow, HRNetOCR)
    assert isinstance(wide, HRNetOCR)
    assert narrow.neck.conv.in_channels == 15 * 18
    assert wide.neck.conv.in_channels == 15 * 48
    assert narrow.classifier.in_channels == wide.classifier.in_channels == 512
