"""A model as one file for other programs, compared with the eager model before it is handed out.

The exported function takes (1, 3, H, W) uint8 RGB images and returns (1, K, H, W) float32 scores at the size of the
image; its arg-max over axis 1 is the label map.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from seg_models.outputs import SegModel
from seg_models.parts.resample import bilinear_matrix, resample

ExportFormat = Literal["pt2", "onnx"]


@dataclass(frozen=True)
class ExportResult:
    """One exported file and how far it is from the eager model."""

    format: ExportFormat
    path: Path
    size_bytes: int
    max_abs_diff: float
    """Largest difference of a score."""
    max_rel_diff: float
    """The same, relative to the largest score."""


class FullSizeScores(nn.Module):
    """Scores at the size of the image, which is what users of an exported file want."""

    def __init__(self, model: SegModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) to (N, K, H, W)."""
        logits = self.model(images).logits.float()
        (height, width), (h, w) = images.shape[-2:], logits.shape[-2:]
        rows = bilinear_matrix(h, height, device=logits.device)
        return resample(logits, rows=rows, columns=bilinear_matrix(w, width, device=logits.device))


def export_model(
    model: SegModel,
    *,
    directory: Path,
    formats: Sequence[ExportFormat] = ("pt2",),
    size: tuple[int, int] = (512, 512),
    tolerance: float = 1e-4,
) -> list[ExportResult]:
    """Write `model.pt2` (torch.export) and/or `model.onnx` and compare each with the eager model.

    Args:
        model: on the CPU or any device; exported from the CPU.
        directory: made if missing.
        formats: what to write.
        size: height and width of the input.
        tolerance: largest difference allowed, relative to the largest score.

    Raises:
        ValueError: a package is missing, or a file differs by more than `tolerance` (it is then not kept).
    """
    _check_packages(formats)
    directory.mkdir(parents=True, exist_ok=True)
    was_training, device = model.training, next(model.parameters()).device
    network = FullSizeScores(model.cpu()).eval()
    try:
        return _export_all(network, formats, directory=directory, size=size, tolerance=tolerance)
    finally:
        model.train(was_training).to(device)


@torch.no_grad()
def _export_all(
    network: nn.Module, formats: Sequence[ExportFormat], *, directory: Path, size: tuple[int, int], tolerance: float
) -> list[ExportResult]:
    """Trace the network once, without gradients, and write every format from what was traced."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (1, 3, *size), dtype=torch.uint8, generator=generator)
    expected = network(images)
    program = torch.export.export(network, (images,), strict=False)
    return [_export_one(program, kind, images, expected, directory=directory, tolerance=tolerance) for kind in formats]


def _export_one(
    program: ExportedProgram, kind: ExportFormat, images: Tensor, expected: Tensor, *, directory: Path, tolerance: float
) -> ExportResult:
    part, path = directory / f".model.part.{kind}", directory / f"model.{kind}"
    try:
        found = _WRITERS[kind](program, images, part)
        difference = float((found - expected).abs().max())
        relative = difference / max(float(expected.abs().max()), 1e-12)
        if not relative <= tolerance:
            raise ValueError(f"{path.name} differs from the model by {relative:.2e} (tolerance {tolerance:.2e})")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return ExportResult(kind, path, path.stat().st_size, max_abs_diff=difference, max_rel_diff=relative)


def _write_pt2(program: ExportedProgram, images: Tensor, path: Path) -> Tensor:
    """Write, read back, run."""
    torch.export.save(program, path)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given buffer is not writable")  # torch's own reading
        scores: Tensor = torch.export.load(path).module()(images)
    return scores


def _write_onnx(program: ExportedProgram, images: Tensor, path: Path) -> Tensor:
    """Translate, write, read back with onnxruntime, run."""
    import onnxruntime

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns about its own internals
        torch.onnx.export(
            program,
            (),
            path,
            dynamo=True,
            external_data=False,
            verbose=False,
            input_names=["images"],
            output_names=["scores"],
        )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (scores,) = session.run(None, {"images": images.numpy()})
    return torch.from_numpy(np.asarray(scores))


_WRITERS: dict[ExportFormat, Callable[[ExportedProgram, Tensor, Path], Tensor]] = {
    "pt2": _write_pt2,
    "onnx": _write_onnx,
}


def _check_packages(formats: Sequence[ExportFormat]) -> None:
    if unknown := [kind for kind in formats if kind not in _WRITERS]:
        raise ValueError(f"unknown export format {unknown[0]!r}; known: {', '.join(_WRITERS)}")
    needed = ("onnx", "onnxscript", "onnxruntime") if "onnx" in formats else ()
    if missing := [name for name in needed if importlib.util.find_spec(name) is None]:
        raise ValueError(f"ONNX export needs {', '.join(missing)}: pip install 'segray[onnx]'")
