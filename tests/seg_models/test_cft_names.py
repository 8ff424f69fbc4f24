"""Published checkpoints of CFT's family: every key of the literal lists finds its place, and nothing else does.

The lists are written out from the patterns of the sheet (specs: CFT section 7), of mmsegmentation's FPN and of the
conversion scripts for SegFormer, not made by the maps they test.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from seg_models.architectures.cft import CFTSpec
from seg_models.backbones.timm_backbone import BackboneSpec
from seg_models.spec import preset
from seg_models.weights import cft_names, segformer_names
from seg_models.weights.matching import load_by_name
from seg_models.weights.prefixes import inverse, rename

NAMES = Path(__file__).resolve().parents[1] / "names"
Map = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
LAYOUTS: list[tuple[str, str, Map, Map]] = [
    ("cft_resnet50", "cft_mmseg_resnet50.txt", cft_names.cft_from_mmseg, cft_names.cft_to_mmseg),
    ("semfpn_resnet50", "semfpn_mmseg_resnet50.txt", cft_names.semfpn_from_mmseg, cft_names.semfpn_to_mmseg),
    (
        "segformer_mit_b0",
        "segformer_official_mit_b0.txt",
        segformer_names.from_official,
        segformer_names.to_official,
    ),
    (
        "segformer_mit_b0",
        "segformer_transformers_mit_b0.txt",
        segformer_names.from_transformers,
        segformer_names.to_transformers,
    ),
]
every_layout = pytest.mark.parametrize(
    ("name", "file", "to_ours", "to_theirs"), LAYOUTS, ids=[file.removesuffix(".txt") for _, file, _, _ in LAYOUTS]
)


def published(file: str) -> dict[str, Tensor]:
    """A checkpoint with the keys and shapes of a list, and a number of its own in every tensor."""
    tensors = {}
    for number, line in enumerate((NAMES / file).read_text().splitlines()):
        name, _, shape = line.partition(" ")
        tensors[name] = torch.tensor(float(number)).expand([int(side) for side in shape.split("x") if side])
    return tensors


@every_layout
def test_every_published_tensor_has_its_place_and_no_place_is_empty(
    name: str, file: str, to_ours: Map, to_theirs: Map
) -> None:
    with torch.device("meta"):
        state = preset(name).build(150).state_dict()
    wanted = {key: tuple(value.shape) for key, value in state.items() if not key.endswith("tracked")}
    found = {key: tuple(value.shape) for key, value in to_ours(published(file)).items() if not key.endswith("tracked")}
    assert found == wanted


@every_layout
def test_the_way_back_gives_the_published_tensors(name: str, file: str, to_ours: Map, to_theirs: Map) -> None:
    tensors = published(file)
    returned = to_theirs(to_ours(tensors))
    unused = {key for key in tensors if key.startswith(segformer_names.UNUSED) and "official" in file}
    assert set(returned) == set(tensors) - unused
    assert all(torch.equal(returned[key], tensors[key]) for key in returned)


def test_keys_and_values_of_transformers_stand_one_above_the_other() -> None:
    tensors = published("segformer_transformers_mit_b0.txt")
    ours = segformer_names.from_transformers(tensors)["backbone.network.block3.1.attn.kv.weight"]
    attention = "segformer.encoder.block.2.1.attention.self"
    assert torch.equal(ours[:160], tensors[f"{attention}.key.weight"])
    assert torch.equal(ours[160:], tensors[f"{attention}.value.weight"])


def test_a_cft_trained_with_negated_energy_gives_its_scores_in_the_plain_form() -> None:
    settings: dict[str, Any] = {
        "backbone": BackboneSpec(name="resnet10t", model_kwargs={"channels": [8, 8, 16, 16], "stem_width": 8}),
        "width": 8,
        "num_heads": 2,
    }
    torch.manual_seed(0)
    theirs, ours = (CFTSpec(negate_energy=flag, **settings).build(3).eval() for flag in (True, False))
    for parameter in theirs.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    state = theirs.state_dict()
    # their names hold for any width; what our own names stand for was tested above
    ours.load_state_dict(cft_names.cft_from_mmseg(rename(state, inverse(cft_names.CFT))))
    images = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        torch.testing.assert_close(ours(images).logits, theirs(images).logits, rtol=1e-4, atol=1e-5)


def test_another_class_list_or_a_missing_tensor_is_refused() -> None:
    tensors = published("cft_mmseg_resnet50.txt")
    with torch.device("meta"):
        model = preset("cft_resnet50").build(19)
    with pytest.raises(ValueError, match=r"blocks\.0\.tokens\.masks\.weight"):
        load_by_name(model, cft_names.cft_from_mmseg(tensors), origin="x.pth")
    del tensors["decode_head.cfts.2.norm_mlp.bias"]
    with pytest.raises(ValueError, match=r"missing blocks\.2\.ffn\.norm\.bias"):
        load_by_name(model, cft_names.cft_from_mmseg(tensors), origin="x.pth")
