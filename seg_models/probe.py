"""Measure in which form a classifier is explained fastest on this machine."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from seg_models.explain import SmoothGradSpec, explain_images
from seg_models.numerics import Numerics
from seg_models.weights.classifiers import Classifier, ClassifierSpec

REPEATS = 2
CHOICES: tuple[tuple[str, tuple[Any, ...]], ...] = (
    ("dtype", ("bfloat16",)),
    ("channels_last", (False,)),
    ("stem_once", (True,)),
)
"""Settings tried one after the other, each beside the best so far."""
GAIN = 0.9
"""A change has to save a tenth: timings are noisy, and lower precision costs a little."""
CUDA_CHUNKS = (32, 64, 128, 256)


def fastest_numerics(
    network: nn.Module, spec: ClassifierSpec, *, device: str, start: Numerics | None = None
) -> Numerics:
    """The numerics under which a pass of this network takes least time, of a greedy search.

    Args:
        network: trained or not, in float32 on the CPU; left as it is.
        device: where it will run; `cpu` is timed in CPU seconds.
        start: where the search begins; its chunk is kept on a CPU.
    """
    best = start or Numerics()
    least = _seconds(network, spec, best, device=device)
    for key, value in _steps(device):
        tried = best.model_copy(update={key: value})
        needed = _seconds(network, spec, tried, device=device)
        if needed < GAIN * least:
            best, least = tried, needed
    return best


def _steps(device: str) -> Iterator[tuple[str, Any]]:
    for key, values in CHOICES:
        yield from ((key, value) for value in values)
    if device != "cpu":
        yield from (("chunk", chunk) for chunk in CUDA_CHUNKS)


def _seconds(network: nn.Module, spec: ClassifierSpec, numerics: Numerics, *, device: str) -> float:
    """Least time of a pass in a full chunk; infinite where the memory does not reach."""
    classifier = Classifier(network, spec, numerics=numerics).to(device)
    images = torch.randn(1, 3, spec.size, spec.size, device=device)
    noise = torch.randn(1, numerics.chunk, 3, spec.size, spec.size, device=device)
    explainer = SmoothGradSpec(samples=numerics.chunk)
    least = float("inf")
    for _ in range(REPEATS + 1):  # the first warms up
        begin = _now(device)
        try:
            explain_images(classifier, images, targets=(0,), explainer=explainer, noise=noise, chunk=numerics.chunk)
        except torch.OutOfMemoryError:
            return float("inf")
        least = min(least, _now(device) - begin)
    return least / numerics.chunk


def _now(device: str) -> float:
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()
