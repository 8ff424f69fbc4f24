"""Folding batch norms and finding stems: the same function, and only where the graph allows it."""

from __future__ import annotations

from typing import cast

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional

from seg_models.explain import SmoothGradSpec, explain
from seg_models.folding import find_stem, fold_batch_norm
from seg_models.numerics import Numerics
from seg_models.weights.classifiers import Classifier, ClassifierSpec

FAMILIES = {
    "resnet18": 0,
    "resnext50_32x4d": 0,
    "vgg11_bn": 0,
    "mobilenetv3_large_100": 0,
    "efficientnet_b0": 0,
    "regnety_002": 0,
    "densenet121": 62,  # they stand before their convolution, behind an activation or a concatenation
}


def with_statistics(name: str) -> nn.Module:
    """A random network in float64 whose batch norms are not the identity."""
    torch.manual_seed(0)
    network: nn.Module = timm.create_model(name, num_classes=7).double()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values in (module.running_mean, module.running_var, module.weight, module.bias):
                assert values is not None
                nn.init.uniform_(values, 0.5, 1.5)
    return network.eval()


def num_norms(network: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())


@pytest.mark.parametrize("name", FAMILIES)
def test_a_folded_network_is_the_same_function_with_fewer_batch_norms(name: str) -> None:
    network = with_statistics(name)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    folded, count = fold_batch_norm(network)
    assert num_norms(network) - count == num_norms(folded) == FAMILIES[name]
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    expected, found = network(images), folded(images)
    assert float((found - expected).detach().abs().max()) < 1e-9 * float(expected.detach().abs().max())
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


class Twice(nn.Module):
    """A convolution whose output goes into a batch norm and past it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, images: Tensor) -> Tensor:
        features = self.conv(images)
        return cast(Tensor, self.norm(features) + features)


class Shared(nn.Module):
    """One convolution used at two places."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.first, self.second = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, images: Tensor) -> Tensor:
        return cast(Tensor, self.second(self.conv(self.first(self.conv(images)))))


class Branching(nn.Module):
    """A network that decides by its data."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, images: Tensor) -> Tensor:
        features = self.norm(self.conv(images))
        return cast(Tensor, features if features.mean() > 0 else -features)


@pytest.mark.parametrize("kind", [Twice, Shared, Branching])
def test_what_cannot_be_folded_stays_as_it_is(kind: type[nn.Module]) -> None:
    network = kind().eval()
    folded, count = fold_batch_norm(network)
    assert count == 0
    images = torch.randn(1, 3, 8, 8)
    assert torch.equal(folded(images), network(images))


def test_a_batch_norm_in_training_mode_is_not_folded() -> None:
    assert fold_batch_norm(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))[1] == 0


class TwoReaders(nn.Module):
    """The input goes into two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)

    def forward(self, images: Tensor) -> Tensor:
        return cast(Tensor, self.left(images) + self.right(images))


class WritesIntoIt(nn.Module):
    """The stem's output is changed in place, behind a module that does nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.nothing, self.act = nn.Conv2d(3, 4, 1), nn.Identity(), nn.ReLU(inplace=True)

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = functional.relu(self.act(self.nothing(self.stem(images))) - 0.1, inplace=True)
        return scores.mean(dim=(2, 3))


class Standardised(nn.Conv2d):
    """A convolution that computes its weight from another."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.conv2d(input, self.weight - self.weight.mean(), self.bias)


def test_a_stem_is_the_one_convolution_that_takes_the_input() -> None:
    resnet = timm.create_model("resnet18").eval()
    assert find_stem(resnet) is resnet.conv1
    for network in (TwoReaders(), Branching(), nn.Sequential(nn.ReLU(), nn.Conv2d(3, 4, 1))):
        assert find_stem(network.eval()) is None


def test_networks_that_write_into_the_stems_output_are_explained_there_too() -> None:
    torch.manual_seed(0)
    network, spec = WritesIntoIt(), ClassifierSpec(name="own", num_classes=4)
    plain, split = (Classifier(network, spec, numerics=Numerics(stem_once=once)) for once in (False, True))
    assert split.stem is not None
    image, noise = torch.randn(3, 9, 9), torch.randn(3, 3, 9, 9)
    found, expected = (
        explain(model, image, target=1, explainer=SmoothGradSpec(samples=3), noise=noise) for model in (split, plain)
    )
    assert float(expected.max()) > 0
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-9)


def test_convolutions_that_compute_their_weight_are_neither_folded_nor_stems() -> None:
    network = nn.Sequential(Standardised(3, 4, 3), nn.BatchNorm2d(4)).eval()
    assert fold_batch_norm(network)[1] == 0
    assert find_stem(network) is None
    normed = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4)).eval()
    assert fold_batch_norm(normed)[1] == 0
