"""SemFPN against a plain composition, and the doublings that it shares with CFT."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from seg_models.architectures.semfpn import SemFPNSpec
from seg_models.backbones.timm_backbone import BackboneSpec
from seg_models.parts.pyramid import ScaleHeads
from seg_models.parts.pyramid_net import PyramidNet

NARROW = BackboneSpec(name="resnet10t", model_kwargs={"channels": [8, 16, 16, 32], "stem_width": 8})


def composed(model: Any, images: Tensor) -> Tensor:
    """Laterals, top-down sums, a 3×3 each, 1/1/2/3 times convolution and doubling, sum, classifier."""
    features = model.backbone(images)[-4:]
    p2, p3, p4, p5 = (conv(x) for conv, x in zip(model.pyramid.laterals, features, strict=True))
    p4 = p4 + p5.repeat_interleave(2, 2).repeat_interleave(2, 3)
    p3 = p3 + p4.repeat_interleave(2, 2).repeat_interleave(2, 3)
    p2 = p2 + p3.repeat_interleave(2, 2).repeat_interleave(2, 3)
    levels = [conv(x) for conv, x in zip(model.pyramid.convs, (p2, p3, p4, p5), strict=True)]
    total = model.head.heads[0][0](levels[0])
    for doublings, level in zip((1, 2, 3), levels[1:], strict=True):
        assert len(model.head.heads[doublings]) == doublings
        for conv in model.head.heads[doublings]:
            level = functional.interpolate(conv(level), scale_factor=2, mode="bilinear", align_corners=False)
        total = total + level
    scores: Tensor = model.classifier(total)
    return scores


def test_the_network_equals_a_plain_composition() -> None:
    torch.manual_seed(0)
    model = SemFPNSpec(backbone=NARROW, width=16, head_channels=8).build(5).eval()
    assert isinstance(model, PyramidNet)
    images = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    with torch.no_grad():
        torch.testing.assert_close(model(images).logits, composed(model, images))


def test_levels_of_a_dilated_backbone_are_not_doubled_further() -> None:
    heads = ScaleHeads(4, 4, strides=(4, 8, 8, 8)).eval()
    assert [len(convs) for convs in heads.heads] == [1, 1, 1, 1]  # type: ignore[arg-type]
    levels = [torch.randn(1, 4, *size) for size in ((9, 12), (5, 6), (5, 6), (5, 6))]
    with torch.no_grad():
        assert heads(levels).shape == (1, 4, 9, 12)


def test_strides_that_are_no_pyramid_are_refused() -> None:
    with pytest.raises(ValueError, match=r"must stay or double from level to level, found \(4, 16\)"):
        ScaleHeads(4, 4, strides=(4, 16))
