"""The memory of a forward pass, known before it runs.

The pass is gone through with FakeTensors, which have shapes and no values: nothing is computed and next to nothing is
allocated. Equal networks and shapes give equal figures, whatever else the machine does, so that what is derived from
them (how many windows go through together) is the same everywhere.

Shapes: N images of H W pixels, K classes, h w cells.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Forward = Callable[[nn.Module, Tensor], Tensor]
"""A network and images (N, 3, H, W) to scores (N, K, h, w)."""


_CONVOLUTIONS = (torch.ops.aten.convolution.default, torch.ops.aten.conv2d.default)


@dataclass(frozen=True)
class PassMemory:
    """What a forward pass takes beside the weights."""

    peak_bytes: int
    """At most at any time, input and output among them."""
    scores_shape: tuple[int, ...]
    """(N, K, h, w) of the output."""


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that operations make inside `with` and that are still held, and their peak.

    Memory that a kernel takes for itself is not seen, but for that of convolutions on a CPU (see `_scratch_bytes`).
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now_bytes = 0
        self.peak_bytes = 0
        self._held: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self.hold(tensor)
        if func in _CONVOLUTIONS and result.device.type == "cpu":
            scratch = _scratch_bytes(args[0], args[1], result)
            self.peak_bytes = max(self.peak_bytes, self.now_bytes + scratch)
        return result

    def hold(self, tensor: Tensor) -> None:
        """Count the memory of a tensor until it is freed; views of one memory count once."""
        storage = tensor.untyped_storage()
        key, num_bytes = storage._cdata, storage.nbytes()
        if key in self._held:
            return
        self._held.add(key)
        self.now_bytes += num_bytes
        self.peak_bytes = max(self.peak_bytes, self.now_bytes)
        weakref.finalize(storage, self._forget, key, num_bytes)

    def _forget(self, key: int, num_bytes: int) -> None:
        self._held.discard(key)
        self.now_bytes -= num_bytes


def _scratch_bytes(images: Tensor, weight: Tensor, result: Tensor) -> int:
    """What oneDNN takes on a CPU while it convolves (measured, torch 2.11).

    Two reordered copies of the weights; input and output too where they are not channels-last.
    """
    in_place = images.is_contiguous(memory_format=torch.channels_last)
    return 2 * weight.nbytes + (0 if in_place else images.nbytes + result.nbytes)


def foresee(
    model: nn.Module, forward: Forward, *, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> PassMemory:
    """What a forward pass will take.

    Args:
        model: in eval mode; it is left as it is.
        forward: what is done with a network like it and the images.
        shape: of the images, (N, 3, H, W).
        dtype: of the images.
        device: whose kernels are foreseen.

    Raises:
        ValueError: the network asks for the value of a tensor on its way, which is not known ahead.
    """
    with torch.inference_mode(False), torch.no_grad(), torch.autocast(device.type, enabled=False):
        try:
            return _foresee(model, forward, shape=shape, dtype=dtype, device=device)
        except RuntimeError as error:  # what FakeTensors raise for all they cannot do
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            raise ValueError(f"the memory of {type(model).__name__} cannot be foreseen ({reason})") from error


def _foresee(
    model: nn.Module, forward: Forward, *, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> PassMemory:
    with FakeTensorMode() as mode:
        state = (*model.parameters(), *model.buffers())
        like = copy.deepcopy(model, {id(tensor): mode.from_tensor(tensor) for tensor in state})
        images = torch.empty(shape, dtype=dtype, device=device, memory_format=torch.channels_last)
        with LiveBytes() as live:
            live.hold(images)
            scores = forward(like, images)
            return PassMemory(live.peak_bytes, tuple(scores.shape))
