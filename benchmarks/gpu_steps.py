"""The step that PSSL repeats a billion times, in every form worth trying on a device, and what each costs.

A step is one chunk: N noisy copies of 3 x h x w in, the sum over N of the gradient of one logit out.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.networks import fast_form
from seg_models.numerics import Numerics

TARGET = 5
Step = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Form:
    """How a network is run."""

    dtype: str
    """float32 or bfloat16."""
    channels_last: bool
    execution: str = "eager"
    """eager, graph (a captured CUDA graph) or compile (torch.compile)."""

    @property
    def numerics(self) -> Numerics:
        """The same as settings of a classifier."""
        return Numerics.model_validate({"dtype": self.dtype, "channels_last": self.channels_last})

    def __str__(self) -> str:
        return f"{self.dtype} {'NHWC' if self.channels_last else 'NCHW'} {self.execution}"


@dataclass(frozen=True)
class Timed:
    """A form of one network at one chunk size."""

    form: Form
    chunk: int
    ms: float
    """Of one step."""

    @property
    def ms_per_pass(self) -> float:
        """Of one noisy copy."""
        return self.ms / self.chunk


EAGER = tuple(Form(dtype, last) for dtype in ("bfloat16", "float32") for last in (True, False))


def time_forms(
    network: nn.Module, forms: tuple[Form, ...], *, chunks: tuple[int, ...], size: int, device: str, backend: str
) -> list[Timed]:
    """Milliseconds of every form at every chunk size; a form that runs out of memory ends its row.

    Args:
        backend: of torch.compile.
    """
    found = []
    for form in forms:
        model = fast_form(network, numerics=form.numerics).to(device)
        for chunk in chunks:
            points = torch.randn(chunk, 3, size, size, device=device)
            try:
                step = make_step(model, form, points, backend=backend)
                found.append(Timed(form, chunk, median_ms(partial(step, points), device)))
            except torch.OutOfMemoryError:
                break
    return found


def make_step(model: nn.Module, form: Form, points: Tensor, *, backend: str) -> Step:
    """The step in its form; `points` says the shape that a graph is captured for."""
    if form.execution == "graph":
        return captured(model, points)
    if form.execution == "compile":
        model.compile(backend=backend)
    return partial(summed_gradient, model)


def summed_gradient(model: nn.Module, points: Tensor) -> Tensor:
    """Sum over the N points of the gradient of one logit, (3, h, w) float32."""
    points = points.detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(model(points)[:, TARGET].sum(), points)
    return gradient.float().sum(dim=0)


def captured(model: nn.Module, points: Tensor) -> Step:
    """The step as one CUDA graph: launched once, however many kernels it has."""
    held = points.clone()
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):  # libraries choose and allocate before the capture
        for _ in range(3):
            summed_gradient(model, held)
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = summed_gradient(model, held)

    def replay(points: Tensor) -> Tensor:
        held.copy_(points)
        graph.replay()
        return result

    return replay


def median_ms(work: Callable[[], object], device: str, *, repeats: int = 5) -> float:
    """Median milliseconds of a call after two warm-ups: CUDA events on a GPU, wall time elsewhere."""
    work()
    work()
    return statistics.median(_cuda_ms(work) if device == "cuda" else _wall_ms(work) for _ in range(repeats))


def _cuda_ms(work: Callable[[], object]) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    work()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))


def _wall_ms(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return 1e3 * (time.perf_counter() - start)


def pass_flop(network: nn.Module, *, size: int) -> float:
    """Floating-point operations of one pass: forward, and as many again for the gradient of the input."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, 3, size, size))
    return 2.0 * float(counter.get_total_flops())


def matmul_tflops(device: str, *, side: int) -> float:
    """The peak of a device in practice: TFLOP/s of a bfloat16 product of two square matrices."""
    left, right = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2.0 * side**3 / (1e9 * median_ms(partial(torch.matmul, left, right), device, repeats=20))
