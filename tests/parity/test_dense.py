"""FCN and DeepLabV3 against torchvision, DeepLabV3+ against segmentation_models.pytorch, with the same weights."""

from __future__ import annotations

import pytest
import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.segmentation import deeplabv3_resnet50, fcn_resnet50  # type: ignore[import-untyped]

from seg_models import create_model, describe_model
from seg_models.export import FullSizeScores
from seg_models.outputs import SegModel

MEAN = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
TORCHVISION = {"fcn_resnet50": fcn_resnet50, "deeplabv3_resnet50": deeplabv3_resnet50}


def randomize_norms(module: nn.Module) -> None:
    """Running statistics and scales that a forgotten or misplaced norm would show up against."""
    generator = torch.Generator().manual_seed(7)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            for value, offset in ((norm.running_mean, 0.0), (norm.running_var, 0.5), (norm.weight, 0.5)):
                assert value is not None
                value.data.copy_(offset + 0.5 * torch.rand(norm.num_features, generator=generator))


def make_images(height: int, width: int) -> Tensor:
    return torch.randint(0, 256, (1, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def ours(name: str) -> SegModel:
    torch.manual_seed(0)
    model = create_model(name, num_classes=5)
    randomize_norms(model)
    return model.eval()


def fill(reference: nn.Module, values: dict[str, Tensor]) -> None:
    """Tensors in order: both networks define their layers in the order in which they are used."""
    names = list(reference.state_dict())
    reference.load_state_dict(dict(zip(names, values.values(), strict=True)))


def part(model: nn.Module, *names: str) -> dict[str, Tensor]:
    """The state of some modules, in this order."""
    state = model.state_dict()
    return {key: value for name in names for key, value in state.items() if key.startswith(f"{name}.")}


@pytest.mark.parametrize("size", [(64, 64), (65, 97)])
@pytest.mark.parametrize("name", TORCHVISION)
def test_a_whole_network_equals_torchvisions(name: str, size: tuple[int, int]) -> None:
    model = ours(name)
    reference = TORCHVISION[name](weights=None, weights_backbone=None, num_classes=5, aux_loss=True).eval()
    fill(reference.backbone, part(model, "backbone"))
    fill(reference.classifier, part(model, "context", "head"))
    fill(reference.aux_classifier, part(model, "aux_head"))
    images = make_images(*size)
    with torch.no_grad():
        expected = reference((images / 255 - MEAN) / STD)["out"]
        found = FullSizeScores(model)(images)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("name", TORCHVISION)
def test_multiply_adds_are_those_of_torchvisions_main_path(name: str) -> None:
    with torch.device("meta"):
        reference = TORCHVISION[name](weights=None, weights_backbone=None, num_classes=21, aux_loss=False).eval()
        images = torch.empty(1, 3, 256, 256)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        reference(images)
    found = describe_model(name, num_classes=21, size=(256, 256)).gmac
    assert found == pytest.approx(counter.get_total_flops() / 2e9, rel=0.001)


@pytest.mark.parametrize("size", [(64, 64), (96, 128)])
def test_deeplabv3plus_equals_segmentation_models_pytorch(size: tuple[int, int]) -> None:
    """Its encoder dilates the last stage's first block, and it enlarges the scores with corners aligned."""
    model = ours("deeplabv3plus_resnet50_smp")
    reference = smp.DeepLabV3Plus("resnet50", encoder_weights=None, classes=5, upsampling=1).eval()
    first = reference.encoder.layer4[0].conv2
    first.dilation = first.padding = (1, 1)
    fill(reference.encoder, part(model, "backbone"))
    fill(reference.decoder.aspp, part(model, "context"))
    fill(reference.decoder.block1, part(model, "fine"))
    fill(reference.decoder.block2, part(model, "refine"))
    fill(reference.segmentation_head, part(model, "classifier"))
    images = make_images(*size)
    with torch.no_grad():
        expected = reference((images / 255 - MEAN) / STD)
        found = model(images).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_the_plain_decoder_of_deeplabv3plus_has_full_convolutions() -> None:
    plain, separable = (
        describe_model({"preset": "deeplabv3plus_resnet50", "separable": value}, num_classes=19, size=(64, 64))
        for value in (False, True)
    )
    full = 3 * 2048 * 256 * 9 + 304 * 256 * 9 + 256 * 256 * 9
    depthwise = (
        3 * (2048 * 9 + 2 * 2048 + 2048 * 256) + (304 * 9 + 2 * 304 + 304 * 256) + (256 * 9 + 2 * 256 + 256 * 256)
    )
    assert plain.params - separable.params == full - depthwise


def test_settings_of_deeplabv3plus_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="smp_compat needs separable"):
        create_model("deeplabv3plus_resnet50_smp", num_classes=3, separable=False)
