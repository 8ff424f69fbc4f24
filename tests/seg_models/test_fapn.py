"""FaPN against a literal composition with torchvision's deformable convolution, its counts, exports and settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import deform_conv2d  # type: ignore[import-untyped]

from seg_models import create_model
from seg_models.architectures.fapn import AlignedPyramid, FaPNSpec, FeatureAlignment, FeatureSelection
from seg_models.backbones.timm_backbone import BackboneSpec
from seg_models.export import export_model
from seg_models.outputs import SegModel
from seg_models.parts.pyramid_net import PyramidNet
from seg_models.recipes import resolve_recipe

NARROW = BackboneSpec(name="resnet10t", model_kwargs={"channels": [8, 16, 16, 32], "stem_width": 8})
SMALL = FaPNSpec(backbone=NARROW, width=16, num_groups=2, head_channels=8)


def moving(spec: FaPNSpec = SMALL) -> SegModel:
    """A network whose offsets are not those of its first step."""
    torch.manual_seed(0)
    model = spec.build(4).eval()
    for module in model.modules():
        if isinstance(module, FeatureAlignment):
            nn.init.normal_(module.offsets.weight, std=0.3)
    return model


def aligned(module: FeatureAlignment, fine: Tensor, coarse: Tensor) -> Tensor:
    """ReLU(deformable convolution of the enlarged coarse level) + the finer one, offsets made of both."""
    enlarged = functional.interpolate(coarse, size=fine.shape[-2:], mode="bilinear", align_corners=False)
    both = module.offsets(module.compare(torch.cat([fine, enlarged * 2], dim=1)))
    taps = both.shape[1] // 3
    moved = deform_conv2d(
        enlarged,
        both[:, : 2 * taps],
        module.move.weight,
        module.move.bias,
        padding=1,
        mask=both[:, 2 * taps :].sigmoid(),
    )
    return functional.relu(moved) + fine


def selected(module: FeatureSelection, x: Tensor) -> Tensor:
    """f_s(x + x·u), u from the mean of every channel."""
    means = torch.stack([torch.stack([one.mean() for one in image]) for image in x])
    importance = torch.sigmoid(means @ module.importance.weight.flatten(1).t())
    raised = x + x * importance[:, :, None, None]
    return torch.einsum("oc,nchw->nohw", module.select.weight.flatten(1), raised)


@pytest.mark.parametrize("size", [(64, 96), (33, 47)])
def test_the_pyramid_equals_a_literal_composition(size: tuple[int, int]) -> None:
    model = moving()
    assert isinstance(model, PyramidNet)
    pyramid: Any = model.pyramid
    images = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8)
    with torch.no_grad():
        c2, c3, c4, c5 = model.backbone(images)[-4:]
        p5 = pyramid.top(c5)
        p4 = aligned(pyramid.alignments[2], selected(pyramid.selections[2], c4), p5)
        p3 = aligned(pyramid.alignments[1], selected(pyramid.selections[1], c3), p4)
        p2 = aligned(pyramid.alignments[0], selected(pyramid.selections[0], c2), p3)
        expected = [pyramid.convs[0](p2), pyramid.convs[1](p3), pyramid.convs[2](p4), p5]
        for found, level in zip(pyramid((c2, c3, c4, c5)), expected, strict=True):
            torch.testing.assert_close(found, level, rtol=1e-4, atol=1e-5)


def test_alignment_begins_as_half_an_ordinary_convolution() -> None:
    torch.manual_seed(0)
    module = FeatureAlignment(8, num_groups=2)
    fine, coarse = torch.randn(1, 8, 6, 6), torch.randn(1, 8, 6, 6)
    assert module.move.bias is not None
    plain = functional.conv2d(coarse, module.move.weight / 2, module.move.bias, padding=1)
    torch.testing.assert_close(module(fine, coarse), torch.relu(plain) + fine, rtol=1e-4, atol=1e-5)


def test_an_offset_of_one_cell_moves_the_coarse_level_by_one_cell() -> None:
    module = FeatureAlignment(4, num_groups=1)
    nn.init.zeros_(module.move.weight)
    module.move.weight.data[:, :, 1, 1] = torch.eye(4)
    nn.init.zeros_(module.move.bias)  # type: ignore[arg-type]
    module.offsets.bias.data[1:18:2] = 1.0  # type: ignore[union-attr]
    module.offsets.bias.data[18:] = 100.0  # type: ignore[union-attr]
    coarse = torch.rand(1, 4, 5, 6)
    moved = module(torch.zeros(1, 4, 5, 6), coarse)
    torch.testing.assert_close(moved[..., :-1], coarse[..., 1:], rtol=1e-4, atol=1e-5)


def test_the_pyramid_has_the_parameters_of_the_authors_code() -> None:
    """Their layers at 256 channels: selection C² + 256·C, comparison 2·256², offsets and masks, kernel, 3×3, top."""
    finer, width = (256, 512, 1024), 256
    selection = sum(channels * channels + channels * width for channels in finer)
    kernel = 9 * width * width + width
    alignment = 2 * width * width + (9 * width * 216 + 216) + kernel
    expected = selection + 3 * (alignment + kernel) + 2048 * width + width
    with torch.device("meta"):
        pyramid = create_model("fapn_resnet50", num_classes=150).pyramid
    assert isinstance(pyramid, AlignedPyramid)
    assert sum(value.numel() for value in pyramid.parameters()) == expected == 7_786_888


def test_moved_levels_run_in_onnxruntime(tmp_path: Path) -> None:
    (result,) = export_model(moving(), directory=tmp_path, formats=("onnx",), size=(40, 56))
    assert result.max_rel_diff <= 1e-4


def test_groups_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(ValueError, match="width = 20 must be a multiple of num_groups = 8"):
        create_model({"arch": "fapn", "width": 20}, num_classes=2)


def test_the_recipe_holds_the_authors_settings() -> None:
    recipe = resolve_recipe("fapn_resnet50_cityscapes")
    assert (recipe.optimizer.lr, recipe.optimizer.weight_decay) == (0.01, 1e-4)
    assert (recipe.steps, recipe.global_batch, recipe.augment.crop) == (65_000, 32, (512, 1024))
    assert recipe.schedule.warmup_steps == 1000
