"""A prediction stays within the memory that was allowed, and says what it would need where it cannot."""

from __future__ import annotations

import re
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from seg_models.models import create_model
from seg_models.outputs import SegModel, SemanticOutput, SemanticTarget
from seg_models.peak_memory import LiveBytes, foresee
from seg_models.predictor import Predictor, PredictorSpec
from tests.largest_tensor import LargestTensor

K = 19
CPU = torch.device("cpu")


class Small(SegModel):
    """A few layers at an eighth of the pixels; remembers what it was given."""

    class_dependent: ClassVar[tuple[str, ...]] = ()
    num_classes = K
    output_stride = 8

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 24, kernel_size=8, stride=8)
        self.head = nn.Conv2d(24, K, kernel_size=1)
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, images: Tensor) -> SemanticOutput:
        self.shapes.append(tuple(images.shape))
        return SemanticOutput(self.head(self.stem(images.float() / 64).relu()))

    def loss(self, output: SemanticOutput, target: SemanticTarget) -> dict[str, Tensor]:
        return {"ce": output.logits.sum()}


class Asking(Small):
    """Decides something by a value that it computed."""

    def forward(self, images: Tensor) -> SemanticOutput:
        return super().forward(images if images.float().mean().item() > 0 else -images)


def make_images(height: int, width: int) -> Tensor:
    coarse = torch.randint(0, 256, (1, 3, 8, 9), generator=torch.Generator().manual_seed(1)).float()
    return functional.interpolate(coarse, size=(height, width)).to(torch.uint8)


@pytest.mark.parametrize(
    "settings",
    [
        {"window": (512, 512), "memory_gb": 0.35},
        pytest.param(
            {"window": (768, 1024), "scales": (0.5, 1.0), "flip": True, "memory_gb": 0.5}, marks=pytest.mark.slow
        ),
        pytest.param({"memory_gb": 0.9, "scales": (0.5, 1.0), "flip": True}, marks=pytest.mark.slow),
    ],
)
def test_2048_by_4096_pixels_stay_under_the_limit(settings: dict[str, object]) -> None:
    spec, model = PredictorSpec.model_validate(settings), Small()
    assert spec.memory_gb is not None
    images = make_images(2048, 4096)
    predictor = Predictor(model, spec=spec)
    with LiveBytes() as live, LargestTensor() as largest:
        live.hold(images)
        predictor.predict_tensors(images)
    assert live.peak_bytes < spec.memory_gb * 1e9
    assert largest.elements < K * 2048 * 4096 / 6
    assert max(number for number, *_ in model.shapes) > (1 if spec.window else 0)


@pytest.mark.slow
def test_scales_that_weigh_each_other_stay_under_the_limit_at_2048_by_4096_pixels() -> None:
    spec = PredictorSpec(hierarchical=True, scales=(0.5, 1.0), window=(512, 1024), memory_gb=0.7)
    model, images = create_model("hmsa_pspnet_efficientnet_lite0", num_classes=K), make_images(2048, 4096)
    with LiveBytes() as live:
        live.hold(images)
        Predictor(model, spec=spec).label_tensors(images)
    assert live.peak_bytes < 0.7e9


def test_more_memory_lets_more_windows_go_together_and_changes_no_label() -> None:
    images, labels, numbers = make_images(256, 1024), [], []
    for memory_gb in (0.1135, 0.1155, 0.3, None):
        model = Small()
        spec = PredictorSpec(window=(128, 128), stride=(128, 64), memory_gb=memory_gb)
        labels.append(Predictor(model, spec=spec).label_tensors(images))
        numbers.append(next(number for number, *_ in model.shapes))
    *limited, unlimited = numbers
    assert sorted(set(limited)) == limited
    assert limited[-1] == 15  # all windows of a row
    assert unlimited == 1
    assert all(torch.equal(one, labels[0]) for one in labels)


def least_that_works(message: str) -> float:
    found = re.search(r"the smallest that works is ([0-9.]+)", message)
    assert found, message
    return float(found[1])


@pytest.mark.parametrize(
    ("settings", "look"),
    [({}, "the whole of it"), ({"window": (300, 200)}, r"one window of 304×200"), ({"flip": True}, "the whole of it")],
)
def test_a_limit_too_small_for_one_look_is_answered_with_the_smallest_that_works(
    settings: dict[str, object], look: str
) -> None:
    image = make_images(640, 800)[0].permute(1, 2, 0).numpy()

    def predict(memory_gb: float) -> None:
        Predictor(Small(), spec=PredictorSpec.model_validate({**settings, "memory_gb": memory_gb})).predict(image)

    with pytest.raises(
        ValueError, match=rf"^predictor.memory_gb = 0.01 is too small .* 640×800 pixels, {look}"
    ) as caught:
        predict(0.01)
    assert "\n" not in str(caught.value)
    least = least_that_works(str(caught.value))
    predict(least)
    with pytest.raises(ValueError, match="too small"):
        predict(least - 0.001)


@pytest.mark.parametrize("num_looks", [1, 3])
@pytest.mark.parametrize("name", ["pspnet_resnet10t_narrow", "hmsa_pspnet_efficientnet_lite0"])
def test_what_is_foreseen_is_what_a_pass_takes(name: str, num_looks: int) -> None:
    model = create_model(name, num_classes=K).eval()
    shape = (num_looks, 3, 96, 128)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    found = foresee(model, lambda network, x: network(x).logits, shape=shape, dtype=torch.uint8, device=CPU)
    images = torch.zeros(shape, dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    with torch.no_grad(), LiveBytes() as live:
        live.hold(images)
        scores = model(images).logits
    assert found.scores_shape == tuple(scores.shape)
    assert found.peak_bytes == live.peak_bytes
    for key, value in model.state_dict().items():  # it is the same network as before
        assert torch.equal(value, before[key])


def test_a_network_that_asks_for_values_is_told_to_go_without_a_limit() -> None:
    image = np.zeros((16, 16, 3), np.uint8)
    Predictor(Asking()).predict(image)
    with pytest.raises(ValueError, match=r"^predictor.memory_gb: the memory of Asking cannot be foreseen"):
        Predictor(Asking(), spec=PredictorSpec(memory_gb=1)).predict(image)


def test_memory_that_is_freed_is_counted_no_more_and_views_count_once() -> None:
    with LiveBytes() as live:
        first = torch.zeros(1000)
        view = first.view(10, 100)
        assert live.now_bytes == 4000
        del first, view
        assert live.now_bytes == 0
        torch.zeros(10)
    assert live.peak_bytes == 4000
