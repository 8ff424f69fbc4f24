"""SegFormer against segmentation_models.pytorch with the same weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from segmentation_models_pytorch import Segformer
from torch import Tensor, nn

from seg_models.architectures.segformer import PRESETS, SegFormer, SegFormerSpec
from seg_models.backbones.timm_backbone import BackboneSpec


def reference_of(model: SegFormer) -> nn.Module:
    """The same network of segmentation_models.pytorch with our weights; its head counts levels from the coarsest."""
    reference = Segformer("mit_b0", encoder_weights=None, decoder_segmentation_channels=32, classes=5, upsampling=1)
    reference.encoder.load_state_dict(model.backbone.network.state_dict())
    decoder: dict[str, Tensor] = {}
    for i, linear in enumerate(reversed(list(model.head.linears))):
        assert isinstance(linear, nn.Conv2d)
        assert linear.bias is not None
        decoder |= {
            f"mlp_stage.{i}.linear.weight": linear.weight.flatten(1),
            f"mlp_stage.{i}.linear.bias": linear.bias,
        }
    fuse = {name.replace("conv.", "0.").replace("norm.", "1."): t for name, t in model.head.fuse.state_dict().items()}
    decoder |= {f"fuse_stage.{name}": tensor for name, tensor in fuse.items()}
    reference.decoder.load_state_dict(decoder)
    head = {f"0.{name}": tensor for name, tensor in model.classifier.conv.state_dict().items()}
    reference.segmentation_head.load_state_dict(head)
    network: nn.Module = reference.eval()
    return network


@pytest.mark.parametrize("size", [(64, 64), (96, 128)])
def test_scores_equal_segmentation_models_pytorch(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    model = SegFormerSpec(backbone=BackboneSpec(name="mit_b0"), width=32).build(5).eval()
    assert isinstance(model, SegFormer)
    norm: Any = model.head.fuse.norm
    nn.init.normal_(norm.weight, 1, 0.2)
    nn.init.normal_(norm.bias, 0, 0.2)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 1.5)
    images = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8)
    with torch.no_grad():
        expected = reference_of(model)(model.backbone.normalize(images))
        found = model(images).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_the_released_widths_are_256_for_the_small_and_768_for_the_large() -> None:
    widths = {name: spec.width for name, spec in PRESETS.items() if isinstance(spec, SegFormerSpec) and "mit" in name}
    endings = ("", "_paddleseg")
    assert widths == {f"segformer_mit_b{i}{end}": 256 if i < 2 else 768 for i in range(6) for end in endings}
