"""Prediction against the plain way: whole maps, enlarged by torch."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional

from seg_models.looks import PAD_COLOR
from seg_models.models import create_model
from seg_models.outputs import SegModel, SemanticOutput, SemanticTarget
from seg_models.predictor import Predictor, PredictorSpec

K = 6


class Brightness(SegModel):
    """Scores of a cell depend on its own pixels only: class by brightness, at stride 4."""

    class_dependent: ClassVar[tuple[str, ...]] = ()

    def __init__(self) -> None:
        super().__init__()
        self.num_classes = K
        self.output_stride = 4
        self.levels = nn.Parameter(torch.linspace(0, 255, K))
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, images: Tensor) -> SemanticOutput:
        self.shapes.append(tuple(images.shape[-2:]))
        cells = functional.avg_pool2d(images.float().mean(1, keepdim=True), 4)
        return SemanticOutput(-(cells - self.levels.view(1, K, 1, 1)).abs() / 40)

    def loss(self, output: SemanticOutput, target: SemanticTarget) -> dict[str, Tensor]:
        return {"ce": output.logits.sum()}


def make_image(height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng(height + width).integers(0, 256, (height, width, 3)).astype(np.uint8)


def plain_prediction(model: SegModel, image: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Pad, run, enlarge the whole map, crop, softmax, maximum."""
    height, width = image.shape[:2]
    stride = model.output_stride
    padded = np.full((-(-height // stride) * stride, -(-width // stride) * stride, 3), PAD_COLOR, np.uint8)
    padded[:height, :width] = image
    with torch.no_grad():
        logits = model(torch.from_numpy(padded).permute(2, 0, 1)[None]).logits
    scores = functional.interpolate(logits, size=padded.shape[:2], mode="bilinear", align_corners=False)
    confidence, label = scores[0, :, :height, :width].softmax(0).max(0)
    return label.numpy(), confidence.numpy()


@pytest.mark.parametrize(("height", "width"), [(40, 64), (37, 51), (8, 8), (1, 1)])
@pytest.mark.parametrize("max_elements", [1, 2000, None])
def test_strips_equal_the_whole_map(height: int, width: int, max_elements: int | None) -> None:
    torch.manual_seed(0)
    model = create_model("pspnet_resnet10t_narrow", num_classes=K).eval()
    image = make_image(height, width)
    label, confidence = plain_prediction(model, image)
    found = Predictor(model, max_elements=max_elements).predict(image)
    assert found.label.dtype == np.uint16
    assert found.confidence.dtype == np.float32
    assert np.array_equal(found.label, label)
    np.testing.assert_allclose(found.confidence, confidence, atol=1e-5)


def test_the_same_image_gives_the_same_bytes() -> None:
    predictor = Predictor(create_model("pspnet_resnet10t_narrow", num_classes=K), spec=PredictorSpec(flip=True))
    first, second = (predictor.predict(make_image(33, 47)) for _ in range(2))
    assert first.label.tobytes() == second.label.tobytes()
    assert first.confidence.tobytes() == second.confidence.tobytes()


def test_mirroring_averages_probabilities_of_both_looks() -> None:
    image = make_image(24, 32)
    mirrored = np.ascontiguousarray(image[:, ::-1])
    model = create_model("pspnet_resnet10t_narrow", num_classes=2)
    both = Predictor(model, spec=PredictorSpec(flip=True)).predict(image)
    once, other = (Predictor(model).predict(picture) for picture in (image, mirrored))

    def first_class(label: NDArray[np.uint16], confidence: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.where(label == 0, confidence, 1 - confidence)

    expected = (first_class(once.label, once.confidence) + first_class(other.label, other.confidence)[:, ::-1]) / 2
    np.testing.assert_allclose(first_class(both.label, both.confidence), expected, atol=1e-5)


class Sides(SegModel):
    """Class 0 on the left half of the map, class 1 on the right half, whatever is there: a left and a right arm."""

    class_dependent: ClassVar[tuple[str, ...]] = ()
    num_classes = 2

    def forward(self, images: Tensor) -> SemanticOutput:
        right = torch.arange(images.shape[-1]).expand(images[:, 0].shape) >= images.shape[-1] // 2
        return SemanticOutput(torch.stack([~right, right], dim=1).float())

    def loss(self, output: SemanticOutput, target: SemanticTarget) -> dict[str, Tensor]:
        return {"ce": output.logits.sum()}


def test_the_classes_of_a_mirrored_look_change_places_back() -> None:
    image, spec = make_image(4, 8), PredictorSpec(flip=True)
    swapped = Predictor(Sides(), spec=spec, mirrored=(1, 0)).predict(image)
    assert swapped.label.tolist() == [[0] * 4 + [1] * 4] * 4
    np.testing.assert_allclose(swapped.confidence, Predictor(Sides()).predict(image).confidence)
    undecided = Predictor(Sides(), spec=spec).predict(image)
    np.testing.assert_allclose(undecided.confidence, 0.5)


@pytest.mark.parametrize("mirrored", [(0,), (0, 0), (0, 2), (0, 1, 2)])
def test_a_mirror_of_other_classes_is_refused(mirrored: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="does not name each of the 2 classes once"):
        Predictor(Sides(), mirrored=mirrored)


def test_a_mirrored_look_at_a_padded_image_stays_aligned() -> None:
    """Width 30 is padded to 32: mirrored, the padding lies on the other side."""
    image = np.zeros((8, 30, 3), np.uint8)
    image[:, 14:] = 255
    label = Predictor(Brightness(), spec=PredictorSpec(flip=True)).predict(image).label
    assert label[0, :12].tolist() == [0] * 12
    assert label[0, 18:].tolist() == [K - 1] * 12


def test_the_short_side_is_resized_and_labels_come_at_the_images_size() -> None:
    model = Brightness()
    prediction = Predictor(model, spec=PredictorSpec(short_side=20)).predict(make_image(50, 100))
    assert model.shapes == [(20, 40)]
    assert prediction.label.shape == (50, 100)


def test_a_fixed_size_ignores_the_aspect_ratio() -> None:
    model = Brightness()
    prediction = Predictor(model, spec=PredictorSpec(size=(16, 16))).predict(make_image(50, 100))
    assert model.shapes == [(16, 16)]
    assert prediction.label.shape == (50, 100)


def test_every_scale_is_looked_at_and_averaged() -> None:
    model, image = Brightness(), np.full((24, 40, 3), 128, np.uint8)
    scaled = Predictor(model, spec=PredictorSpec(scales=(0.5, 1.0, 2.0))).predict(image)
    assert model.shapes == [(12, 20), (24, 40), (48, 80)]
    once = Predictor(model).predict(image)
    assert np.array_equal(scaled.label, once.label)
    np.testing.assert_allclose(scaled.confidence, once.confidence, atol=1e-6)


class Shades(Brightness):
    """Scores of a pixel depend on that pixel only."""

    def __init__(self) -> None:
        super().__init__()
        self.output_stride = 1

    def forward(self, images: Tensor) -> SemanticOutput:
        self.shapes.append(tuple(images.shape[-2:]))
        return SemanticOutput(-(images.float().mean(1, keepdim=True) - self.levels.view(1, K, 1, 1)).abs() / 40)


@pytest.mark.parametrize("average", ["window_logits", "logits", "probabilities"])
@pytest.mark.parametrize("window", [(8, 8), (12, 20), (7, 9), (100, 100)])
def test_windows_of_a_model_that_sees_one_pixel_equal_the_whole_image(
    window: tuple[int, int], average: Literal["window_logits", "logits", "probabilities"]
) -> None:
    image = make_image(41, 53)
    whole = Predictor(Shades()).predict(image)
    slid = Predictor(Shades(), spec=PredictorSpec(window=window, average=average)).predict(image)
    assert np.array_equal(slid.label, whole.label)
    np.testing.assert_allclose(slid.confidence, whole.confidence, atol=1e-6)


@pytest.mark.parametrize(("stride", "num_windows"), [((16, 8), 6), ((16, 16), 4), (None, 5)])
def test_windows_begin_every_stride_and_the_last_ends_with_the_image(
    stride: tuple[int, int] | None, num_windows: int
) -> None:
    model = Brightness()
    Predictor(model, spec=PredictorSpec(window=(16, 16), stride=stride)).predict(make_image(16, 54))
    assert model.shapes == [(16, 16)] * num_windows


def test_confidence_is_the_probability_of_the_label() -> None:
    image = np.full((8, 8, 3), 255, np.uint8)
    prediction = Predictor(Brightness()).predict(image)
    expected = (-(255 - np.linspace(0, 255, K)) / 40).astype(np.float64)
    assert prediction.label.tolist() == np.full((8, 8), K - 1).tolist()
    assert prediction.confidence[0, 0] == pytest.approx(1 / np.exp(expected).sum(), rel=1e-5)


@pytest.mark.parametrize(
    "image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3), np.float32)]
)
def test_anything_but_uint8_rgb_is_refused(image: NDArray[np.uint8]) -> None:
    with pytest.raises(ValueError, match=r"image must be uint8 \(H, W, 3\)"):
        Predictor(Brightness()).predict(image)


@pytest.mark.parametrize(
    "settings",
    [{"short_side": 3, "size": (2, 2)}, {"scales": ()}, {"scales": (0.0,)}, {"window": (0, 4)}, {"memory_gb": 0}],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        PredictorSpec.model_validate(settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stride": (8, 8)}, "stride takes no effect without `window`"),
        ({"window": (8, 8), "stride": (8, 9)}, r"stride \(8, 9\) leaves pixels out between windows of \(8, 8\)"),
        ({"average": "logits"}, "average = 'logits' takes no effect without `window`, `flip` or several scales"),
        ({"average": "logits", "hierarchical": True, "scales": (0.5, 1)}, "average = 'logits' takes no effect"),
    ],
)
def test_settings_of_windows_and_means_that_take_no_effect_are_refused(
    settings: dict[str, object], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        PredictorSpec.model_validate(settings)
