"""Every way to look at an image against slow references: plain loops, and scores of all pixels at full size."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import ClassVar

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from seg_models.looks import PAD_COLOR
from seg_models.outputs import SegModel, SemanticOutput, SemanticTarget
from seg_models.predictor import Predictor, PredictorSpec

K = 5
HEIGHT, WIDTH = 23, 30
Scores = NDArray[np.float64]


class Mixed(SegModel):
    """Scores of a cell depend on all that the network is given, so that every look says something else."""

    class_dependent: ClassVar[tuple[str, ...]] = ()
    num_classes = K
    output_stride = 4

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.near = nn.Parameter(torch.randn(K, 3, 7, 7, generator=generator) / 300)
        self.far = nn.Parameter(torch.randn(K, 3, generator=generator) / 20)

    def forward(self, images: Tensor) -> SemanticOutput:
        near = functional.conv2d(images.float() - 120, self.near, stride=self.output_stride, padding=3)
        return SemanticOutput(near + (images.float().mean((2, 3)) @ self.far.t() - 3)[:, :, None, None])

    def predict_scales(self, images: Tensor, *, scales: Sequence[float]) -> Tensor:
        """Weighs scales by something; how HMSA does is tested with HMSA."""
        height, width = images.shape[-2:]
        middle = self(images).logits
        looks = [
            self(functional.interpolate(images.float(), size=(int(s * height), int(s * width)), mode="bilinear")).logits
            for s in sorted(scales)
        ]
        resized = [functional.interpolate(look, size=middle.shape[-2:], mode="bilinear") for look in looks]
        return torch.stack([(n + 1) * look for n, look in enumerate(resized)]).sum(0) / 3

    def loss(self, output: SemanticOutput, target: SemanticTarget) -> dict[str, Tensor]:
        return {"ce": output.logits.sum()}


def make_images(num: int = 1) -> Tensor:
    """Smooth pictures, each another one."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.randint(0, 256, (num, 3, 6, 7), generator=generator).float()
    return functional.interpolate(coarse, size=(HEIGHT, WIDTH), mode="bicubic").clamp(0, 255).to(torch.uint8)


def softmax(scores: Scores) -> Scores:
    powers = np.exp(scores - scores.max(axis=0))
    return np.asarray(powers / powers.sum(axis=0))


def interpolate(cells: Scores, y: float, x: float) -> Scores:
    """Bilinear between the four cells around a place; beyond the outermost centres, at these."""
    y, x = (min(max(place, 0.0), side - 1.0) for place, side in zip((y, x), cells.shape[1:], strict=True))
    top, left = int(y), int(x)
    bottom, right = min(top + 1, cells.shape[1] - 1), min(left + 1, cells.shape[2] - 1)
    above = cells[:, top, left] * (1 - (x - left)) + cells[:, top, right] * (x - left)
    below = cells[:, bottom, left] * (1 - (x - left)) + cells[:, bottom, right] * (x - left)
    return np.asarray(above * (1 - (y - top)) + below * (y - top))


def padded(image: Tensor) -> Tensor:
    """(1, 3, H, W) filled up to whole cells."""
    height, width = (4 * math.ceil(side / 4) for side in image.shape[-2:])
    full = torch.tensor(PAD_COLOR).float().view(1, 3, 1, 1).repeat(1, 1, height, width)
    full[..., : image.shape[-2], : image.shape[-1]] = image
    return full


def windows(side: int, window: int, stride: int) -> Iterator[tuple[int, int]]:
    """First pixel and length, as mmsegmentation places them: the last one is moved back to the border."""
    length = 4 * math.ceil(min(window, side) / 4)
    start = 0
    while True:
        yield max(min(start, side - length), 0), length
        if start + length >= side:
            return
        start += stride


def reference_of_view(
    model: Mixed, image: Tensor, spec: PredictorSpec, *, scale: float, mirror: bool, mirrored: Sequence[int]
) -> Scores:
    """Mean over the windows of one view at every pixel of the image: logits, or probabilities if these are averaged."""
    height, width = (round(side * scale) for side in (HEIGHT, WIDTH))
    view = image.float()
    if scale != 1:
        view = functional.interpolate(view, size=(height, width), mode="bilinear", antialias=True)
    view = padded(view.flip(-1) if mirror else view)
    window, stride = spec.window or tuple(view.shape[-2:]), spec.stride or tuple(view.shape[-2:])
    total, count = np.zeros((K, HEIGHT, WIDTH)), np.zeros((HEIGHT, WIDTH))
    for top, rows in windows(height, window[0], stride[0]):
        for left, columns in windows(width, window[1], stride[1]):
            part = view[..., top : top + rows, left : left + columns]
            logits = model.predict_scales(part, scales=spec.scales) if spec.hierarchical else model(part).logits
            cells = logits[0].double().numpy()[list(mirrored) if mirror else slice(None)]
            for y in range(HEIGHT):
                for x in range(WIDTH):
                    across = WIDTH - 1 - x if mirror else x
                    down_px, along_px = (y + 0.5) * height / HEIGHT - top, (across + 0.5) * width / WIDTH - left
                    if not (0 <= down_px < rows and 0 <= along_px < columns):
                        continue
                    place = down_px * cells.shape[1] / rows - 0.5, along_px * cells.shape[2] / columns - 0.5
                    scores = interpolate(cells, *place)
                    total[:, y, x] += softmax(scores) if spec.average == "probabilities" else scores
                    count[y, x] += 1
    assert count.min() > 0
    return np.asarray(total / count)


@torch.no_grad()
def reference(model: Mixed, image: Tensor, spec: PredictorSpec, *, mirrored: Sequence[int]) -> Scores:
    """Probabilities (K, H, W)."""
    scales, mirrors = (1.0,) if spec.hierarchical else spec.scales, (False, True) if spec.flip else (False,)
    views = [
        reference_of_view(model, image, spec, scale=scale, mirror=mirror, mirrored=mirrored)
        for scale in scales
        for mirror in mirrors
    ]
    if spec.average == "window_logits":
        views = [softmax(view) for view in views]
    mean = np.mean(views, axis=0)
    return softmax(mean) if spec.average == "logits" else np.asarray(mean)


SLIDING: dict[str, object] = {"window": (12, 16), "stride": (5, 9)}
WAYS: dict[str, dict[str, object]] = {
    "whole": {},
    "sliding": SLIDING,
    "sliding, probabilities": {**SLIDING, "average": "probabilities"},
    "sliding past whole cells": {"window": (9, 13), "stride": (9, 10)},
    "a window larger than the image": {"window": (20, 64), "stride": (7, 64)},
    "scales and mirror images": {"scales": (0.5, 1.0, 1.75), "flip": True},
    "logits of scales and mirror images": {"scales": (0.75, 1.0), "flip": True, "average": "logits"},
    "sliding over scales and mirror images": {**SLIDING, "scales": (0.5, 1.0, 1.75), "flip": True},
    "sliding over all, logits": {**SLIDING, "scales": (0.6, 1.5), "flip": True, "average": "logits"},
    "sliding over all, probabilities": {**SLIDING, "scales": (0.6, 1.5), "flip": True, "average": "probabilities"},
    "hierarchical": {"hierarchical": True, "scales": (0.5, 1.0, 2.0)},
    "hierarchical, mirrored": {"hierarchical": True, "scales": (0.5, 1.0), "flip": True, "average": "logits"},
    "hierarchical, sliding": {**SLIDING, "hierarchical": True, "scales": (1.0, 2.0), "flip": True},
}


@pytest.mark.parametrize("max_elements", [None, 700])
@pytest.mark.parametrize("way", WAYS)
def test_it_equals_plain_loops_over_all_pixels(way: str, max_elements: int | None) -> None:
    model, image, mirrored = Mixed(), make_images(), (1, 0, 2, 4, 3)
    spec = PredictorSpec.model_validate(WAYS[way])
    expected = reference(model, image, spec, mirrored=mirrored)
    predictor = Predictor(model, spec=spec, mirrored=mirrored, max_elements=max_elements)
    np.testing.assert_allclose(predictor.probability_tensors(image)[0], expected, atol=1e-5)
    found = predictor.predict(image[0].permute(1, 2, 0).numpy())
    np.testing.assert_allclose(found.confidence, expected.max(axis=0), atol=1e-5)
    second, first = np.sort(expected, axis=0)[-2:]
    clear = first - second > 1e-5
    assert clear.mean() > 0.99
    assert np.array_equal(found.label[clear], expected.argmax(axis=0)[clear])


@torch.no_grad()
def slide_as_mmsegmentation(
    model: SegModel, image: Tensor, *, window: tuple[int, int], stride: tuple[int, int]
) -> Tensor:
    """Mean logits (1, K, H, W): each window's are enlarged to its size and added to a map of the whole image."""
    height, width = image.shape[-2:]
    (high, wide), (down, along) = window, stride
    total, count = image.new_zeros(1, K, height, width, dtype=torch.float32), image.new_zeros(1, 1, height, width)
    for row in range(max(height - high + down - 1, 0) // down + 1):
        for column in range(max(width - wide + along - 1, 0) // along + 1):
            bottom, right = min(row * down + high, height), min(column * along + wide, width)
            top, left = max(bottom - high, 0), max(right - wide, 0)
            part = image[:, :, top:bottom, left:right]
            logits = functional.interpolate(model(part).logits, size=part.shape[-2:], mode="bilinear")
            total += functional.pad(logits, (left, width - right, top, height - bottom))
            count[:, :, top:bottom, left:right] += 1
    return total / count


def test_sliding_windows_equal_mmsegmentations() -> None:
    model, image = Mixed(), make_images()
    for window, stride in (((12, 16), (8, 11)), ((8, 8), (3, 5)), ((20, 28), (13, 19))):
        expected = slide_as_mmsegmentation(model, image, window=window, stride=stride).softmax(1)
        spec = PredictorSpec(window=window, stride=stride)
        torch.testing.assert_close(Predictor(model, spec=spec).probability_tensors(image), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("way", ["whole", "sliding over scales and mirror images", "hierarchical, sliding"])
def test_images_in_a_batch_are_predicted_like_each_alone(way: str) -> None:
    predictor = Predictor(Mixed(), spec=PredictorSpec.model_validate(WAYS[way]), max_elements=900)
    images = make_images(3)
    together = predictor.predict_tensors(images)
    for number in range(3):
        alone = predictor.predict_tensors(images[number : number + 1])
        assert torch.equal(together.label[number], alone.label[0])
        torch.testing.assert_close(together.confidence[number], alone.confidence[0], atol=1e-6, rtol=0)


@pytest.mark.parametrize("way", WAYS)
def test_labels_alone_are_those_of_the_whole_prediction(way: str) -> None:
    predictor, images = Predictor(Mixed(), spec=PredictorSpec.model_validate(WAYS[way])), make_images(2)
    assert torch.equal(predictor.label_tensors(images), predictor.predict_tensors(images).label)
    image = images[1].permute(1, 2, 0).numpy()
    assert np.array_equal(predictor.label(image), predictor.predict(image).label)


def test_float_images_are_predicted_like_the_same_in_uint8() -> None:
    predictor, images = Predictor(Mixed(), spec=PredictorSpec(scales=(0.5, 1.0))), make_images(2)
    for ours, floats in zip(predictor.predict_tensors(images), predictor.predict_tensors(images.float()), strict=True):
        assert torch.equal(ours, floats)


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 4, 8, 8), (0, 3, 8, 8)])
def test_tensors_of_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"images must be \(N, 3, H, W\), found \("):
        Predictor(Mixed()).predict_tensors(torch.zeros(shape))
