"""OCRNet against loops over classes and cells, its options, its counts and its export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from seg_models import describe_model
from seg_models.architectures.hmsa import HMSASpec
from seg_models.architectures.ocrnet import OCRNet, OCRNetSpec
from seg_models.backbones.timm_backbone import BackboneSpec
from seg_models.export import export_model
from seg_models.outputs import SemanticTarget
from seg_models.parts.mask_losses import MaskLossSpec, mask_losses
from seg_models.recipes import resolve_recipe
from seg_models.recipes.ocrnet import RECIPES
from seg_models.spec import preset
from tests.recipe_steps import losses_of_steps

K, VOID = 5, 255
TINY = BackboneSpec(name="resnet10t", output_stride=8, model_kwargs={"channels": [8, 8, 16, 16], "stem_width": 8})
NARROW: dict[str, Any] = {"channels": 12, "key_channels": 6, "region_channels": 8, "dropout": 0.0}


def tiny(**changes: Any) -> OCRNet:
    torch.manual_seed(0)
    model = OCRNetSpec(backbone=TINY, channels=12, key_channels=6, region_channels=8, **changes).build(K)
    assert isinstance(model, OCRNet)
    return model


def make_images(n: int = 2) -> Tensor:
    return torch.randint(0, 256, (n, 3, 40, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def with_lively_weights(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(2)
    for name, value in model.state_dict().items():
        if value.is_floating_point() and not name.startswith("backbone."):
            value += 0.2 * torch.rand(value.shape, generator=generator)
    return model.eval()


def layer(block: Any, x: Tensor) -> Tensor:
    """1×1 convolution, batch norm, ReLU of one vector (C,)."""
    out = block.conv.weight[:, :, 0, 0] @ x
    norm = block.norm
    out = (out - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias
    return torch.clamp(out, min=0)


def softmax(scores: list[Tensor]) -> list[Tensor]:
    total = sum(score.exp() for score in scores)
    return [score.exp() / total for score in scores]


def scores_by_loops(model: Any, x: Tensor, regions: Tensor) -> Tensor:
    """One image: features (C, h, w) and region scores (K, h, w) to class scores (K, h, w), equations 2 to 5."""
    context = model.context
    cells = [(i, j) for i in range(x.shape[1]) for j in range(x.shape[2])]
    keys, values = [], []
    for k in range(K):
        weights = softmax([regions[k, i, j] for i, j in cells])
        region = torch.stack([weight * x[:, i, j] for weight, (i, j) in zip(weights, cells, strict=True)]).sum(0)
        keys.append(layer(context.key[1], layer(context.key[0], region)))
        values.append(layer(context.value, region))
    out = torch.empty(K, *x.shape[1:])
    for i, j in cells:
        query = layer(context.query[1], layer(context.query[0], x[:, i, j]))
        weights = softmax([query @ key / len(query) ** 0.5 for key in keys])
        seen = torch.stack([weight * value for weight, value in zip(weights, values, strict=True)]).sum(0)
        augmented = layer(context.fuse, torch.cat([layer(context.up, seen), x[:, i, j]]))
        out[:, i, j] = model.classifier.weight[:, :, 0, 0] @ augmented + model.classifier.bias
    return out


def test_the_scores_equal_loops_over_regions_and_cells() -> None:
    model: Any = with_lively_weights(tiny())
    images = make_images()
    with torch.no_grad():
        features = model.backbone(images)
        regions, x = model.regions(features[-2]), model.neck(features[-1])
        expected = torch.stack([scores_by_loops(model, *pair) for pair in zip(x, regions, strict=True)])
        torch.testing.assert_close(model(images).logits, expected, rtol=1e-4, atol=1e-5)


def test_the_auxiliary_scores_are_the_regions_and_take_only_their_own_gradient() -> None:
    model = tiny(dropout=0.0).train()
    output, features = model(make_images()), model.backbone(make_images())
    torch.testing.assert_close(output.aux[0], model.regions(features[-2]), rtol=1e-3, atol=1e-4)
    own: tuple[Any, ...] = torch.autograd.grad(output.logits.sum(), output.aux, allow_unused=True, retain_graph=True)
    assert own == (None,)
    (through_context,) = torch.autograd.grad(output.logits.square().sum(), [model.regions.classifier.weight])
    assert through_context.any()  # yet the regions learn what serves the context


def test_the_mask_loss_is_laid_on_the_regions_beside_their_cross_entropy() -> None:
    model = tiny(mask_loss=MaskLossSpec(focal_weight=3.0, dice_weight=0.5, count_void_as_negative=True)).train()
    labels = torch.randint(0, K, (2, 40, 32), generator=torch.Generator().manual_seed(0))
    labels[:, :9] = VOID
    output = model(make_images())
    losses = model.loss(output, SemanticTarget(labels, VOID))
    found = mask_losses(output.aux, labels, void=VOID, count_void_as_negative=True)
    assert list(losses) == ["ce", "aux_ce", "focal_masks", "dice_masks"]
    torch.testing.assert_close(losses["focal_masks"], 3 * found.focal)
    torch.testing.assert_close(losses["dice_masks"], 0.5 * found.dice)
    assert list(model.eval().loss(model(make_images()), SemanticTarget(labels, VOID))) == ["ce"]


def test_without_it_there_are_two_losses_and_equal_scores() -> None:
    plain, masked = tiny().eval(), tiny(mask_loss=MaskLossSpec()).eval()
    with torch.no_grad():
        assert torch.equal(plain(make_images()).logits, masked(make_images()).logits)
    target = SemanticTarget(torch.zeros(2, 40, 32, dtype=torch.int64), VOID)
    assert list(plain.loss(plain.train()(make_images()), target)) == ["ce", "aux_ce"]


def test_a_backbone_whose_last_levels_differ_in_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"equal strides, found \(16, 32\) in resnet10t; set backbone.output_stride"):
        OCRNetSpec(backbone=BackboneSpec(name="resnet10t")).build(K)


def test_a_class_of_one_pixel_and_a_class_alone_give_finite_scores() -> None:
    model = with_lively_weights(tiny())
    assert isinstance(model, OCRNet)
    with torch.no_grad():
        features, regions = torch.randn(1, 12, 5, 4), torch.full((1, K, 5, 4), -1e4)
        regions[0, 0, 0, 0] = 1e4  # one region is one cell, the others are the whole map
        assert torch.isfinite(model.context(features, regions)).all()
        assert torch.isfinite(model.context(features, regions[:, :1])).all()


def params(*layers: int) -> int:
    return sum(layers)


def conv(inputs: int, outputs: int, side: int = 1, *, norm: bool = True, bias: bool = False) -> int:
    """Parameters of a convolution, with the two of its norm."""
    return inputs * outputs * side**2 + 2 * outputs * norm + outputs * bias


# mmsegmentation's ocrnet_r50-d8, and openseg.pytorch's SpatialOCRNet, layer by layer.
BACKBONES = {"ocrnet_resnet50": 23_527_264, "ocrnet_resnet101": 42_519_392, "ocrnet_resnet101_official": 42_519_392}


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("num_classes", [19, 150])
def test_parameters_are_those_of_the_published_layers(name: str, num_classes: int) -> None:
    official = name.endswith("official")
    width = 512 if official else 256
    context = params(
        *(conv(512, 256), conv(256, 256)),  # query
        *(conv(512, 256), conv(256, 256)),  # key
        *(conv(512, 256), conv(256, 512), conv(1024, 512)),  # value, way up, fusion
    )
    heads = params(
        *(conv(1024, width, 3, bias=official), conv(width, num_classes, norm=False, bias=True)),
        *(conv(2048, 512, 3, bias=official), conv(512, num_classes, norm=False, bias=True)),
    )
    info = describe_model(name, num_classes=num_classes, size=(64, 64))
    assert (info.params_main, info.params_aux) == (BACKBONES[name] + context + heads, 0)


def test_the_official_form_differs_in_the_head_of_the_regions_and_in_biases() -> None:
    with torch.device("meta"):
        models = [preset(f"ocrnet_resnet101{ending}").build(19) for ending in ("", "_official")]
    plain, official = ({name: value.shape for name, value in model.state_dict().items()} for model in models)
    changed = {name for name, shape in official.items() if plain.get(name) != shape}
    assert {name for name in changed if not name.startswith("regions.")} == {"neck.conv.bias"}
    assert official["regions.conv.conv.weight"] == (512, 1024, 3, 3)


@pytest.mark.filterwarnings("ignore:The given buffer is not writable")
def test_an_onnx_file_gives_the_scores_of_the_model(tmp_path: Path) -> None:
    (result,) = export_model(tiny(), directory=tmp_path / "out", formats=("onnx",), size=(40, 32))
    assert result.max_rel_diff <= 1e-4


def test_a_recipe_with_masks_differs_from_the_one_without_in_the_mask_loss_alone() -> None:
    plain, masked = (resolve_recipe(f"ocrnet_resnet101_official_ade20k{ending}") for ending in ("", "_masks"))
    assert masked.model == plain.model.model_copy(update={"mask_loss": MaskLossSpec(focal_weight=5.0, dice_weight=2.0)})
    assert masked.model_copy(update={"model": plain.model}) == plain
    table = {"base": "ocrnet_resnet101_official_ade20k", "model": {"mask_loss": {}}}
    assert resolve_recipe(table) == masked


def test_the_mask_loss_reaches_the_regions_under_scale_attention_too() -> None:
    inner = OCRNetSpec(backbone=TINY, **NARROW, mask_loss=MaskLossSpec())
    model = HMSASpec(inner=inner, attention_channels=4).build(K).train()
    losses = model.loss(model(make_images()), SemanticTarget(torch.zeros(2, 40, 32, dtype=torch.int64), VOID))
    assert {"bce", "rmi", "aux_bce", "focal_masks", "dice_masks"} <= set(losses)


@pytest.mark.parametrize("name", [function.__name__ for function in RECIPES])
def test_two_steps_of_a_published_recipe_in_a_reduced_form_lower_its_loss(name: str) -> None:
    recipe = resolve_recipe({"base": name, "model": {"backbone": TINY.model_dump(), **NARROW}})
    target = SemanticTarget(torch.arange(32).expand(2, 40, 32) // 8 % K, VOID)
    losses = losses_of_steps(recipe, make_images(), target, num_classes=K)
    assert losses[-1] < losses[0]
