"""PSPNet against other people's code with the same weights.

torchvision: the dilated ResNet and the auxiliary head (its FCN). segmentation_models.pytorch: pooled branches. The
whole network: a plain composition of torch functions.
"""

from __future__ import annotations

import pytest
import torch
from segmentation_models_pytorch.decoders.pspnet.decoder import PSPBlock
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.segmentation import fcn_resnet50  # type: ignore[import-untyped]
from torchvision.models.segmentation.fcn import FCNHead  # type: ignore[import-untyped]

from seg_models.architectures.pspnet import PSPNet, PSPNetSpec
from seg_models.backbones.timm_backbone import Backbone, BackboneSpec
from seg_models.parts.context import PyramidPooling
from seg_models.parts.heads import ClassifierHead
from seg_models.parts.resample import pooling_matrix, resample

MEAN = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)


def randomize_norms(module: nn.Module) -> None:
    """Running statistics and scales that a forgotten or misplaced norm would show up against."""
    generator = torch.Generator().manual_seed(7)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            assert norm.running_mean is not None
            assert norm.running_var is not None
            norm.running_mean.copy_(0.1 * torch.randn(norm.num_features, generator=generator))
            norm.running_var.copy_(0.5 + torch.rand(norm.num_features, generator=generator))
            norm.weight.data.copy_(0.5 + torch.rand(norm.num_features, generator=generator))
            norm.bias.data.copy_(0.1 * torch.randn(norm.num_features, generator=generator))


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    """A ResNet-50 of output stride 8 with weights that mean something to every layer."""
    torch.manual_seed(0)
    backbone = BackboneSpec(name="resnet50", output_stride=8).build().eval()
    randomize_norms(backbone)
    return backbone


@pytest.mark.parametrize("size", [(64, 64), (65, 97)])
def test_the_dilated_backbone_equals_torchvisions(backbone: Backbone, size: tuple[int, int]) -> None:
    reference = fcn_resnet50(weights=None, weights_backbone=None, aux_loss=True).backbone.eval()
    reference.load_state_dict(backbone.network.state_dict())
    images = torch.randint(0, 256, (1, 3, *size), dtype=torch.uint8)
    with torch.no_grad():
        features, expected = backbone(images), reference((images / 255 - MEAN) / STD)
    for found, wanted in ((features[-1], expected["out"]), (features[-2], expected["aux"])):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))


def test_the_head_equals_torchvisions_fcn_head() -> None:
    head, reference = ClassifierHead(64, 16, 5).eval(), FCNHead(64, 5).eval()
    randomize_norms(head)
    reference.load_state_dict(dict(zip(reference.state_dict(), head.state_dict().values(), strict=True)))
    features = torch.randn(2, 64, 9, 7)
    with torch.no_grad():
        torch.testing.assert_close(head(features), reference(features))


@pytest.mark.parametrize("bins", [2, 3, 6])
@pytest.mark.parametrize("size", [(12, 12), (9, 13), (5, 4)])
def test_a_pooled_branch_equals_segmentation_models_pytorch(bins: int, size: tuple[int, int]) -> None:
    pooling = PyramidPooling(32, bins=(bins,), channels=8).eval()
    randomize_norms(pooling)
    reference = PSPBlock(32, 8, pool_size=bins, use_norm="batchnorm").eval()
    state = pooling.branches[0].state_dict()
    reference.load_state_dict(dict(zip(reference.state_dict(), state.values(), strict=True)))
    features = torch.randn(2, 32, *size)
    rows, columns = (pooling_matrix(side, bins) for side in size)
    with torch.no_grad():
        found = pooling.branches[0](resample(features, rows=rows, columns=columns))
        torch.testing.assert_close(found, reference.pool(features))


def plain_pyramid(features: Tensor, pooling: PyramidPooling) -> Tensor:
    """The paper's module with torch's own pooling and interpolation."""
    size = features.shape[-2:]
    levels = [features]
    for bins, branch in zip(pooling.bins, pooling.branches, strict=True):
        pooled = branch(functional.adaptive_avg_pool2d(features, bins))
        levels.append(functional.interpolate(pooled, size=size, mode="bilinear", align_corners=False))
    return torch.cat(levels, dim=1)


@pytest.mark.parametrize("size", [(16, 16), (9, 13), (5, 4)])
def test_pyramid_pooling_and_its_gradient_equal_torchs_functions(size: tuple[int, int]) -> None:
    pooling = PyramidPooling(32, bins=(1, 2, 3, 6)).eval()
    randomize_norms(pooling)
    features = torch.randn(2, 32, *size, requires_grad=True)
    weight = torch.randn(2, pooling.out_channels, *size)
    found, expected = pooling(features), plain_pyramid(features, pooling)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    (own,) = torch.autograd.grad((found * weight).sum(), features)
    (other,) = torch.autograd.grad((expected * weight).sum(), features)
    torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-4)


def test_the_whole_network_equals_a_plain_composition() -> None:
    torch.manual_seed(0)
    spec = PSPNetSpec(backbone=BackboneSpec(name="resnet50", output_stride=8), head_channels=32, aux_channels=256)
    model = spec.build(21).eval()
    assert isinstance(model, PSPNet)
    assert isinstance(model.context, PyramidPooling)
    randomize_norms(model)
    reference = fcn_resnet50(weights=None, weights_backbone=None, aux_loss=True).backbone.eval()
    reference.load_state_dict(model.backbone.network.state_dict())
    images = torch.randint(0, 256, (1, 3, 72, 88), dtype=torch.uint8)
    with torch.no_grad():
        context = plain_pyramid(reference((images / 255 - MEAN) / STD)["out"], model.context)
        conv, norm = model.head.conv.conv, model.head.conv.norm
        fused = torch.relu(
            functional.batch_norm(
                functional.conv2d(context, conv.weight, padding=1),
                norm.running_mean,
                norm.running_var,
                norm.weight,
                norm.bias,
            )
        )
        classifier = model.head.classifier
        expected = functional.conv2d(fused, classifier.weight, classifier.bias)
        found = model(images).logits
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def test_one_image_in_training_is_refused_with_a_reason() -> None:
    pooling = PyramidPooling(8, bins=(1, 2)).train()
    with pytest.raises(ValueError, match="at least 2 images per worker"):
        pooling(torch.randn(1, 8, 4, 4))
    assert pooling(torch.randn(2, 8, 4, 4)).shape == (2, 16, 4, 4)
