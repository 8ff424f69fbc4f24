"""Attention over all positions that never holds a weight for every pair of them.

The map of 97×97 cells has 88 million pairs: 354 MB of weights per image in float32, and twice as much again for their
gradients. Here the energies are made for a block of queries, turned into weights, multiplied with the values and
dropped; what is kept is one number per query, the logarithm of its sum of exponentials, from which the backward pass
makes the weights anew. It goes over blocks of keys, so that the gradients of keys and values are written once and
only the narrow gradient of the queries is added up.

Maps stay as convolutions leave them, channels first: every product is of matrices that lie in memory as they are.
torch's own attention holds all pairs where tokens are transposed, and where values are wider than keys.

Shapes: N batch, D channels of keys, C channels of values, q queries, p keys, r of either in a block.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from seg_models.parts.resample import rows_per_strip, strips

CPU_BLOCK_ELEMENTS = 1 << 21
"""Weights of a block on a CPU: wide enough that matrix products, which take nine tenths of the time, run well."""
EXPORT_BLOCKS = 16
"""Most blocks of an exported program, which holds the operations of every one."""


def position_attention(queries: Tensor, keys: Tensor, values: Tensor, *, max_elements: int | None = None) -> Tensor:
    """For every query the mean of all values, weighted by softmax over the keys of query · key, unscaled.

    out_i = Σ_j softmax_j(q_i · k_j) v_j (DANet, equations 1 and 2). Energies and softmax are in float32 at least, also
    under autocast; weights meet the values in the values' own type.

    Args:
        queries: (N, D, q).
        keys: (N, D, p).
        values: (N, C, p).
        max_elements: most weights of an image held at once; default by device.

    Returns:
        (N, C, q) in the values' type.

    Raises:
        ValueError: shapes that do not belong together.
    """
    if not (queries.dim() == keys.dim() == values.dim() == 3) or not (
        queries.shape[:2] == keys.shape[:2] and keys.shape[::2] == values.shape[::2]
    ):
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in (queries, keys, values))
        raise ValueError(f"queries must be (N, D, q), keys (N, D, p) and values (N, C, p), found {shapes}")
    with without_autocast(queries.device):
        if torch.compiler.is_exporting():  # a program holds plain operations
            return _attend(queries, keys, values, max_elements)[0]
        attended: Tensor = _PositionAttention.apply(  # type: ignore[no-untyped-call]
            queries, keys, values, max_elements
        )
    return attended


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """A context in which tensors keep their types; an empty one where nothing would change them."""
    kind = device.type
    if torch.amp.autocast_mode.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.autocast(kind, enabled=False)
    return nullcontext()


def energy_type(tensor: Tensor) -> torch.dtype:
    """The type of energies and their softmax: float32, or float64 for float64."""
    return torch.promote_types(tensor.dtype, torch.float32)


class _PositionAttention(torch.autograd.Function):
    """Keeps inputs, output and one number per query; makes the weights anew in the backward pass."""

    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys: Tensor, values: Tensor, max_elements: int | None) -> Tensor:
        attended, log_sums = _attend(queries, keys, values, max_elements)
        ctx.save_for_backward(queries, keys, values, attended, log_sums)
        ctx.max_elements = max_elements
        return attended

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_attended: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        block = _block_length(saved[0].shape[2], device=grad_attended.device, max_elements=ctx.max_elements)
        grad = grad_attended.to(saved[2].dtype).contiguous()  # an expanded one would be copied for every block
        with without_autocast(grad.device):
            images = [_image_gradients(*image, block=block) for image in zip(*saved, grad, strict=True)]
        return (*(torch.stack(gradients) for gradients in zip(*images, strict=True)), None)


def _attend(queries: Tensor, keys: Tensor, values: Tensor, max_elements: int | None) -> tuple[Tensor, Tensor]:
    """Attended values (N, C, q) and the log-sum-exp (N, q) of the energies of every query."""
    block = _block_length(keys.shape[2], device=queries.device, max_elements=max_elements)
    images = [_attend_image(*image, block=block) for image in zip(queries, keys, values, strict=True)]
    attended, log_sums = zip(*images, strict=True)
    return torch.stack(attended), torch.stack(log_sums)


def _attend_image(queries: Tensor, keys: Tensor, values: Tensor, *, block: int) -> tuple[Tensor, Tensor]:
    """(D, q), (D, p), (C, p) to (C, q) and (q,), `block` queries at a time."""
    wide = energy_type(queries)
    keys = keys.to(wide)
    attended, log_sums = [], []
    energy_room, weight_room = (_room(block, queries.shape[1], keys) for _ in range(2))
    for some in strips(queries.shape[1], rows=block):
        near = queries[:, some].to(wide).t()
        energies = torch.mm(near, keys, out=_part(energy_room, near))  # (r, p)
        weights = torch.softmax(energies, dim=1, out=_part(weight_room, near))
        attended.append(values @ weights.to(values.dtype).t())
        # The largest weight is exp(largest energy - log-sum-exp), and at least 1/p: its logarithm is safe.
        log_sums.append(energies.amax(dim=1) - weights.amax(dim=1).log())
    return torch.cat(attended, dim=1), torch.cat(log_sums)


def _image_gradients(
    queries: Tensor, keys: Tensor, values: Tensor, attended: Tensor, log_sums: Tensor, grad: Tensor, *, block: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries (D, q), keys (D, p) and values (C, p), `block` keys at a time.

    With weights W and slopes S = W ∘ (vᵀ·grad − Σ_c grad ∘ attended), transposed to (r, q) of a block:
    d values = grad·Wᵀ, d keys = q·Sᵀ, d queries = Σ over blocks of k·S.

    Args:
        attended: (C, q) output.
        log_sums: (q,) log-sum-exp of the energies.
        grad: (C, q) gradient of the output.
        block: r.
    """
    wide = energy_type(queries)
    wide_queries, wide_keys = queries.to(wide), keys.to(wide)
    mean_slopes = (grad.to(wide) * attended.to(wide)).sum(dim=0)
    grad_queries = torch.zeros_like(wide_queries)
    grad_keys, grad_values = torch.empty_like(keys), torch.empty_like(values)
    weight_room, slope_room = (_room(block, keys.shape[1], others) for others in (wide_queries, grad))
    for some in strips(keys.shape[1], rows=block):
        near = wide_keys[:, some].t()
        weights = torch.mm(near, wide_queries, out=_part(weight_room, near)).sub_(log_sums).exp_()
        grad_values[:, some] = grad @ weights.to(grad.dtype).t()
        slopes = torch.mm(values[:, some].t(), grad, out=_part(slope_room, near))
        slopes = slopes.to(wide).sub_(mean_slopes).mul_(weights)
        grad_keys[:, some] = wide_queries @ slopes.t()
        grad_queries.addmm_(near.t(), slopes)
    return grad_queries.to(queries.dtype), grad_keys, grad_values


def _room(block: int, num: int, others: Tensor) -> Tensor | None:
    """Memory for what every block makes anew against all of `others`, so that it takes no fresh pages.

    None, for results of their own, in an exported program.
    """
    return None if torch.compiler.is_exporting() else others.new_empty(min(block, num), others.shape[1])


def _part(room: Tensor | None, near: Tensor) -> Tensor | None:
    """As many rows of the room as `near` has."""
    return None if room is None else room[: near.shape[0]]


def _block_length(others: int, *, device: torch.device, max_elements: int | None) -> int:
    """Positions of a block whose weights for all `others` stay under the device's limit; at least one."""
    if max_elements is None and device.type == "cpu":
        max_elements = CPU_BLOCK_ELEMENTS
    length = rows_per_strip(1, others, device=device, max_elements=max_elements)
    return max(length, -(-others // EXPORT_BLOCKS)) if torch.compiler.is_exporting() else length
