"""Published DANet checkpoints: every key of the literal lists finds its place, and nothing else does.

The lists are written out from the patterns of the sheet (specs: DANet section 7), not made by the map they test.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from seg_models.outputs import SegModel
from seg_models.spec import preset
from seg_models.weights.danet_names import from_mmseg, from_official, to_mmseg, to_official
from seg_models.weights.matching import load_by_name

NAMES = Path(__file__).resolve().parents[1] / "names"
Map = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
LAYOUTS: list[tuple[str, str, Map, Map]] = [
    ("danet_resnet101_official", "danet_official_resnet101.txt", from_official, to_official),
    ("danet_resnet50", "danet_mmseg_resnet50.txt", from_mmseg, to_mmseg),
]
every_layout = pytest.mark.parametrize(("name", "file", "to_ours", "to_theirs"), LAYOUTS, ids=("official", "mmseg"))


def published(file: str) -> dict[str, Tensor]:
    """A checkpoint with the keys and shapes of a list, and numbers of its own in every tensor."""
    tensors = {}
    for number, line in enumerate((NAMES / file).read_text().splitlines()):
        name, _, shape = line.partition(" ")
        sides = [int(side) for side in shape.split("x") if side]
        tensors[name] = torch.tensor(float(number)).expand(sides)
    return tensors


def build(name: str) -> SegModel:
    """The network without memory for its weights, which is all that names and shapes need."""
    with torch.device("meta"):
        return preset(name).build(19)


@every_layout
def test_every_published_tensor_has_its_place_and_no_place_is_empty(
    name: str, file: str, to_ours: Map, to_theirs: Map
) -> None:
    model, ours = build(name).to_empty(device="cpu"), to_ours(published(file))
    filled = [key for key in ours if not key.endswith("num_batches_tracked")]
    assert load_by_name(model, ours, origin=file) == len(filled)
    state = model.state_dict()
    assert set(ours) == set(state)
    assert all(torch.equal(state[key], ours[key]) for key in filled)


@every_layout
def test_the_way_back_gives_the_published_tensors(name: str, file: str, to_ours: Map, to_theirs: Map) -> None:
    tensors = published(file)
    returned = to_theirs(to_ours(tensors))
    assert set(returned) == set(tensors)
    assert all(torch.equal(returned[key], tensors[key]) for key in tensors)


def test_the_classifiers_are_not_mixed_up() -> None:
    ours = from_official({f"head.conv{number}.1.bias": torch.tensor([float(number)]) for number in (6, 7, 8)})
    assert {name: value.item() for name, value in ours.items()} == {
        "position_classifier.conv.bias": 6,
        "channel_classifier.conv.bias": 7,
        "classifier.conv.bias": 8,
    }


def test_a_checkpoint_of_another_depth_is_refused_by_its_own_names() -> None:
    tensors = from_official(published("danet_official_resnet101.txt"))
    with pytest.raises(ValueError, match=r"left over backbone\.network\.layer3\.6\.conv1\.weight"):
        load_by_name(build("danet_resnet50_official"), tensors, origin="x.pth")


def test_a_name_that_no_part_has_is_refused_as_it_stands() -> None:
    tensors = from_mmseg({**published("danet_mmseg_resnet50.txt"), "decode_head.extra.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"left over decode_head\.extra\.weight"):
        load_by_name(build("danet_resnet50"), tensors, origin="x.pth")


def test_a_missing_tensor_is_refused() -> None:
    tensors = published("danet_mmseg_resnet50.txt")
    del tensors["decode_head.pam.gamma.scale"]
    with pytest.raises(ValueError, match=r"missing position\.attention\.gamma"):
        load_by_name(build("danet_resnet50"), from_mmseg(tensors), origin="x.pth")
