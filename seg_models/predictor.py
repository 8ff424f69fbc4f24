"""A model and its settings of inference -> full-size label maps.

Whole images, sliding windows, several scales, mirror images and chained scales (HMSA) are all looks (`looks.py`); what
the network says about them stays at the size of the cells and is enlarged, averaged and arg-maxed tile by tile
(`seen_view.py`). How many windows go through the network together follows from a stated limit of memory
(`prediction_memory.py`).

Shapes: N images, K classes, H W pixels of the original images, r c pixels of a tile.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Literal, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor, nn

from seg_models.looks import View, make_view
from seg_models.outputs import SegModel, WeighsScales
from seg_models.parts.largest import largest
from seg_models.parts.resample import strips
from seg_models.prediction_memory import PredictionMemory
from seg_models.seen_view import SeenView
from seg_models.spec import Spec

CPU_TILE_ELEMENTS = 1 << 18
"""Largest K·r·c of a tile on a CPU: stays in the cache of a core."""
DEVICE_TILE_ELEMENTS = 1 << 24
"""The same on an accelerator: enough work for all of it."""
CPU_TILE_COLUMNS, DEVICE_TILE_COLUMNS = 256, 1024
"""Largest c of a tile: enlarging by a matrix costs c times the cells near c pixels."""

Average = Literal["window_logits", "logits", "probabilities"]


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
    """Slide a window of this height and width, filled up to whole cells, instead of looking at the whole image."""
    stride: tuple[int, int] | None = None
    """Pixels from one window to the next, down and along; default: two thirds of the window."""
    average: Average = "window_logits"
    """What is averaged at every pixel. window_logits: logits over windows, then probabilities over scales and mirror
    images (mmsegmentation). logits: logits over all (HMSA's released code). probabilities: probabilities over all."""
    memory_gb: float | None = Field(None, gt=0)
    """Most memory, in 10⁹ bytes and beside the weights, that predicting an image may take; as many windows go through
    the network together as it allows. Default: no limit, one window at a time."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.short_side is not None and self.size is not None:
            raise ValueError("set either `short_side` or `size`, not both")
        if min(self.scales) <= 0:
            raise ValueError(f"scales must be positive, found {self.scales}")
        if len(set(self.scales)) < len(self.scales):
            raise ValueError(f"scales names one twice, found {self.scales}")
        if self.hierarchical and 1.0 not in self.scales:
            raise ValueError(f"hierarchical = true needs 1.0 among the scales, found {self.scales}")
        for name in ("size", "window", "stride"):
            sides = getattr(self, name)
            if sides is not None and min(sides) <= 0:
                raise ValueError(f"{name} must be positive, found {sides}")
        self._check_windows()
        return self

    def _check_windows(self) -> None:
        if self.stride is not None and self.window is None:
            raise ValueError("stride takes no effect without `window`")
        pairs = zip(self.stride or (), self.window or (), strict=False)
        if any(step > side for step, side in pairs):
            raise ValueError(f"stride {self.stride} leaves pixels out between windows of {self.window}")
        if self.average != "window_logits" and self.window is None and len(self.view_scales) == 1 and not self.flip:
            raise ValueError(f"average = {self.average!r} takes no effect without `window`, `flip` or several scales")

    def check_model(self, model: SegModel) -> None:
        """Whether this model can predict so.

        Raises:
            ValueError: `hierarchical` for a model that does not weigh scales.
        """
        if self.hierarchical and not isinstance(model, WeighsScales):
            raise ValueError(
                f"predictor.hierarchical = true: {type(model).__name__} does not weigh scales; set it to false, "
                "or put the model inside an hmsa"
            )

    @property
    def view_scales(self) -> tuple[float, ...]:
        """The scales that are averaged; the model itself takes care of those that are weighed."""
        return (1.0,) if self.hierarchical else self.scales


class Prediction(NamedTuple):
    """What a model says about an image."""

    label: NDArray[np.uint16]
    """(H, W) class indices."""
    confidence: NDArray[np.float32]
    """(H, W) probability of that class, 0..1."""


class TensorPrediction(NamedTuple):
    """What a model says about images, on its device."""

    label: Tensor
    """(N, H, W) class indices, uint8 where there are at most 256 classes, else int32."""
    confidence: Tensor
    """(N, H, W) float32 probability of that class, 0..1."""


class Predictor:
    """Predicts label maps; equal inputs give equal outputs on one device.

    Args:
        model: put in eval mode and on `device`.
        spec: size, scales, mirroring, window and memory.
        device: where to compute.
        max_elements: largest K·r·c of a tile; default by device.
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
        self.spec.check_model(model)
        self.device = torch.device(device)
        self._tile = _tile(model.num_classes, device=self.device, max_elements=max_elements)
        self.mirrored = tuple(range(model.num_classes) if mirrored is None else mirrored)
        if sorted(self.mirrored) != list(range(model.num_classes)):
            raise ValueError(f"mirrored {self.mirrored} does not name each of the {model.num_classes} classes once")
        self._memory: PredictionMemory | None = None
        if self.spec.memory_gb is not None:
            forward = partial(_scores, spec=self.spec)
            limit_gb = self.spec.memory_gb
            self._memory = PredictionMemory(self.model, forward, device=self.device, limit_gb=limit_gb)

    def predict(self, image: NDArray[np.uint8]) -> Prediction:
        """Label every pixel of an RGB image (H, W, 3), and say how sure that is.

        Raises:
            ValueError: not a uint8 RGB image, or `memory_gb` is too small for it.
        """
        found = self.predict_tensors(self._one(image))
        return Prediction(_as_label(found.label), found.confidence[0].cpu().numpy())

    def label(self, image: NDArray[np.uint8]) -> NDArray[np.uint16]:
        """The labels of `predict` alone, (H, W), in less time.

        Raises:
            ValueError: not a uint8 RGB image, or `memory_gb` is too small for it.
        """
        return _as_label(self.label_tensors(self._one(image)))

    @torch.inference_mode()
    def predict_tensors(self, images: Tensor) -> TensorPrediction:
        """Label every pixel of images (N, 3, H, W) of the device, uint8 or float in 0..255.

        Without `memory_gb` all N images go through the network together (a window of each).

        Raises:
            ValueError: other shapes, or `memory_gb` is too small.
        """
        label = self._empty_label(images)
        confidence = torch.empty(label.shape, device=self.device)
        for place, scores, are_logits in self._tiles(images):
            most, label[place] = largest(scores)
            confidence[place] = 1 / (scores - most).exp_().sum(dim=0) if are_logits else most
        return TensorPrediction(label, confidence)

    @torch.inference_mode()
    def label_tensors(self, images: Tensor) -> Tensor:
        """The labels of `predict_tensors` alone, (N, H, W), in less time.

        Raises:
            ValueError: other shapes, or `memory_gb` is too small.
        """
        label = self._empty_label(images)
        for place, scores, _ in self._tiles(images):
            _, label[place] = largest(scores)
        return label

    @torch.inference_mode()
    def probability_tensors(self, images: Tensor) -> Tensor:
        """Probabilities of all classes at every pixel, (N, K, H, W): K times the memory of the confidence.

        Raises:
            ValueError: other shapes, or `memory_gb` is too small, which this result is not counted in.
        """
        shape = self._empty_label(images).shape
        found = torch.empty(shape[0], self.model.num_classes, *shape[1:], device=self.device)
        for (number, rows, columns), scores, are_logits in self._tiles(images):
            found[number, :, rows, columns] = torch.softmax(scores, dim=0) if are_logits else scores
        return found

    def _one(self, image: NDArray[np.uint8]) -> Tensor:
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ValueError(f"image must be uint8 (H, W, 3), found {image.dtype} {image.shape}")
        return torch.from_numpy(np.array(image)).to(self.device).permute(2, 0, 1)[None]

    def _empty_label(self, images: Tensor) -> Tensor:
        if images.ndim != 4 or images.shape[1] != 3 or images.numel() == 0:
            raise ValueError(f"images must be (N, 3, H, W), found {tuple(images.shape)}")
        shape = (images.shape[0], *images.shape[2:])
        return torch.empty(shape, dtype=_label_dtype(self.model.num_classes), device=self.device)

    def _tiles(self, images: Tensor) -> Iterator[tuple[tuple[int, slice, slice], Tensor, bool]]:
        """Place (image, rows, columns), mean scores (K, r, c) of each tile, and whether they are logits."""
        images = images.to(self.device) if images.dtype == torch.uint8 else images.to(self.device).float()
        height, width = images.shape[-2:]
        views = self._views(height, width)
        seen = self._seen(images, views)
        of_probabilities = self._softmax_windows(views) or self._softmax_views(views)
        for rows in strips(height, rows=self._tile[0]):
            for one in seen:
                one.reach(rows)
            for number in range(len(images)):
                for columns in strips(width, rows=self._tile[1]):
                    place = (number, rows, columns)
                    yield place, self._mean(seen, place, softmax=self._softmax_views(views)), not of_probabilities

    def _mean(self, seen: Sequence[SeenView], place: tuple[int, slice, slice], *, softmax: bool) -> Tensor:
        """Mean over the views at a tile: (K, r, c)."""
        with torch.autocast(self.device.type, enabled=False):
            total: Tensor | None = None
            for one in seen:
                scores = one.scores(*place)
                scores = torch.softmax(scores, dim=0) if softmax else scores
                total = scores if total is None else total.add_(scores)
        assert total is not None
        return total.div_(len(seen)) if len(seen) > 1 else total

    def _softmax_windows(self, views: Sequence[View]) -> bool:
        """Whether the scores of single windows are made probabilities; those of a single look need not be."""
        return self.spec.average == "probabilities" and len(views) * views[0].num_looks > 1

    def _softmax_views(self, views: Sequence[View]) -> bool:
        return self.spec.average == "window_logits" and len(views) > 1

    def _views(self, height: int, width: int) -> list[View]:
        return [
            make_view(
                (height, width),
                resized=self._size(height, width, scale),
                window=self.spec.window,
                stride=self.spec.stride,
                cell=self.model.output_stride,
                mirrored=mirrored,
            )
            for scale in self.spec.view_scales
            for mirrored in ((False, True) if self.spec.flip else (False,))
        ]

    def _size(self, height: int, width: int, scale: float) -> tuple[int, int]:
        if self.spec.size is not None:
            height, width = self.spec.size
        elif self.spec.short_side is not None:
            scale *= self.spec.short_side / min(height, width)
        return max(1, round(height * scale)), max(1, round(width * scale))

    def _seen(self, images: Tensor, views: Sequence[View]) -> list[SeenView]:
        num_looks = len(images)
        if self._memory is not None:
            num_looks = self._memory.looks_per_pass(images, views, tile=self._tile)
        return [
            SeenView(
                images,
                view,
                network=partial(_scores, self.model, spec=self.spec),
                num_looks=num_looks,
                order=self.mirrored,
                of_probabilities=self._softmax_windows(views),
            )
            for view in views
        ]


def _scores(model: nn.Module, looks: Tensor, *, spec: PredictorSpec) -> Tensor:
    """Scores (n, K, h, w) of looks (n, 3, height, width)."""
    if spec.hierarchical:
        assert isinstance(model, WeighsScales)
        return model.predict_scales(looks, scales=spec.scales)
    scores: Tensor = model(looks).logits
    return scores


def _tile(num_classes: int, *, device: torch.device, max_elements: int | None) -> tuple[int, int]:
    """Largest rows and columns of a tile."""
    on_cpu = device.type == "cpu"
    elements = max_elements or (CPU_TILE_ELEMENTS if on_cpu else DEVICE_TILE_ELEMENTS)
    pixels = max(1, elements // num_classes)
    columns = min(CPU_TILE_COLUMNS if on_cpu else DEVICE_TILE_COLUMNS, pixels)
    return pixels // columns, columns


def _label_dtype(num_classes: int) -> torch.dtype:
    return torch.uint8 if num_classes <= 256 else torch.int32


def _as_label(label: Tensor) -> NDArray[np.uint16]:
    return label[0].cpu().numpy().astype(np.uint16)
