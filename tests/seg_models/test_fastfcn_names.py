"""Published FastFCN checkpoints: every key of the literal lists finds its place, and nothing else does.

The lists are written out from the patterns of the sheet (specs: FastFCN section 7), not made by the map they test.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from seg_models.architectures.fastfcn_heads import EncodingHeadSpec
from seg_models.outputs import SegModel
from seg_models.spec import ModelSpec, preset
from seg_models.weights.fastfcn_names import from_mmseg, from_official, to_mmseg, to_official
from seg_models.weights.matching import load_by_name

NAMES = Path(__file__).resolve().parents[1] / "names"
Map = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
DILATED = preset("fastfcn_resnet50_enc_dilated")
LATERAL = DILATED.model_copy(update={"head": EncodingHeadSpec(kernel_size=3, lateral=True)})

# Settings, classes, the lists that a checkpoint of them holds.
OFFICIAL: list[tuple[ModelSpec, int, tuple[str, ...]]] = [
    (preset(f"fastfcn_resnet50_{head}"), 59, ("resnet50", "jpu", f"head_{head}"))
    for head in ("enc", "aspp", "psp", "fcn")
] + [
    (preset("fastfcn_resnet50_enc_jpux"), 59, ("resnet50", "jpux", "head_enc")),
    (LATERAL, 59, ("resnet50", "head_enc_lateral")),
]
MMSEG: list[tuple[ModelSpec, int, tuple[str, ...]]] = [
    (preset(f"fastfcn_resnet50_{head}_mmseg"), 19, ("resnet50", f"head_{head}")) for head in ("enc", "aspp", "psp")
]
LAYOUTS = [("official", *row, from_official, to_official) for row in OFFICIAL] + [
    ("mmseg", *row, from_mmseg, to_mmseg) for row in MMSEG
]
every_layout = pytest.mark.parametrize(
    ("origin", "spec", "num_classes", "files", "to_ours", "to_theirs"),
    LAYOUTS,
    ids=["-".join((row[0], *row[3])) for row in LAYOUTS],
)


def published(origin: str, files: tuple[str, ...]) -> dict[str, Tensor]:
    """A checkpoint with the keys and shapes of these lists, and numbers of its own in every tensor."""
    lines = [line for file in files for line in (NAMES / f"fastfcn_{origin}_{file}.txt").read_text().splitlines()]
    tensors = {}
    for number, line in enumerate(lines):
        name, _, shape = line.partition(" ")
        tensors[name] = torch.tensor(float(number)).expand([int(side) for side in shape.split("x") if side])
    return tensors


def build(spec: ModelSpec, num_classes: int) -> SegModel:
    """The network without memory for its weights, which is all that names and shapes need."""
    with torch.device("meta"):
        return spec.build(num_classes)


@every_layout
def test_every_published_tensor_has_its_place_and_no_place_is_empty(
    origin: str, spec: ModelSpec, num_classes: int, files: tuple[str, ...], to_ours: Map, to_theirs: Map
) -> None:
    ours, state = to_ours(published(origin, files)), build(spec, num_classes).state_dict()
    assert set(ours) == set(state)
    assert [name for name in state if ours[name].shape != state[name].shape] == []


@every_layout
def test_the_way_back_gives_the_published_tensors(
    origin: str, spec: ModelSpec, num_classes: int, files: tuple[str, ...], to_ours: Map, to_theirs: Map
) -> None:
    tensors = published(origin, files)
    returned = to_theirs(to_ours(tensors))
    left_out = {"pretrained.fc.weight", "pretrained.fc.bias"} & set(tensors)
    assert set(returned) == set(tensors) - left_out
    assert all(torch.equal(returned[name], tensors[name]) for name in returned)


def test_a_checkpoint_of_another_head_is_refused_by_its_own_names() -> None:
    tensors = from_official(published("official", ("resnet50", "jpu", "head_psp")))
    with pytest.raises(ValueError, match=r"missing head\.reduce\.conv\.weight"):
        load_by_name(build(preset("fastfcn_resnet50_enc"), 59), tensors, origin="x.pth")


def test_a_name_that_no_part_has_is_refused_as_it_stands() -> None:
    tensors = published("official", ("resnet50", "jpu", "head_enc"))
    tensors["head.extra.weight"] = torch.zeros(1)
    with pytest.raises(ValueError, match=r"left over head\.extra\.weight"):
        load_by_name(build(preset("fastfcn_resnet50_enc"), 59), from_official(tensors), origin="x.pth")


def test_a_head_that_mmsegmentation_has_not_is_refused() -> None:
    with pytest.raises(ValueError, match="head 'fcn' has no names in mmsegmentation; known: enc, aspp, psp"):
        from_mmseg({"decode_head.convs.0.conv.weight": torch.zeros(1)})


def test_levels_of_the_authors_pyramid_enter_in_reverse() -> None:
    """Literal forms of both: the authors' order of levels with their kernels, ours with the mapped ones."""
    generator = torch.Generator().manual_seed(0)
    depthwise = torch.randn(6, 1, 3, 3, generator=generator)
    pointwise = torch.randn(5, 6, 1, 1, generator=generator)
    theirs = {"jpu.dilation1.0.conv1.weight": depthwise, "jpu.dilation1.0.pointwise.weight": pointwise}
    ours = from_official(theirs)
    c3, c4, c5 = (torch.randn(1, 2, 4, 4, generator=generator) for _ in range(3))
    gaps = functional.conv2d(torch.cat([c5, c4, c3], dim=1), depthwise, padding=1, groups=6)
    expected = functional.conv2d(gaps, pointwise)
    own = functional.conv2d(
        torch.cat([c3, c4, c5], dim=1), ours["upsampling.branches.0.depthwise.weight"], padding=1, groups=6
    )
    found = functional.conv2d(own, ours["upsampling.branches.0.pointwise.weight"])
    torch.testing.assert_close(found, expected)


def test_the_mean_of_the_map_comes_first_in_mmsegmentation_and_last_here() -> None:
    weight = torch.arange(10.0).view(1, 10, 1, 1)
    name = "decode_head.bottleneck.conv.weight"
    tensors = {name: weight, "decode_head.aspp_modules.1.conv.weight": torch.zeros(1)}
    found = from_mmseg(tensors)["head.fuse.conv.conv.weight"].flatten().tolist()
    assert found == [2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
