"""Predicting 2048×4096 pixels with 19 classes by tiles against the published way, which holds scores of every pixel.

    python -m benchmarks.prediction

Windows of 1024×1024 pixels every 683 pixels, the network's scores at an eighth of the pixels. The peer enlarges the
scores of each window, adds them to a map of all classes at full size and counts how often each pixel was seen
(mmsegmentation's `slide_inference`); over scales and mirror images it sums probabilities at full size. Memory is what a
fresh process with one torch thread grows by at most.

`_windows`: the image itself. `_scales`: also at half the size, and mirrored. In both the network is a pooling
and one small convolution, so that the figures are those of everything else. `_network`: the first with PSPNet on
MobileNetV2, ours within `memory_gb = 1`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.measure import Effort, Entries, Measured, command, cpu_pairs
from benchmarks.resident import peak_bytes
from seg_models.models import create_model
from seg_models.outputs import SegModel, SemanticOutput, SemanticTarget
from seg_models.parts.losses import upsampled_cross_entropy
from seg_models.predictor import Predictor, PredictorSpec

NUM_CLASSES = 19
LIMIT_GB = 1.0
Work = Callable[[], Tensor]


class Case(NamedTuple):
    """Sizes and looks; whole numbers, which a command line can hold."""

    height: int = 2048
    width: int = 4096
    window: int = 1024
    scaled: int = 0
    """1: also at half the size, and mirrored."""
    network: int = 0
    """1: a real network."""

    @property
    def stride(self) -> int:
        """Pixels from one window to the next."""
        return round(self.window * 2 / 3)

    @property
    def scales(self) -> tuple[float, ...]:
        """The scales that are averaged."""
        return (0.5, 1.0) if self.scaled else (1.0,)

    @property
    def spec(self) -> PredictorSpec:
        """The settings of ours."""
        return PredictorSpec(
            window=(self.window, self.window),
            stride=(self.stride, self.stride),
            scales=self.scales,
            flip=bool(self.scaled),
            memory_gb=LIMIT_GB if self.network else None,
        )


class Pooled(SegModel):
    """Scores of a cell from the mean colour of its pixels: next to no work and memory."""

    class_dependent: ClassVar[tuple[str, ...]] = ()
    num_classes = NUM_CLASSES
    output_stride = 8

    def __init__(self) -> None:
        super().__init__()
        self.classify = nn.Conv2d(3, NUM_CLASSES, kernel_size=1)

    def forward(self, images: Tensor) -> SemanticOutput:
        """Scores (N, K, h, w) of images (N, 3, H, W)."""
        return SemanticOutput(self.classify(functional.avg_pool2d(images.float(), self.output_stride) / 25))

    def loss(self, output: SemanticOutput, target: SemanticTarget) -> dict[str, Tensor]:
        """Cross-entropy of every pixel."""
        return {"ce": upsampled_cross_entropy(output.logits, target.labels, void=target.void)}


def windows(effort: Effort) -> Entries:
    """Time and memory of sliding windows."""
    sizes = _sizes(Case(), effort)
    return {"prediction_windows_time": _time(sizes, effort), "prediction_windows_memory": _memory(sizes)}


def scales(effort: Effort) -> Entries:
    """Time of sliding windows over scales and mirror images."""
    return {"prediction_scales_time": _time(_sizes(Case(scaled=1), effort), effort)}


def network(effort: Effort) -> Entries:
    """Memory of sliding windows with a real network."""
    return {"prediction_network_memory": _memory(_sizes(Case(network=1), effort))}


def entries(effort: Effort) -> Entries:
    """All of them."""
    return {**windows(effort), **scales(effort), **network(effort)}


def _sizes(case: Case, effort: Effort) -> Case:
    return case._replace(height=48, width=96, window=24) if effort.tiny else case


def _time(case: Case, effort: Effort) -> Measured:
    ours, peer = prepare_ours(*case), prepare_peer(*case)
    note = f"{float((ours() == peer()).float().mean()):.4%} of the labels are equal"
    return cpu_pairs(ours, peer, effort=effort.few, note=note)


def _memory(case: Case) -> Measured:
    ours, peer = (peak_bytes(f"benchmarks.prediction:prepare_{kind}", *case) for kind in ("ours", "peer"))
    return Measured(ours, peer, unit="bytes")


def prepare_ours(*sizes: int) -> Work:
    """A prediction by tiles, to be called any number of times."""
    case = Case(*sizes)
    predictor, image = Predictor(_network(case), spec=case.spec), _image(case)
    return lambda: predictor.label_tensors(image)


def prepare_peer(*sizes: int) -> Work:
    """The published way with the same network and image."""
    case = Case(*sizes)
    model, image = _network(case), _image(case)
    return lambda: published(model, image, case)


def _network(case: Case) -> SegModel:
    torch.manual_seed(0)
    model = create_model("pspnet_mobilenetv2", num_classes=NUM_CLASSES) if case.network else Pooled()
    model.eval()
    with torch.inference_mode():
        model(torch.zeros(1, 3, 64, 64))  # the kernels are loaded
    return model


def _image(case: Case) -> Tensor:
    coarse = torch.randint(
        0, 256, (1, 3, case.height // 16, case.width // 16), generator=torch.Generator().manual_seed(0)
    )
    return functional.interpolate(coarse.to(torch.uint8), size=(case.height, case.width), mode="bilinear")


@torch.inference_mode()
def published(model: SegModel, image: Tensor, case: Case) -> Tensor:
    """Labels (1, H, W) from scores of all pixels."""
    total: Tensor | None = None
    for scale in case.scales:
        size = [round(side * scale) for side in (case.height, case.width)]
        resized = (
            image if scale == 1 else functional.interpolate(image.float(), size=size, mode="bilinear", antialias=True)
        )
        for flip in (False, True) if case.scaled else (False,):
            logits = slide(model, resized.flip(-1) if flip else resized, case)
            logits = logits.flip(-1) if flip else logits
            if scale != 1:
                logits = functional.interpolate(logits, size=image.shape[-2:], mode="bilinear")
            probabilities = logits.softmax(dim=1)
            total = probabilities if total is None else total.add_(probabilities)
    assert total is not None
    return total.argmax(dim=1)


def slide(model: SegModel, image: Tensor, case: Case) -> Tensor:
    """Mean scores (1, K, H, W) of overlapping windows."""
    height, width = image.shape[-2:]
    total, count = torch.zeros(1, NUM_CLASSES, height, width), torch.zeros(height, width)
    for top in _starts(height, case):
        for left in _starts(width, case):
            place = (..., slice(top, top + case.window), slice(left, left + case.window))
            part = image[place].contiguous(memory_format=torch.channels_last)
            total[place] += functional.interpolate(model(part).logits, size=part.shape[-2:], mode="bilinear")
            count[place] += 1
    return total.div_(count)


def _starts(side: int, case: Case) -> list[int]:
    last = max(side - case.window, 0)
    return [min(start, last) for start in range(0, last + case.stride, case.stride)] if last else [0]


if __name__ == "__main__":
    command(__doc__, windows, scales, network)
