"""The fifteen published classifiers: every fact of the table against the libraries that publish them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import timm
import torch
import torchvision  # type: ignore[import-untyped]
from torch import Tensor
from torch.nn import functional

from seg_models.weights.classifiers import ClassifierSpec, build_classifier, build_network
from seg_models.weights.files import file_sha256, weights_place
from seg_models.weights.matching import load_by_name
from seg_models.weights.timm15 import PYTORCH, TIMM15, Published, published_file, timm15_ensemble
from seg_models.weights.torchvision_names import timm_names

NOT_IN_TIMM = {"densenet121.ra_in1k"}  # its address stands in timm before 0.9
every = pytest.mark.parametrize("published", TIMM15, ids=lambda published: published.name)


def architecture(published: Published) -> str:
    return published.name.partition(".")[0]


def old_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """DenseNet's tensors as torchvision's files name them: `denselayer1.norm.1.weight`."""
    pattern = re.compile(r"(denselayer\d+\.(?:norm|conv))([12]\.)")
    return {pattern.sub(r"\1.\2", name): tensor for name, tensor in tensors.items()}


@every
def test_name_input_and_crop_are_those_of_the_installed_timm(published: Published) -> None:
    config, spec = timm.get_pretrained_cfg(published.name), published.spec()
    assert config.input_size == (3, spec.size, spec.size)
    assert (config.mean, config.std, config.num_classes) == (spec.mean, spec.std, spec.num_classes)
    assert (config.crop_pct, config.interpolation) == (published.crop, published.interpolation)
    assert spec.input_scale == 1 / 255


@every
def test_the_address_is_that_of_the_installed_timm_or_torchvision(published: Published) -> None:
    url = timm.get_pretrained_cfg(published.name).url
    if url:
        assert published.url == url.replace("/rwightman/", "/huggingface/")  # the repository has moved
    elif published.name not in NOT_IN_TIMM:
        weights = torchvision.models.get_model_weights(architecture(published))
        assert published.url == weights["IMAGENET1K_V1"].url


@every
def test_the_hash_is_the_eight_digits_in_the_name_of_the_file(published: Published) -> None:
    tag = re.fullmatch(r"[a-z0-9_]+-([0-9a-f]{8})\.pth", published.file_name)
    assert tag is not None
    assert published.spec().weights_sha256 == tag.group(1)
    assert weights_place(published.url, sha256=published.sha256).name == published.file_name


def test_all_are_different_networks_of_different_files() -> None:
    assert len({architecture(published) for published in TIMM15}) == 15
    assert len({published.file_name for published in TIMM15}) == 15


def test_files_of_a_folder_lie_under_their_published_names() -> None:
    for place in ("some/folder", "some/folder/", "s3://bucket/weights"):
        specs = timm15_ensemble(place)
        assert specs[0].weights == f"{place.rstrip('/')}/resnet18_a1_0-d63eafa0.pth"
        for own, usual in zip(specs, timm15_ensemble(), strict=True):
            assert own.model_copy(update={"weights": usual.weights}) == usual
            assert published_file(own.name, own.weights_sha256) is not None
    assert published_file("resnet18.a1_in1k", "00000000") is None


@pytest.mark.parametrize(
    "published", [one for one in TIMM15 if one.url.startswith(PYTORCH)], ids=lambda published: published.name
)
def test_the_tensors_of_torchvision_find_their_place_in_timm(published: Published) -> None:
    with torch.device("meta"):
        theirs = torchvision.models.get_model(architecture(published)).state_dict()
        network = build_network(published.spec())
    ours = {name: tensor.shape for name, tensor in network.state_dict().items()}
    assert {name: tensor.shape for name, tensor in timm_names(old_names(theirs)).items()} == ours
    assert timm_names(network.state_dict()).keys() == ours.keys()


def test_a_network_of_torchvision_gives_the_same_scores_under_timms_names(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = torchvision.models.densenet121().eval()
    path = tmp_path / "densenet121.pth"
    torch.save(old_names(theirs.state_dict()), path)
    sha256 = file_sha256(path)[:8]
    spec = ClassifierSpec(name="densenet121", weights=str(path), weights_sha256=sha256, match="torchvision")
    images = torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        torch.testing.assert_close(build_classifier(spec)(images), theirs(images), rtol=1e-4, atol=1e-5)


def test_the_linear_layers_of_vgg_become_convolutions_of_the_same_values() -> None:
    cells, weight = torch.randn(2, 512, 7, 7), torch.randn(3, 512 * 7 * 7)
    (kernel,) = timm_names({"classifier.0.weight": weight}).values()
    found = functional.conv2d(cells, kernel).flatten(1)
    torch.testing.assert_close(found, functional.linear(cells.flatten(1), weight), rtol=1e-4, atol=1e-3)


def test_without_the_renaming_the_tensors_of_torchvision_do_not_fit() -> None:
    with torch.device("meta"):
        theirs, network = torchvision.models.densenet121().state_dict(), timm.create_model("densenet121")
    with pytest.raises(ValueError, match=r"missing features\.denseblock1\.denselayer1\.norm1\.weight"):
        load_by_name(network, old_names(theirs), origin="file")
