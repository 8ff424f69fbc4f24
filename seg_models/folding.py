"""Fold batch norm into the convolution before it: the same function in eval mode, with one pass less over memory.

A pair is folded where the network's graph shows that the convolution's output goes into this batch norm and nowhere
else. Networks that torch.fx cannot trace, and modules that are called more than once, stay as they are.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from typing import Any, TypeGuard

from timm.layers import Conv2dSame
from timm.models import get_notrace_functions, get_notrace_modules
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

_NORM = nn.modules.batchnorm._BatchNorm


class _LeafTracer(fx.Tracer):
    """Traces through containers and keeps what computes: torch's own modules, convolutions and batch norms.

    Modules and functions that timm marks as untraceable stay whole.
    """

    def __init__(self) -> None:
        super().__init__(autowrap_functions=tuple(get_notrace_functions()))
        self._whole = (nn.Conv2d, _NORM, *get_notrace_modules())

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, self._whole) or super().is_leaf_module(m, module_qualified_name)


def trace(network: nn.Module) -> fx.Graph | None:
    """The graph of module calls, or None where torch.fx cannot follow the network (data-dependent control flow)."""
    try:
        return _LeafTracer().trace(network)
    except Exception:  # whatever the network's own code raises on proxies
        return None


def fold_batch_norm(network: nn.Module) -> tuple[nn.Module, int]:
    """A copy of a network in eval mode with its batch norms folded where that is legal, and how many were.

    Args:
        network: in eval mode; batch norms without running statistics stay.
    """
    folded = copy.deepcopy(network)
    graph = trace(folded)
    if graph is None:
        return folded, 0
    pairs = list(_pairs(graph, folded))
    for conv_path, norm_path in pairs:
        _fold(folded, conv_path, norm_path)
    return folded, len(pairs)


def _pairs(graph: fx.Graph, network: nn.Module) -> Iterator[tuple[str, str]]:
    """Paths of every convolution and the batch norm that alone takes its output."""
    modules = dict(network.named_modules())
    calls = Counter(str(node.target) for node in graph.nodes if node.op == "call_module")
    for node in graph.nodes:
        source = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(source, fx.Node) or source.op != "call_module" or len(source.users) != 1:
            continue
        conv, norm = str(source.target), str(node.target)
        once = calls[conv] == calls[norm] == 1
        if once and _is_plain_convolution(modules[conv]) and _is_frozen_norm(modules[norm]):
            yield conv, norm


def _is_plain_convolution(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether a module does nothing but convolve with its own weight: subclasses may compute theirs first."""
    hooked = module._forward_hooks or module._forward_pre_hooks
    return type(module) in (nn.Conv2d, Conv2dSame) and not hooked


def _is_frozen_norm(module: nn.Module) -> bool:
    return isinstance(module, _NORM) and not module.training and module.running_var is not None


def _fold(network: nn.Module, conv_path: str, norm_path: str) -> None:
    conv, norm = network.get_submodule(conv_path), network.get_submodule(norm_path)
    assert isinstance(conv, nn.Conv2d), "pairs are of this kind"
    assert isinstance(norm, _NORM), "pairs are of this kind"
    weight, bias = fuse_conv_bn_weights(
        conv.weight.double(),
        _double(conv.bias),
        _double(norm.running_mean),
        _double(norm.running_var),
        norm.eps,
        _double(norm.weight),
        _double(norm.bias),
    )
    kind = conv.weight.dtype
    conv.weight = nn.Parameter(weight.detach().to(kind), requires_grad=False)
    conv.bias = nn.Parameter(bias.detach().to(kind), requires_grad=False)
    network.set_submodule(norm_path, _after(norm))


def _double(values: Tensor | None) -> Any:
    """Folding in float64 rounds once, at the end."""
    return None if values is None else values.detach().double()


def _after(norm: nn.Module) -> nn.Module:
    """What a batch norm does beside normalising: timm's hold an activation."""
    parts = [part for name in ("drop", "act") if isinstance(part := getattr(norm, name, None), nn.Module)]
    kept = [part for part in parts if not isinstance(part, nn.Identity)]
    return kept[0] if len(kept) == 1 else nn.Sequential(*kept)


def find_stem(network: nn.Module) -> nn.Conv2d | None:
    """The convolution that alone takes the network's input, or None where there is no such thing."""
    graph = trace(network)
    if graph is None:
        return None
    (source, *others) = [node for node in graph.nodes if node.op == "placeholder"]
    readers = list(source.users)
    if len(readers) != 1 or readers[0].op != "call_module" or any(node.users for node in others):
        return None
    calls = [node for node in graph.nodes if node.op == "call_module" and node.target == readers[0].target]
    stem = network.get_submodule(str(readers[0].target))
    return stem if _is_plain_convolution(stem) and len(calls) == 1 else None
