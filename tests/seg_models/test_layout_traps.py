"""What in published checkpoints differs beyond names: signs, orders of channels, axes, in-place norms."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional

from seg_models.architectures.cft import CFTSpec
from seg_models.backbones.timm_backbone import BackboneSpec
from seg_models.weights.layouts import LAYOUTS
from tests.published_lists import from_lists


def test_ccnets_first_convolution_sees_rgb_and_norms_multiply_by_absolute_values() -> None:
    first = torch.arange(3.0).view(1, 3, 1, 1)
    ours = LAYOUTS["ccnet_official"].to_ours(
        {
            "module.conv1.weight": first,
            "module.bn1.weight": torch.tensor([-2.0]),
            "module.bn1.running_var": torch.ones(1),
            "module.bn1.bias": torch.tensor([-3.0]),
            "module.layer1.0.conv1.weight": first,
        }
    )
    assert ours["backbone.network.conv1.0.weight"].flatten().tolist() == [2, 1, 0]
    assert ours["backbone.network.layer1.0.conv1.weight"].flatten().tolist() == [0, 1, 2]
    assert ours["backbone.network.conv1.1.weight"].item() == pytest.approx(2.00001, rel=1e-7)
    assert ours["backbone.network.conv1.1.bias"].item() == -3


def test_keys_and_values_of_transformers_stand_one_above_the_other() -> None:
    tensors = from_lists("segformer_transformers_mit_b0")
    ours = LAYOUTS["segformer_transformers"].to_ours(tensors)["backbone.network.block3.1.attn.kv.weight"]
    attention = "segformer.encoder.block.2.1.attention.self"
    assert torch.equal(ours[:160], tensors[f"{attention}.key.weight"])
    assert torch.equal(ours[160:], tensors[f"{attention}.value.weight"])


def test_linear_layers_of_paddle_multiply_from_the_other_side() -> None:
    weight, features = torch.randn(4, 4, generator=torch.Generator().manual_seed(0)), torch.arange(4.0)
    ours = LAYOUTS["segformer_paddleseg"].to_ours(
        {"backbone.block1.0.attn.q.weight": weight, "linear_c4.proj.weight": weight}
    )
    torch.testing.assert_close(
        functional.linear(features, ours["backbone.network.block1.0.attn.q.weight"]), features @ weight
    )
    found = functional.conv2d(features.view(1, 4, 1, 1), ours["head.linears.3.weight"]).flatten()
    torch.testing.assert_close(found, features @ weight)


def test_a_cft_trained_with_negated_energy_gives_its_scores_in_the_plain_form() -> None:
    settings: dict[str, Any] = {
        "backbone": BackboneSpec(name="resnet10t", model_kwargs={"channels": [8, 8, 16, 16], "stem_width": 8}),
        "width": 8,
        "num_heads": 2,
    }
    torch.manual_seed(0)
    theirs, ours = (CFTSpec(negate_energy=flag, **settings).build(3).eval() for flag in (True, False))
    for parameter in theirs.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    ours.load_state_dict({name: LAYOUTS["cft_mmseg"].adapt(name, value) for name, value in theirs.state_dict().items()})
    images = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        torch.testing.assert_close(ours(images).logits, theirs(images).logits, rtol=1e-4, atol=1e-5)


def test_danets_three_classifiers_are_not_mixed_up() -> None:
    theirs = {f"head.conv{number}.1.bias": torch.tensor([float(number)]) for number in (6, 7, 8)}
    assert {name: value.item() for name, value in LAYOUTS["danet_official"].to_ours(theirs).items()} == {
        "position_classifier.conv.bias": 6,
        "channel_classifier.conv.bias": 7,
        "classifier.conv.bias": 8,
    }


def test_levels_of_the_authors_pyramid_enter_in_reverse() -> None:
    """Literal forms of both: the authors' order of levels with their kernels, ours with the mapped ones."""
    generator = torch.Generator().manual_seed(0)
    depthwise = torch.randn(6, 1, 3, 3, generator=generator)
    pointwise = torch.randn(5, 6, 1, 1, generator=generator)
    theirs = {"jpu.dilation1.0.conv1.weight": depthwise, "jpu.dilation1.0.pointwise.weight": pointwise}
    ours = LAYOUTS["fastfcn_official_fcn"].to_ours(theirs)
    c3, c4, c5 = (torch.randn(1, 2, 4, 4, generator=generator) for _ in range(3))
    gaps = functional.conv2d(torch.cat([c5, c4, c3], dim=1), depthwise, padding=1, groups=6)
    expected = functional.conv2d(gaps, pointwise)
    own = functional.conv2d(
        torch.cat([c3, c4, c5], dim=1), ours["upsampling.branches.0.depthwise.weight"], padding=1, groups=6
    )
    found = functional.conv2d(own, ours["upsampling.branches.0.pointwise.weight"])
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("head", "order"), [("aspp", [2, 3, 4, 5, 6, 7, 8, 9, 0, 1]), ("psp", list(range(10)))])
def test_the_mean_of_the_map_comes_first_in_mmsegmentations_aspp_and_last_here(head: str, order: list[int]) -> None:
    weight = torch.arange(10.0).view(1, 10, 1, 1)
    ours = LAYOUTS[f"fastfcn_mmseg_{head}"].to_ours({"decode_head.bottleneck.conv.weight": weight})
    assert ours["head.fuse.conv.conv.weight"].flatten().tolist() == order


@pytest.mark.parametrize("name", LAYOUTS)
def test_tensors_of_other_shapes_break_no_layout(name: str) -> None:
    layout = LAYOUTS[name]
    names = [f"{module}.weight" for module in layout.modules] + list(layout.modules)
    for shape in ((), (1,), (7,), (7, 3), (5, 2, 1)):
        tensors = {name: torch.zeros(shape) for name in names}
        assert layout.to_ours(tensors)
