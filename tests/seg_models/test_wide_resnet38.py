"""WideResNet-38: counts, strides, the names of published weights, and a block in torch functions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from seg_models.backbones.timm_backbone import Backbone, BackboneSpec
from seg_models.backbones.wide_resnet38 import PreActivationBlock, WideResNet38

NARROW: dict[str, Any] = {"width": 1 / 16, "depths": [1, 2, 1, 1, 1, 1]}


def build(**changes: Any) -> Backbone:
    torch.manual_seed(0)
    return BackboneSpec(**{"name": "wideresnet38", "output_stride": 8, "model_kwargs": NARROW, **changes}).build()


def test_the_trunk_has_the_parameters_of_the_sheet() -> None:
    with torch.device("meta"):
        backbone = BackboneSpec(name="wideresnet38", output_stride=8).build()
    assert sum(value.numel() for value in backbone.parameters()) == 105_062_720
    assert backbone.channels == (64, 128, 256, 512, 4096)


@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_levels_have_the_strides_and_channels_they_are_said_to_have(output_stride: int) -> None:
    strides = (1, 2, 4, 8, output_stride)
    backbone = build(output_stride=output_stride).eval()
    assert backbone.strides == strides
    with torch.no_grad():
        features = backbone(torch.zeros(1, 3, 64, 96, dtype=torch.uint8))
    expected = [(1, c, 64 // s, 96 // s) for c, s in zip(backbone.channels, strides, strict=True)]
    assert [tuple(level.shape) for level in features] == expected


def test_dilation_keeps_the_weights_and_dilates_as_the_sheet_says() -> None:
    fine, coarse = build(output_stride=8), build(output_stride=32)
    coarse.load_state_dict(fine.state_dict())
    dilations = {
        name.split(".")[1]: module.dilation[0]
        for name, module in fine.named_modules()
        if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3)
    }
    assert dilations == {"mod1": 1, "mod2": 1, "mod3": 1, "mod4": 1, "mod5": 2, "mod6": 4, "mod7": 4}
    drops = {name.split(".")[1]: module.p for name, module in fine.named_modules() if isinstance(module, nn.Dropout2d)}
    assert drops == {"mod6": 0.3, "mod7": 0.5}


def functional_block(state: dict[str, Tensor], x: Tensor, *, stride: int) -> Tensor:
    """Norm, ReLU, convolution, twice; the shortcut sees the activated input."""

    def act(features: Tensor, name: str) -> Tensor:
        mean, var = state[f"{name}.0.running_mean"], state[f"{name}.0.running_var"]
        normed = functional.batch_norm(features, mean, var, state[f"{name}.0.weight"], state[f"{name}.0.bias"])
        return functional.relu(normed)

    activated = act(x, "bn1")
    out = functional.conv2d(activated, state["convs.conv1.weight"], stride=stride, padding=1)
    out = functional.conv2d(act(out, "convs.bn2"), state["convs.conv2.weight"], padding=1)
    return out + functional.conv2d(activated, state["proj_conv.weight"], stride=stride)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_block_activates_before_it_convolves(stride: int) -> None:
    torch.manual_seed(1)
    block = PreActivationBlock(4, (6, 8), stride=stride).eval()
    for norm in (module for module in block.modules() if isinstance(module, nn.BatchNorm2d)):
        nn.init.normal_(norm.bias)
        nn.init.uniform_(norm.weight)
    x = torch.randn(2, 4, 9, 7)
    with torch.no_grad():
        torch.testing.assert_close(block(x), functional_block(block.state_dict(), x, stride=stride))


def test_a_block_that_changes_nothing_adds_its_raw_input() -> None:
    block = PreActivationBlock(4, (6, 4))
    assert block.proj_conv is None
    nn.init.zeros_(block.convs.get_submodule("conv2").weight)  # type: ignore[arg-type]
    x = torch.randn(2, 4, 5, 5)
    assert torch.equal(block(x), x)


def test_published_imagenet_weights_are_taken_in_order(tmp_path: Path) -> None:
    backbone = build()
    tensors = {f"module.{name}": torch.randn(value.shape) for name, value in backbone.network.state_dict().items()}
    tensors = {name: value for name, value in tensors.items() if not name.endswith("num_batches_tracked")}
    tensors |= {f"module.bn_out.0.{part}": torch.zeros(256) for part in ("weight", "bias")}
    tensors |= {"module.classifier.fc.weight": torch.zeros(7, 256), "module.classifier.fc.bias": torch.zeros(7)}
    torch.save({"state_dict": tensors}, tmp_path / "wide.pth")
    filled = build(weights=str(tmp_path / "wide.pth"), match="order").network.state_dict()
    assert all(torch.equal(filled[name.removeprefix("module.")], value) for name, value in list(tensors.items())[:-4])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"output_stride": 4}, "WideResNet-38 has no output_stride 4: allowed are 8, 16, 32"),
        ({"pretrained": True}, "no published weights for 'wideresnet38': give the path of a file"),
        ({"name": "wideresnet83"}, "unknown timm model 'wideresnet83' .did you mean 'wideresnet38'"),
        ({"model_kwargs": {"depths": [1, 2]}}, "has six modules of blocks"),
        ({"model_kwargs": {"breadth": 2}}, "breadth"),
    ],
)
def test_what_the_network_cannot_be_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**changes)


def test_it_is_a_plain_module_too() -> None:
    network = WideResNet38(output_stride=8, width=1 / 16, depths=(1, 1, 1, 1, 1, 1)).eval()
    assert [level.shape[-1] for level in network(torch.randn(1, 3, 33, 41))] == [41, 21, 11, 6, 6]
