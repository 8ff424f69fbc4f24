"""Name maps against literal lists of published keys and shapes, which are not made by the maps they test."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from seg_models.architectures.pspnet import PSPNetSpec
from seg_models.backbones.timm_backbone import BackboneSpec
from seg_models.outputs import SegModel
from seg_models.spec import preset
from seg_models.weights.gscnn_names import GSCNN
from seg_models.weights.pspnet_names import MMSEG_PSPNET
from seg_models.weights.published import NameMap, compare_tensors, export_tensors, import_tensors

LISTS = Path(__file__).resolve().parents[1] / "names"
LAYOUTS = [
    ("gscnn_official_wideresnet38", GSCNN, "gated_scnn_wideresnet38_official", 19, 137_278_190),
    ("pspnet_mmseg_resnet50", MMSEG_PSPNET, "pspnet_resnet50", 19, 46_610_803 + 2_364_691),
]
every_layout = pytest.mark.parametrize(
    ("file", "names", "model", "num_classes", "params"), LAYOUTS, ids=[row[0] for row in LAYOUTS]
)


def published_shapes(file: str) -> dict[str, tuple[int, ...]]:
    """Name -> shape, as the file lists them: a name and a shape such as 64x3x7x7 on a line."""
    lines = (line.partition(" ") for line in (LISTS / f"{file}.txt").read_text().splitlines())
    return {name: tuple(int(side) for side in shape.split("x") if side) for name, _, shape in lines}


def meta_model(name: str, num_classes: int) -> SegModel:
    with torch.device("meta"):
        return preset(name).build(num_classes)


def meta_checkpoint(file: str) -> dict[str, Tensor]:
    return {name: torch.empty(shape, device="meta") for name, shape in published_shapes(file).items()}


@every_layout
def test_every_published_tensor_has_a_place_of_its_shape_and_every_place_a_tensor(
    file: str, names: NameMap, model: str, num_classes: int, params: int
) -> None:
    tensors = meta_checkpoint(file)
    account = compare_tensors(meta_model(model, num_classes), tensors, names)
    assert (account.unused, account.missing, account.misshapen) == ((), (), ())
    assert len(account.used) == len(tensors)
    assert len({ours for _, ours in account.used}) == len(tensors)
    assert account.complete


@every_layout
def test_the_list_has_the_parameters_of_the_sheet(
    file: str, names: NameMap, model: str, num_classes: int, params: int
) -> None:
    running = ("running_mean", "running_var", "num_batches_tracked")
    sizes = [torch.Size(shape).numel() for name, shape in published_shapes(file).items() if not name.endswith(running)]
    assert sum(sizes) == params


@every_layout
def test_our_tensors_go_back_under_the_published_names(
    file: str, names: NameMap, model: str, num_classes: int, params: int
) -> None:
    exported = export_tensors(meta_model(model, num_classes), names)
    assert {name: tuple(value.shape) for name, value in exported.items()} == published_shapes(file)


@every_layout
def test_a_missing_tensor_is_named(file: str, names: NameMap, model: str, num_classes: int, params: int) -> None:
    tensors = meta_checkpoint(file)
    lost = next(name for name in tensors if name.endswith("running_var"))
    account = compare_tensors(meta_model(model, num_classes), {k: v for k, v in tensors.items() if k != lost}, names)
    assert account.missing == (names.ours(lost),)
    assert not account.complete


def tiny() -> SegModel:
    """A PSPNet whose checkpoint a test can hold."""
    torch.manual_seed(0)
    sizes = {"channels": [8, 8, 16, 16], "stem_width": 8}
    backbone = BackboneSpec(name="resnet10t", output_stride=8, model_kwargs=sizes)
    return PSPNetSpec(backbone=backbone, head_channels=8, aux_channels=8).build(3)


def published_tiny() -> dict[str, Tensor]:
    """Another tiny network's tensors under mmsegmentation's names."""
    other = tiny()
    tensors = export_tensors(other, MMSEG_PSPNET)
    return {name: torch.randn_like(value) if value.is_floating_point() else value for name, value in tensors.items()}


def test_imported_tensors_are_the_published_ones() -> None:
    model, tensors = tiny(), published_tiny()
    account = import_tensors(model, tensors, MMSEG_PSPNET)
    assert account.text() == f"mmsegmentation's PSPNet: {len(tensors)} tensors used"
    state = model.state_dict()
    assert torch.equal(state["head.classifier.weight"], tensors["decode_head.conv_seg.weight"])
    assert torch.equal(state["backbone.network.bn1.running_var"], tensors["backbone.stem.7.running_var"])
    assert torch.equal(state["context.branches.3.norm.bias"], tensors["decode_head.psp_modules.3.1.bn.bias"])


def test_step_counters_may_be_absent() -> None:
    tensors = {name: value for name, value in published_tiny().items() if not name.endswith("num_batches_tracked")}
    assert import_tensors(tiny(), tensors, MMSEG_PSPNET).complete


def test_a_wrong_checkpoint_is_refused_with_an_account_and_copies_nothing() -> None:
    model, tensors = tiny(), published_tiny()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    tensors["decode_head.convseg.weight"] = tensors.pop("decode_head.conv_seg.weight")
    tensors["decode_head.conv_seg.bias"] = torch.zeros(5)
    message = (
        r"does not fit PSPNet: mmsegmentation's PSPNet: \d+ tensors used; 1 unused \(decode_head.convseg.weight\); "
        r"1 missing \(head.classifier.weight\); 1 of another shape \(decode_head.conv_seg.bias \(5,\) for "
        r"head.classifier.bias \(3,\)\); expected decode_head.conv_seg.weight "
        r".did you mean 'decode_head.convseg.weight'"
    )
    with pytest.raises(ValueError, match=message):
        import_tensors(model, tensors, MMSEG_PSPNET)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_another_layouts_checkpoint_is_refused() -> None:
    tensors = {f"module.{name}": value for name, value in published_tiny().items()}
    with pytest.raises(ValueError, match=r"0 tensors used; \d+ unused \(module\.backbone\.stem\.0\.weight, .* more\)"):
        import_tensors(tiny(), tensors, MMSEG_PSPNET, partial=True)


def test_a_half_loaded_model_must_be_asked_for() -> None:
    model, tensors = tiny(), published_tiny()
    before = model.state_dict()["head.classifier.bias"].clone()
    del tensors["decode_head.conv_seg.bias"]
    tensors["decode_head.extra"] = torch.zeros(1)
    account = import_tensors(model, tensors, MMSEG_PSPNET, partial=True)
    assert (account.unused, account.missing) == (("decode_head.extra",), ("head.classifier.bias",))
    assert torch.equal(model.state_dict()["head.classifier.bias"], before)
    assert torch.equal(model.state_dict()["head.classifier.weight"], tensors["decode_head.conv_seg.weight"])


def test_a_network_without_a_name_for_everything_is_not_exported() -> None:
    with pytest.raises(ValueError, match=r"GSCNN has no name for .* backbone.network.conv1"):
        export_tensors(tiny(), GSCNN)
