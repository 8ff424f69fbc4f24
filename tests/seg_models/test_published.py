"""The account of an import, on a network that a test can hold."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from seg_models.architectures.pspnet import PSPNetSpec
from seg_models.backbones.timm_backbone import BackboneSpec
from seg_models.outputs import SegModel
from seg_models.weights.gscnn_names import GSCNN
from seg_models.weights.pspnet_names import MMSEG_PSPNET
from seg_models.weights.published import Layout, export_tensors, import_tensors


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
    tensors = {f"x.{name}": value for name, value in published_tiny().items()}
    with pytest.raises(ValueError, match=r"0 tensors used; \d+ unused \(x\.backbone\.stem\.0\.weight, .* more\)"):
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


def test_two_modules_cannot_be_one_of_ours() -> None:
    with pytest.raises(ValueError, match="X: two published modules cannot be one of ours"):
        Layout("X", {"a": "c", "b": "c"}, presets=())
