"""Runs a TFLite graph that was written out as a list of operations (JSON) beside its weights.

Only what the DeepLab graphs of the real data need. Layout here is (N, C, H, W); the source's is (N, H, W, C).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from seg_models.outputs import SegModel, SemanticOutput, SemanticTarget
from seg_models.spec import ModelSpec

RELU, RELU6 = 1, 3  # TFLite's numbers of the activations


class GraphSpec(ModelSpec):
    """The operations in order, and the shapes of the weights they name."""

    arch: Literal["benchmarks.real_teachers.tflite_graph:GraphSpec"] = "benchmarks.real_teachers.tflite_graph:GraphSpec"
    input: int
    """Id of the input tensor."""
    size: tuple[int, int]
    """Height and width of the input; no other is possible."""
    ops: tuple[dict[str, Any], ...]
    shapes: dict[str, tuple[int, ...]]

    def build(self, num_classes: int) -> Graph:
        return Graph(num_classes, spec=self)


class Graph(SegModel):
    """Executes the operations; the scores are what the graph's last one, ARG_MAX, would look at."""

    class_dependent: ClassVar[tuple[str, ...]] = ()

    def __init__(self, num_classes: int, *, spec: GraphSpec) -> None:
        super().__init__()
        self.num_classes, self.spec = num_classes, spec
        layers: dict[str, dict[str, nn.Parameter]] = {}
        for key, shape in spec.shapes.items():
            name, part = key.split(".")
            layers.setdefault(name, {})[part] = nn.Parameter(torch.zeros(shape))
        self.layers = nn.ModuleDict({name: nn.ParameterDict(parts) for name, parts in layers.items()})

    def forward(self, images: Tensor) -> SemanticOutput:
        if tuple(images.shape[-2:]) != self.spec.size:
            raise ValueError(f"this graph takes {self.spec.size} pixels, found {tuple(images.shape[-2:])}")
        tensors = {self.spec.input: images.float() / 127.5 - 1}
        result = tensors[self.spec.input]
        for op in self.spec.ops:
            if op["op"] == "ARG_MAX":
                break
            result = self._run(op, [tensors[number] for number in op["inp"]])
            tensors[op["out"][0]] = result
        return SemanticOutput(result[:, : self.num_classes])

    def _run(self, op: Mapping[str, Any], inputs: list[Tensor]) -> Tensor:
        found = _activate(self._compute(op, inputs), op.get("act", 0))
        return found.clamp(*op["clip"]) if "clip" in op else found

    def _compute(self, op: Mapping[str, Any], inputs: list[Tensor]) -> Tensor:
        x = inputs[0]
        match op["op"]:
            case "CONV_2D" | "DEPTHWISE_CONV_2D":
                layer = self.get_submodule(f"layers.{op['w']}")
                groups = x.shape[1] if op["op"] == "DEPTHWISE_CONV_2D" else 1
                return _convolve(x, layer.weight, layer.bias, op, groups=groups)
            case "ADD":
                return x + inputs[1]
            case "AVERAGE_POOL_2D":
                return functional.avg_pool2d(x, op["k"], stride=op["stride"])
            case "RESIZE_BILINEAR":
                return _resize(x, op)
            case "CONCATENATION":
                return torch.cat(inputs, 1)
            case "TILE":
                return x.repeat(op["rep"][0], op["rep"][3], *op["rep"][1:3])
            case "QUANTIZE":
                return x
        raise ValueError(f"operation {op['op']} is not known here")

    def loss(self, output: SemanticOutput, target: SemanticTarget) -> dict[str, Tensor]:
        return {"ce": functional.cross_entropy(output.logits, target.labels, ignore_index=target.void)}


def _activate(x: Tensor, number: int) -> Tensor:
    if number == RELU:
        return x.relu()
    return x.clamp(0, 6) if number == RELU6 else x


def _convolve(x: Tensor, weight: Any, bias: Any, op: Mapping[str, Any], *, groups: int) -> Tensor:
    """`same` padding as TensorFlow counts it: the odd pixel goes to the bottom and right."""
    if op["pad"] == "same":
        sides = []
        for axis in (3, 2):  # the last axis first, as functional.pad wants it
            step, dilation = op["stride"][axis - 2], op["dil"][axis - 2]
            reach = (weight.shape[axis] - 1) * dilation + 1
            missing = max((-(-x.shape[axis] // step) - 1) * step + reach - x.shape[axis], 0)
            sides += [missing // 2, missing - missing // 2]
        x = functional.pad(x, sides)
    return functional.conv2d(x, weight, bias, stride=op["stride"], dilation=op["dil"], groups=groups)


def _resize(x: Tensor, op: Mapping[str, Any]) -> Tensor:
    """Bilinear: corners on corners, or TensorFlow's first way (output i looks at i · in / out)."""
    if op["half"]:
        raise ValueError("RESIZE_BILINEAR with half_pixel_centers is not known here")
    rows, columns = (_weights(n, out, align=op["align"]) for n, out in zip(x.shape[-2:], op["size"], strict=True))
    return torch.einsum("Hh,nchw,Ww->ncHW", rows, x, columns)


def _weights(num_in: int, num_out: int, *, align: bool) -> Tensor:
    """(num_out, num_in) weights along one side."""
    ratio = (num_in - 1) / max(num_out - 1, 1) if align else num_in / num_out
    places = (torch.arange(num_out) * ratio).clamp(max=num_in - 1)
    low = places.long()
    high = (low + 1).clamp(max=num_in - 1)
    share = (places - low)[:, None]
    one = torch.eye(num_in)
    return one[low] * (1 - share) + one[high] * share
