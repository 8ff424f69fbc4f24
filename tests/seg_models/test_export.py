"""Exported files compute what the model computes."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from seg_models import create_model
from seg_models.export import export_model
from seg_models.outputs import SegModel
from seg_models.predictor import Predictor


@pytest.fixture(scope="module")
def model() -> SegModel:
    torch.manual_seed(0)
    return create_model("pspnet_resnet10t_narrow", num_classes=4)


@pytest.mark.filterwarnings("ignore:The given buffer is not writable")
def test_both_formats_agree_with_the_model_and_with_the_predictor(model: SegModel, tmp_path: Path) -> None:
    import onnxruntime

    results = export_model(model, directory=tmp_path / "out", formats=("pt2", "onnx"), size=(40, 56))
    assert [result.format for result in results] == ["pt2", "onnx"]
    assert all(result.max_rel_diff <= 1e-4 for result in results)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["model.onnx", "model.pt2"]

    image = np.random.default_rng(0).integers(0, 256, (40, 56, 3)).astype(np.uint8)
    expected = Predictor(model).predict(image).label
    images = torch.from_numpy(image).permute(2, 0, 1)[None].contiguous()
    with torch.no_grad():
        scores = torch.export.load(results[0].path).module()(images)
    assert np.array_equal(scores.argmax(1)[0].numpy(), expected)
    session = onnxruntime.InferenceSession(results[1].path, providers=["CPUExecutionProvider"])
    (scores,) = session.run(None, {"images": images.numpy()})
    assert np.array_equal(np.asarray(scores).argmax(1)[0], expected)


def test_a_file_that_differs_is_not_kept(model: SegModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from seg_models import export

    def write_other(program: torch.export.ExportedProgram, images: torch.Tensor, path: Path) -> torch.Tensor:
        path.write_bytes(b"other")
        return 1.01 * torch.as_tensor(program.module()(images))

    monkeypatch.setitem(export._WRITERS, "pt2", write_other)
    with pytest.raises(ValueError, match=r"model\.pt2 differs from the model by .* .tolerance 1\.00e-04"):
        export_model(model, directory=tmp_path, size=(16, 16))
    assert list(tmp_path.iterdir()) == []


def test_the_model_is_given_back_in_the_mode_it_had(tmp_path: Path) -> None:
    model = create_model("pspnet_resnet10t_narrow", num_classes=2).train()
    export_model(model, directory=tmp_path, size=(16, 16))
    assert model.training


def test_an_unknown_format_is_refused(model: SegModel, tmp_path: Path) -> None:
    unknown: Any = ("tflite",)
    with pytest.raises(ValueError, match="unknown export format 'tflite'; known: pt2, onnx"):
        export_model(model, directory=tmp_path, formats=unknown)


def test_onnx_without_its_packages_names_them(model: SegModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs onnx, onnxscript, onnxruntime: pip install 'segray\[onnx\]'"):
        export_model(model, directory=tmp_path, formats=("onnx",))
