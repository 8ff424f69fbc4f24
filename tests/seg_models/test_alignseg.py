"""AlignSeg against its equations in loops, a literal composition, the authors' counts, and its settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from seg_models import create_model, describe_model
from seg_models.architectures.alignseg import AlignedContext, AlignSeg, AlignSegSpec, FlowField, Refinement, warp
from seg_models.backbones.timm_backbone import BackboneSpec
from seg_models.export import export_model
from seg_models.models import change_spec
from seg_models.recipes import resolve_recipe
from seg_models.spec import preset

NARROW = BackboneSpec(name="resnet10t", model_kwargs={"channels": [8, 16, 16, 32], "stem_width": 8})
SMALL = AlignSegSpec(backbone=NARROW, width=16, aux_channels=8)


def moving(spec: AlignSegSpec = SMALL) -> AlignSeg:
    """A network with flows and norms that are not those of its first step."""
    torch.manual_seed(0)
    model = spec.build(4).eval()
    for module in model.modules():
        if isinstance(module, FlowField):
            nn.init.normal_(module.flow.weight, std=0.2)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return model


def slow_warp(x: Tensor, flow: Tensor, *, align_corners: bool) -> Tensor:
    """Σ over cells of x·max(0, 1 − |Δrow|)·max(0, 1 − |Δcolumn|) around the place each cell looks at."""
    (n, _, height, width), (h, w) = x.shape, flow.shape[-2:]
    out = torch.zeros(*x.shape[:2], h, w)
    for image in range(n):
        for i in range(h):
            for j in range(w):
                row, column = i + float(flow[image, 1, i, j]), j + float(flow[image, 0, i, j])
                if align_corners:
                    row, column = row * (height - 1) / max(h - 1, 1), column * (width - 1) / max(w - 1, 1)
                else:
                    row = min(max((row + 0.5) * height / h - 0.5, 0), height - 1)
                    column = min(max((column + 0.5) * width / w - 0.5, 0), width - 1)
                for k in range(height):
                    for m in range(width):
                        share = max(0.0, 1 - abs(row - k)) * max(0.0, 1 - abs(column - m))
                        out[image, :, i, j] += share * x[image, :, k, m]
    return out


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(("size", "larger"), [((4, 5), (4, 5)), ((3, 3), (4, 7)), ((3, 3), (1, 1)), ((1, 1), (2, 3))])
def test_a_warp_follows_its_formula(size: tuple[int, int], larger: tuple[int, int], align_corners: bool) -> None:
    torch.manual_seed(0)
    x, flow = torch.randn(2, 3, *size), 2 * torch.randn(2, 2, *larger)
    found = warp(x, flow, align_corners=align_corners)
    torch.testing.assert_close(found, slow_warp(x, flow, align_corners=align_corners), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("align_corners", [False, True])
def test_a_flow_of_zero_is_plain_enlarging(align_corners: bool) -> None:
    x = torch.randn(1, 2, 3, 4)
    expected = functional.interpolate(x, size=(7, 9), mode="bilinear", align_corners=align_corners)
    found = warp(x, torch.zeros(1, 2, 7, 9), align_corners=align_corners)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def refined(module: Any, x: Tensor) -> Tensor:
    x = module.unify(x)
    return torch.relu(module.norm(x + module.residual[1](module.residual[0](x))))


def joined(module: Any, fine: Tensor, coarse: Tensor) -> Tensor:
    coarse = functional.interpolate(coarse, size=fine.shape[-2:], mode="bilinear", align_corners=False)
    both = torch.cat([fine, coarse], dim=1)
    return slow_warp(coarse, module.coarse_flow(both), align_corners=False) + slow_warp(
        fine, module.fine_flow(both), align_corners=False
    )


def with_context(module: Any, x: Tensor) -> Tensor:
    context = module.pooled(functional.adaptive_avg_pool2d(x, 3))
    adapted = module.adapted(x)
    enlarged = functional.interpolate(context, size=x.shape[-2:], mode="bilinear", align_corners=False)
    flow = module.flow(torch.cat([adapted, enlarged], dim=1))
    out: Tensor = slow_warp(context, flow, align_corners=False) + adapted
    return out


def test_the_network_equals_a_literal_composition() -> None:
    model: Any = moving()
    images = torch.randint(0, 256, (1, 3, 32, 40), dtype=torch.uint8)
    with torch.no_grad():
        c2, c3, c4, c5 = model.backbone(images)[-4:]
        x = refined(model.first, c2)
        for i, level in enumerate((c3, c4, c5, with_context(model.context, c5))):
            x = refined(model.exits[i], joined(model.joins[i], x, refined(model.entries[i], level)))
        torch.testing.assert_close(model(images).logits, model.head(x), rtol=1e-4, atol=1e-5)


def test_the_auxiliary_head_looks_at_the_map_after_c4_has_joined() -> None:
    model = moving().train()
    seen: list[Tensor] = []
    model.exits[1].register_forward_hook(lambda *call: seen.append(call[2]))
    assert model.aux_head is not None
    model.aux_head.eval()
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    output = model(images)
    assert output.aux[0].shape == output.logits.shape == (2, 4, 16, 16)
    assert torch.equal(output.aux[0], model.aux_head(seen[0]))


def test_settings_of_the_authors_code_change_what_is_computed_and_no_count() -> None:
    plain = moving()
    images = torch.randint(0, 256, (1, 3, 48, 64), dtype=torch.uint8)
    for changes in ({"activation": "leaky_relu"}, {"align_corners": True}):
        other = SMALL.model_copy(update=changes).build(4).eval()
        other.load_state_dict(plain.state_dict())
        with torch.no_grad():
            assert not torch.allclose(other(images).logits, plain(images).logits)


@pytest.mark.parametrize(("num_classes", "main", "aux"), [(19, 23_626_899, 595_475), (150, 23_660_566, 629_142)])
def test_the_head_has_the_parameters_of_the_authors_code(num_classes: int, main: int, aux: int) -> None:
    """Counted on their network with the stem of three convolutions, 23 631 808 parameters with ResNet-50."""
    with torch.device("meta"):
        trunk = sum(value.numel() for value in BackboneSpec(name="resnet50s").build().parameters())
    assert trunk == 23_631_808
    info = describe_model(AlignSegSpec(backbone=BackboneSpec(name="resnet50s")), num_classes=num_classes, size=(64, 64))
    assert (info.params_main - trunk, info.params_aux) == (main, aux)


@pytest.mark.parametrize("backbone", ["resnet50", "mit_b2"])
def test_cft_has_fewer_parameters_and_with_a_lighter_fusion_fewer_multiply_adds(backbone: str) -> None:
    """CFT's table 1 has both below AlignSeg's. With the 3×3 convolution over four levels of its code, CFT has more
    multiply-adds (93 and 86 GMAC with ResNet-50): the table's head must be lighter, such as doublings and a sum.
    """
    theirs = describe_model(f"alignseg_{backbone}", num_classes=150)
    released = describe_model(f"cft_{backbone}", num_classes=150)
    narrow_sum = change_spec(preset(f"cft_{backbone}"), {"fusion": "sum", "fusion_channels": 128})
    lighter = describe_model(narrow_sum, num_classes=150)
    assert max(released.params_main, lighter.params_main) < theirs.params_main
    assert lighter.gmac < theirs.gmac < released.gmac


def test_moved_maps_run_in_onnxruntime(tmp_path: Path) -> None:
    (result,) = export_model(moving(), directory=tmp_path, formats=("onnx",), size=(40, 56))
    assert result.max_rel_diff <= 1e-4


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"width": 18}, "multiple of 4"), ({"activation": "gelu"}, "relu"), ({"widht": 8}, "widht")],
)
def test_settings_without_a_meaning_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_model({"arch": "alignseg", **changes}, num_classes=2)


def test_parts_keep_the_size_of_small_maps() -> None:
    relu = nn.ReLU
    assert Refinement(4, 8, act=relu)(torch.randn(2, 4, 1, 1)).shape == (2, 8, 1, 1)
    context = AlignedContext(6, 8, cells=3, act=relu, align_corners=True)
    found = context(torch.randn(2, 6, 1, 1))
    assert found.shape == (2, 8, 1, 1)
    assert torch.isfinite(found).all()


def test_the_recipe_holds_the_authors_settings_without_hard_pixels() -> None:
    recipe = resolve_recipe("alignseg_resnet101_cityscapes")
    assert recipe.model == preset("alignseg_resnet101_official").model_copy(
        update={"backbone": BackboneSpec(name="resnet101s", pretrained=True)}
    )
    assert (recipe.optimizer.lr, recipe.optimizer.weight_decay) == (0.01, 5e-4)
    assert (recipe.steps, recipe.global_batch, recipe.augment.crop) == (120_000, 8, (872, 872))
    assert recipe.loss.aux_weight == 0.1


@pytest.mark.parametrize("name", ["vtfpn", "fapn", "alignseg"])
def test_rows_of_cfts_table_differ_in_the_network_alone(name: str) -> None:
    for suffix in ("resnet50_ade20k", "efficientnet_lite0_camvid"):
        ours, cft = resolve_recipe(f"{name}_{suffix}"), resolve_recipe(f"cft_{suffix}")
        assert ours.model.arch == name
        assert ours.model_dump(exclude={"model"}) == cft.model_dump(exclude={"model"})
        assert ours.model_dump()["model"]["backbone"] == cft.model_dump()["model"]["backbone"]
