"""A model and its settings of inference -> full-size label maps.

The scores of every pass stay at the size of the cells; they are enlarged straight to the pixels of the original
image, turned into probabilities, averaged and arg-maxed strip by strip.

Shapes: K classes, H W pixels of the original image, h w cells of a pass, r rows of a strip.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional

from seg_models.outputs import SegModel, WeighsScales
from seg_models.parts.layers import IMAGENET_MEAN
from seg_models.parts.resample import bilinear_matrix, near_inputs, resample, rows_per_strip, strips
from seg_models.spec import Spec

PAD_COLOR = tuple(round(255 * value) for value in IMAGENET_MEAN)
"""Fills images up to a multiple of the output stride."""


class PredictorSpec(Spec):
    """How a model looks at an image."""

    short_side: int | None = Field(None, gt=0)
    """Resize the short side to this many pixels, keeping the aspect ratio; default: the image's own size."""
    size: tuple[int, int] | None = None
    """Resize to exactly this height and width instead."""
    flip: bool = False
    """Average with the prediction of the mirrored image."""
    scales: tuple[float, ...] = Field((1.0,), min_length=1)
    """Average over these factors of the size."""
    hierarchical: bool = False
    """Let the model weigh the scales against each other instead of averaging over them (hmsa); 1 must be among them."""
    window: tuple[int, int] | None = None
    """Slide a window of this height and width instead of looking at the whole image."""
    overlap: float = Field(1 / 3, ge=0, lt=1)
    """Share of the window that neighbouring windows have in common."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.short_side is not None and self.size is not None:
            raise ValueError("set either `short_side` or `size`, not both")
        if min(self.scales) <= 0:
            raise ValueError(f"scales must be positive, found {self.scales}")
        if self.hierarchical and 1.0 not in self.scales:
            raise ValueError(f"hierarchical = true needs 1.0 among the scales, found {self.scales}")
        for name in ("size", "window"):
            sides = getattr(self, name)
            if sides is not None and min(sides) <= 0:
                raise ValueError(f"{name} must be positive, found {sides}")
        return self


@dataclass(frozen=True)
class Prediction:
    """What a model says about an image."""

    label: NDArray[np.uint16]
    """(H, W) class indices."""
    confidence: NDArray[np.float32]
    """(H, W) probability of that class, averaged over the passes, 0..1."""


@dataclass(frozen=True)
class _Pass:
    """Scores of one look at the image, and how its cells map to the original pixels."""

    cells: Tensor
    """(K, h, w)"""
    row_ratio: float
    """Cells per original pixel, downwards."""
    rows: Tensor
    """(H, h) interpolation of the rows."""
    columns: Tensor
    """(W, w) interpolation of the columns."""


class Predictor:
    """Predicts label maps; equal inputs give equal outputs on one device.

    Args:
        model: put in eval mode and on `device`.
        spec: size, scales, mirroring and window.
        device: where to compute.
        max_elements: largest K·r·W of a strip; default by device.
        mirrored: what each class index is in a mirrored image (left arm, right arm); default: itself.

    Raises:
        ValueError: `hierarchical` for a model that does not weigh scales, or `mirrored` for other classes.
    """

    def __init__(
        self,
        model: SegModel,
        *,
        spec: PredictorSpec | None = None,
        device: torch.device | str = "cpu",
        max_elements: int | None = None,
        mirrored: Sequence[int] | None = None,
    ) -> None:
        self.model = model.to(device).eval()
        self.spec = spec or PredictorSpec()
        if self.spec.hierarchical and not isinstance(model, WeighsScales):
            raise ValueError(
                f"predictor.hierarchical = true: {type(model).__name__} does not weigh scales; set it to false, "
                "or put the model inside an hmsa"
            )
        self.device = torch.device(device)
        self.max_elements = max_elements
        self.mirrored = tuple(range(model.num_classes) if mirrored is None else mirrored)
        if sorted(self.mirrored) != list(range(model.num_classes)):
            raise ValueError(f"mirrored {self.mirrored} does not name each of the {model.num_classes} classes once")

    @torch.inference_mode()
    def predict(self, image: NDArray[np.uint8]) -> Prediction:
        """Label every pixel of an RGB image (H, W, 3).

        Raises:
            ValueError: not a uint8 RGB image.
        """
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ValueError(f"image must be uint8 (H, W, 3), found {image.dtype} {image.shape}")
        pixels = torch.from_numpy(np.array(image)).to(self.device).permute(2, 0, 1)[None].float()
        height, width = image.shape[:2]
        scales = (1.0,) if self.spec.hierarchical else self.spec.scales  # else the model takes care of them
        passes = [one for scale in scales for one in self._passes(pixels, scale)]
        label = torch.empty(height, width, dtype=torch.int32, device=self.device)
        confidence = torch.empty(height, width, device=self.device)
        limit, num_classes = self.max_elements, self.model.num_classes
        num_rows = rows_per_strip(num_classes, width, device=self.device, max_elements=limit)
        for strip in strips(height, rows=num_rows):
            confidence[strip], label[strip] = _strip_maximum(passes, strip)
        return Prediction(label=label.cpu().numpy().astype(np.uint16), confidence=confidence.cpu().numpy())

    def _passes(self, pixels: Tensor, scale: float) -> Iterator[_Pass]:
        """One look at the image at a scale, and one at its mirror image."""
        height, width = pixels.shape[-2:]
        resized = _resize(pixels, self._size(height, width, scale))
        for mirrored in (False, True) if self.spec.flip else (False,):
            padded = self._pad(resized.flip(-1) if mirrored else resized)
            cells = self._look(padded) if self.spec.window is None else self._slide(padded)
            cells = cells[list(self.mirrored)] if mirrored else cells
            row_ratio, column_ratio = (
                resized.shape[axis] / pixels.shape[axis] * cells.shape[axis] / padded.shape[axis] for axis in (-2, -1)
            )
            rows = bilinear_matrix(cells.shape[-2], height, ratio=row_ratio, device=self.device)
            columns = bilinear_matrix(cells.shape[-1], width, ratio=column_ratio, device=self.device)
            yield _Pass(cells, row_ratio, rows=rows, columns=columns.flip(0) if mirrored else columns)

    def _size(self, height: int, width: int, scale: float) -> tuple[int, int]:
        if self.spec.size is not None:
            height, width = self.spec.size
        elif self.spec.short_side is not None:
            scale *= self.spec.short_side / min(height, width)
        return max(1, round(height * scale)), max(1, round(width * scale))

    def _window(self) -> tuple[int, int]:
        """Height and width of the window in whole cells, in pixels; nothing if there is none."""
        height, width = self.spec.window or (0, 0)
        return _round_up(height, self.model.output_stride), _round_up(width, self.model.output_stride)

    def _pad(self, image: Tensor) -> Tensor:
        """Fill up at the bottom and right to whole cells and at least one window."""
        sides = (_round_up(side, self.model.output_stride) for side in image.shape[-2:])
        height, width = (max(side, least) for side, least in zip(sides, self._window(), strict=True))
        padded = image.new_tensor(PAD_COLOR).view(1, 3, 1, 1).repeat(1, 1, height, width)
        padded[..., : image.shape[-2], : image.shape[-1]] = image
        return padded

    def _slide(self, image: Tensor) -> Tensor:
        """Average the scores (K, h, w) of overlapping windows, which begin at whole cells."""
        stride = self.model.output_stride
        height, width = (side // stride for side in image.shape[-2:])
        window_height, window_width = (side // stride for side in self._window())
        total = torch.zeros(self.model.num_classes, height, width, device=self.device)
        count = torch.zeros(height, width, device=self.device)
        for top in _starts(height, window_height, self.spec.overlap):
            for left in _starts(width, window_width, self.spec.overlap):
                rows, columns = slice(top, top + window_height), slice(left, left + window_width)
                part = image[..., top * stride : rows.stop * stride, left * stride : columns.stop * stride]
                total[:, rows, columns] += self._look(part)
                count[rows, columns] += 1
        return total / count

    def _look(self, image: Tensor) -> Tensor:
        image = image.contiguous(memory_format=torch.channels_last)
        if self.spec.hierarchical and isinstance(self.model, WeighsScales):
            return self.model.predict_scales(image, scales=self.spec.scales)[0].float()
        logits: Tensor = self.model(image).logits
        return logits[0].float()


def _strip_maximum(passes: list[_Pass], strip: slice) -> tuple[Tensor, Tensor]:
    """Largest mean probability (r, W) and its class (r, W) in a strip of the original image."""
    total: Tensor | None = None
    for one in passes:
        near = near_inputs(strip, num_in=one.cells.shape[-2], ratio=one.row_ratio)
        scores = resample(one.cells[:, near], rows=one.rows[strip, near], columns=one.columns)
        probabilities = torch.softmax(scores, dim=0)
        total = probabilities if total is None else total.add_(probabilities)
    assert total is not None
    largest, label = (total / len(passes)).max(dim=0)
    return largest, label.int()


def _resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(image.shape[-2:]) == size:
        return image
    return functional.interpolate(image, size=size, mode="bilinear", align_corners=False, antialias=True)


def _round_up(side: int, multiple: int) -> int:
    return -(-side // multiple) * multiple


def _starts(length: int, window: int, overlap: float) -> list[int]:
    """First cells of windows that cover `length` evenly with at least the wanted overlap."""
    if length <= window:
        return [0]
    step = max(1, round(window * (1 - overlap)))
    num_windows = -(-(length - window) // step) + 1
    return [round(i * (length - window) / (num_windows - 1)) for i in range(num_windows)]
