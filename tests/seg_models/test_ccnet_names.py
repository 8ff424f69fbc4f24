"""Published CCNet checkpoints: every key of the literal lists finds its place, and nothing else does.

The lists are written out from the patterns of the sheet (specs: CCNet section 9), not made by the map they test.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from seg_models.outputs import SegModel
from seg_models.spec import preset
from seg_models.weights.ccnet_names import from_mmseg, from_official, to_mmseg, to_official
from seg_models.weights.matching import load_by_name

NAMES = Path(__file__).resolve().parents[1] / "names"
OFFICIAL, MMSEG = "ccnet_official_resnet101.txt", "ccnet_mmseg_resnet50.txt"
Map = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
every_layout = pytest.mark.parametrize(
    ("name", "file", "to_ours", "to_theirs"),
    [
        ("ccnet_resnet101_official", OFFICIAL, from_official, to_official),
        ("ccnet_resnet50", MMSEG, from_mmseg, to_mmseg),
    ],
    ids=("official", "mmseg"),
)


def published(file: str) -> dict[str, Tensor]:
    """A checkpoint with the keys and shapes of a list, and a number of its own in every tensor."""
    tensors = {}
    for number, line in enumerate((NAMES / file).read_text().splitlines()):
        name, _, shape = line.partition(" ")
        tensors[name] = torch.tensor(float(number)).expand([int(side) for side in shape.split("x") if side])
    return tensors


def build(name: str) -> SegModel:
    """The network without memory for its weights, which is all that names and shapes need."""
    with torch.device("meta"):
        return preset(name).build(19)


@every_layout
def test_every_published_tensor_has_its_place_and_no_place_is_empty(
    name: str, file: str, to_ours: Map, to_theirs: Map
) -> None:
    ours, state = to_ours(published(file)), build(name).state_dict()
    wanted = {key: tuple(value.shape) for key, value in state.items() if not key.endswith("num_batches_tracked")}
    assert {key: tuple(value.shape) for key, value in ours.items() if not key.endswith("tracked")} == wanted


@every_layout
def test_the_way_back_gives_the_published_tensors(name: str, file: str, to_ours: Map, to_theirs: Map) -> None:
    tensors = published(file)
    returned = to_theirs(to_ours(tensors))
    assert set(returned) == set(tensors)
    for key, value in tensors.items():
        torch.testing.assert_close(returned[key], value, rtol=1e-6, atol=2e-5)


def test_the_first_convolution_sees_rgb_and_norms_multiply_by_absolute_values() -> None:
    first = torch.arange(3.0).view(1, 3, 1, 1)
    ours = from_official(
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


def test_a_checkpoint_of_another_depth_is_refused() -> None:
    with pytest.raises(ValueError, match=r"left over .*layer3\.6\.conv1\.weight|missing"):
        load_by_name(build("ccnet_resnet50"), from_official(published(OFFICIAL)), origin="x.pth")


def test_a_name_that_no_part_has_is_refused_as_it_stands() -> None:
    tensors = from_mmseg({**published(MMSEG), "decode_head.extra.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"left over decode_head\.extra\.weight"):
        load_by_name(build("ccnet_resnet50"), tensors, origin="x.pth")


def test_a_missing_tensor_is_refused() -> None:
    tensors = published(MMSEG)
    del tensors["decode_head.cca.gamma.scale"]
    with pytest.raises(ValueError, match=r"missing attention\.0\.gamma"):
        load_by_name(build("ccnet_resnet50"), from_mmseg(tensors), origin="x.pth")
