"""Models on disk, and weights carried to other class lists."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from seg_models import create_model, load_model, save_model
from seg_models.architectures.pspnet import PSPNetSpec
from seg_models.checkpoints import MODEL_FILE, WEIGHTS_FILE, transfer
from seg_models.outputs import SegModel
from seg_models.spec import ModelSpec, preset

SPEC = preset("pspnet_resnet10t_narrow")
SPACE = {"names": ["sky", "tree", "road"]}


def make_model(num_classes: int = 3, seed: int = 0) -> SegModel:
    torch.manual_seed(seed)
    return create_model(SPEC, num_classes=num_classes)


def save(folder: Path, model: SegModel, *, spec: ModelSpec = SPEC) -> dict[str, Any]:
    return save_model(
        folder, model=model, spec=spec, label_space=SPACE, recipe={"steps": 5}, provenance={"data": "scenes@3"}
    )


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save(tmp_path / "model", make_model())
    return tmp_path / "model"


def test_a_saved_model_gives_equal_outputs(saved: Path) -> None:
    loaded = load_model(saved)
    images = torch.randint(0, 256, (1, 3, 32, 40), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.equal(loaded.model(images).logits, make_model().eval()(images).logits)
    assert loaded.spec == SPEC
    assert loaded.label_space == SPACE
    assert not loaded.model.training


def test_the_description_can_be_read_by_a_person(saved: Path) -> None:
    info = json.loads((saved / MODEL_FILE).read_text())
    assert info["spec"]["arch"] == "pspnet"
    assert info["num_classes"] == 3
    assert info["recipe"] == {"steps": 5}
    assert info["provenance"] == {"data": "scenes@3"}
    assert info["params"] == sum(value.numel() for value in make_model().parameters())
    assert load_model(saved).info == info


def test_saving_again_replaces_the_model_and_leaves_no_scraps(saved: Path) -> None:
    save(saved, make_model(seed=1))
    expected = make_model(seed=1).state_dict()["head.classifier.weight"]
    assert torch.equal(load_model(saved).model.state_dict()["head.classifier.weight"], expected)
    assert sorted(path.name for path in saved.iterdir()) == [MODEL_FILE, WEIGHTS_FILE]


def test_a_crash_before_the_description_leaves_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*args: Any, **kwargs: Any) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("seg_models.checkpoints.json.dumps", crash)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, make_model())
    with pytest.raises(ValueError, match=r"model\.json is missing .found model\.safetensors"):
        load_model(tmp_path)


def test_a_model_loads_where_its_backbones_weights_are_gone(tmp_path: Path) -> None:
    table = SPEC.model_dump()
    spec = PSPNetSpec.model_validate({**table, "backbone": {**table["backbone"], "weights": "gone.pth"}})
    save(tmp_path, make_model(), spec=spec)
    assert load_model(tmp_path).spec == spec


def test_a_flipped_bit_is_noticed(saved: Path) -> None:
    weights = saved / WEIGHTS_FILE
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.safetensors: SHA-256 is .* model\.json says .* copy the model again"):
        load_model(saved)


def test_missing_weights_are_named(saved: Path) -> None:
    (saved / WEIGHTS_FILE).unlink()
    with pytest.raises(ValueError, match=r"model\.safetensors is missing; copy it beside model\.json"):
        load_model(saved)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere holds no model: .* .there is no such folder"):
        load_model(tmp_path / "nowhere")


def test_pickled_files_are_refused(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(1)}, tmp_path / "best.pth")
    with pytest.raises(ValueError, match=r"best\.pth: pickled files are not loaded"):
        load_model(tmp_path / "best.pth")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "other"}, "is not a segray-model file"),
        ({"format_version": 99}, "has format_version 99, this program reads 1"),
        ({"sha256": None}, "lacks sha256"),
        ({"spec": {"arch": "pspnett"}}, "unknown architecture 'pspnett'"),
        ({"num_classes": 4}, "head.classifier.weight has shape .* the model wants"),
    ],
)
def test_descriptions_that_do_not_fit_are_refused(saved: Path, changes: dict[str, Any], message: str) -> None:
    info = json.loads((saved / MODEL_FILE).read_text()) | changes
    (saved / MODEL_FILE).write_text(json.dumps({key: value for key, value in info.items() if value is not None}))
    with pytest.raises(ValueError, match=message):
        load_model(saved)


def test_a_broken_description_is_refused(saved: Path) -> None:
    (saved / MODEL_FILE).write_text("{")
    with pytest.raises(ValueError, match="is not valid JSON"):
        load_model(saved)


def test_transfer_to_the_same_classes_keeps_everything() -> None:
    source, model = make_model(seed=0), make_model(seed=1)
    report = transfer(model, source.state_dict(), same_classes=True)
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in model.state_dict().items())
    assert report.text() == f"kept {len(model.state_dict())} tensors, all of them"


def test_transfer_to_other_classes_keeps_all_but_the_classifiers() -> None:
    source, model = make_model(3, seed=0), make_model(5, seed=1)
    fresh = {name: value.clone() for name, value in model.state_dict().items()}
    report = transfer(model, source.state_dict(), same_classes=False)
    classifiers = (
        "head.classifier.weight",
        "head.classifier.bias",
        "aux_head.classifier.weight",
        "aux_head.classifier.bias",
    )
    assert report.dropped == report.new == classifiers
    for name, value in model.state_dict().items():
        assert torch.equal(value, fresh[name] if name in classifiers else source.state_dict()[name]), name
    names = ", ".join(classifiers)
    expected = f"kept {len(fresh) - 4} tensors, dropped 4 (class list differs): {names}; new 4: {names}"
    assert report.text() == expected


def test_classifiers_of_equal_size_but_other_classes_are_not_carried() -> None:
    source, model = make_model(3, seed=0), make_model(3, seed=1)
    transfer(model, source.state_dict(), same_classes=False)
    assert not torch.equal(model.state_dict()["head.classifier.weight"], source.state_dict()["head.classifier.weight"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head.conv.conv.weight": torch.zeros(1)}, r"head\.conv\.conv\.weight has shape \(1,\), the model wants"),
        ({"head.conv.conv.weight": None}, r"missing head\.conv\.conv\.weight"),
        ({"neck.weight": torch.zeros(1)}, r"left over neck\.weight"),
    ],
)
@pytest.mark.parametrize("same_classes", [True, False])
def test_anything_else_that_does_not_fit_is_refused_and_changes_nothing(
    change: dict[str, Any], message: str, same_classes: bool
) -> None:
    model = make_model(seed=1)
    state = {name: value for name, value in (make_model().state_dict() | change).items() if value is not None}
    with pytest.raises(ValueError, match=message):
        transfer(model, state, same_classes=same_classes)
    assert torch.equal(
        model.state_dict()["head.conv.norm.weight"], make_model(seed=1).state_dict()["head.conv.norm.weight"]
    )
    assert torch.equal(
        model.state_dict()["context.branches.0.conv.weight"],
        make_model(seed=1).state_dict()["context.branches.0.conv.weight"],
    )


def test_other_class_counts_under_the_same_class_list_are_refused() -> None:
    with pytest.raises(ValueError, match=r"head\.classifier\.weight has shape"):
        transfer(make_model(5), make_model(3).state_dict(), same_classes=True)
