"""Models by name, and what they cost."""

from __future__ import annotations

import socket
import subprocess
import sys
from typing import Any

import pytest
import torch

from seg_models import create_model, describe_model, list_models
from seg_models.architectures.pspnet import PSPNet, PSPNetSpec
from seg_models.parts.context import PyramidPooling
from seg_models.spec import preset, presets

TINY = "pspnet_resnet10t_narrow"


def test_every_preset_is_named_after_its_architecture_and_listed_in_order() -> None:
    names = list_models()
    assert names == sorted(names)
    family = {"hmsa_average": "hmsa", "hmsa_explicit": "hmsa", "hrnet_ocr": "hrnet"}  # as their sheet names them
    arch = {name: preset(name).arch for name in names}
    assert all(name.startswith(f"{family.get(arch[name], arch[name])}_") for name in names)
    assert {"pspnet_resnet50", "pspnet_resnet101", "pspnet_mobilenetv2", "pspnet_efficientnet_lite0"} <= set(names)


def test_models_are_listed_by_pattern() -> None:
    assert list_models("pspnet_resnet50*") == ["pspnet_resnet50", "pspnet_resnet50_paddleseg"]
    assert list_models("nothing*") == []


def test_no_preset_fetches_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a model opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    with torch.device("meta"):
        for name in list_models():
            create_model(name, num_classes=3)


def test_a_name_a_spec_and_a_table_give_the_same_network() -> None:
    by_name = create_model(TINY, num_classes=4)
    by_spec = create_model(preset(TINY), num_classes=4)
    by_table = create_model(preset(TINY).model_dump(), num_classes=4)
    assert repr(by_name) == repr(by_spec) == repr(by_table)


def test_changes_replace_settings_table_by_table() -> None:
    model = create_model(TINY, num_classes=4, bins=(1, 2), backbone={"output_stride": 16})
    assert isinstance(model, PSPNet)
    assert model.output_stride == 16
    assert model.backbone.channels == (32, 16, 32, 64, 128)
    assert isinstance(model.context, PyramidPooling)
    assert len(model.context.branches) == 2


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("pspnet_resnet5", {}, "unknown model 'pspnet_resnet5' .did you mean 'pspnet_resnet50'"),
        ("pspnet_resnet50", {"bin": (1,)}, "no setting 'bin' .did you mean 'bins'"),
        ({"arch": "pspnett"}, {}, "unknown architecture 'pspnett' .did you mean 'pspnet'"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest_one(name: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_model(name, num_classes=2, **changes)


def test_no_class_is_refused() -> None:
    with pytest.raises(ValueError, match="num_classes must be at least 1"):
        create_model(TINY, num_classes=0)


def test_a_description_allocates_nothing_and_agrees_with_the_model() -> None:
    info = describe_model(TINY, num_classes=5, size=(64, 96))
    model = create_model(TINY, num_classes=5)
    assert info.params == sum(value.numel() for value in model.parameters())
    assert info.params == info.params_main + info.params_aux
    assert info.input_size == (64, 96)
    assert info.name == TINY


def test_a_description_works_without_the_weights_a_spec_names() -> None:
    spec = PSPNetSpec.model_validate({"backbone": {"name": "resnet18", "weights": "/nowhere/weights.pth"}})
    assert describe_model(spec, num_classes=2).params > 11_000_000


def test_multiply_adds_grow_with_the_area() -> None:
    small, large = (describe_model(TINY, num_classes=5, size=(side, side)).gmac for side in (64, 128))
    assert large / small == pytest.approx(4, rel=0.02)


def test_presets_survive_json() -> None:
    for name, spec in presets().items():
        assert type(spec).model_validate_json(spec.model_dump_json()) == spec, name


BARE = """
import sys
blocked = ("ray", "mlflow", "deltalake", "pyarrow", "s3fs", "captum", "onnx", "onnxruntime", "pipelines", "jobs")
sys.modules.update(dict.fromkeys(blocked))
import numpy, seg_models
from seg_models import export, metrics, recipes
from seg_models.predictor import Predictor
model = seg_models.create_model("pspnet_resnet10t_narrow", num_classes=3)
print(Predictor(model).predict(numpy.zeros((16, 24, 3), numpy.uint8)).label.shape)
"""


def test_models_run_where_engine_tracker_and_tables_are_not_installed() -> None:
    done = subprocess.run([sys.executable, "-c", BARE], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "(16, 24)", done.stderr
