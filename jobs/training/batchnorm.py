"""Batch norm over all workers, on CPU and GPU.

torch's SyncBatchNorm refuses CPU tensors, so on a CPU we bring our own. Workers exchange count, mean and squared
deviations by all-gather and combine them in rank order (Chan, Golub and LeVeque 1979), so the result depends neither
on the order of arrival nor on the number of ranks of the reduction tree.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d, convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def synchronise_batch_norm(model: nn.Module, device: torch.device) -> nn.Module:
    """Replace every batch norm layer by one that takes its statistics over all workers; names and values stay."""
    if device.type == "cuda":
        return cast(nn.Module, convert_sync_batchnorm(model))
    return _replace(model)


def _replace(module: nn.Module) -> nn.Module:
    if isinstance(module, _BatchNorm):
        return _shared(module)
    for name, child in module.named_children():
        module.add_module(name, _replace(child))
    return module


def _shared(layer: _BatchNorm) -> nn.Module:
    shared = SharedBatchNorm(
        layer.num_features,
        eps=layer.eps,
        momentum=layer.momentum,
        affine=layer.affine,
        track_running_stats=layer.track_running_stats,
    )
    shared.load_state_dict(layer.state_dict())
    for name, parameter in layer.named_parameters():
        shared.get_parameter(name).requires_grad_(parameter.requires_grad)
    if isinstance(layer, BatchNormAct2d):  # timm's layer applies dropout and activation as well
        shared.drop, shared.act = layer.drop, layer.act
    return shared.train(layer.training)


class SharedBatchNorm(_BatchNorm):
    """Batch norm whose training statistics are those of the whole batch over all workers.

    Takes (N, C, ...) tensors; N and the trailing sizes may differ between workers.
    """

    def __init__(self, num_features: int, **settings: Any) -> None:
        super().__init__(num_features, **settings)
        self.drop: nn.Module = nn.Identity()
        self.act: nn.Module = nn.Identity()

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"batch norm needs (N, C, ...) input, found {tuple(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        """Normalise `input` (N, C, ...), then apply dropout and activation where the replaced layer had them."""
        self._check_input_dim(input)
        if self.training or not self.track_running_stats:
            normalised = self._normalise_jointly(input)
        else:
            normalised = super().forward(input)
        activated: Tensor = self.act(self.drop(normalised))
        return activated

    def _normalise_jointly(self, input: Tensor) -> Tensor:
        count, mean, deviations = joint_moments(input.detach())
        if count <= 1:
            raise ValueError(f"batch norm needs more than one value per channel over all workers, found {count:.0f}")
        if self.training and self.track_running_stats:
            self._update(count, mean, deviations)
        variance = deviations / count
        normalise: Callable[..., Tensor] = _Normalise.apply
        return normalise(input, self.weight, self.bias, mean, variance, count, self.eps)

    @torch.no_grad()
    def _update(self, count: float, mean: Tensor, deviations: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        momentum = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
        self.running_var.lerp_((deviations / (count - 1)).to(self.running_var.dtype), momentum)


def joint_moments(input: Tensor) -> tuple[float, Tensor, Tensor]:
    """Count, mean (C,) and summed squared deviations (C,) per channel of (N, C, ...) inputs over all workers."""
    rows = _full(_per_channel(input))
    mean = rows.mean(dim=1)
    deviations = (rows - mean[:, None]).square().sum(dim=1)
    local = torch.cat([mean.new_tensor([rows.shape[1]]), mean, deviations]).double()
    total, channels = 0.0, len(mean)
    for part in _gather(local):
        number, part_mean, part_deviations = float(part[0]), part[1 : channels + 1], part[channels + 1 :]
        if total == 0.0:
            total, mean, deviations = number, part_mean, part_deviations
            continue
        delta = part_mean - mean
        deviations = deviations + part_deviations + delta.square() * (total * number / (total + number))
        mean = mean + delta * (number / (total + number))
        total += number
    return total, mean.to(rows.dtype), deviations.to(rows.dtype)


class _Normalise(torch.autograd.Function):
    """y = (x - mean) / sqrt(variance + eps) * weight + bias, with mean and variance functions of all workers' x.

    Gradient of the input (Ioffe and Szegedy 2015, section 3): weight / std * (dy - mean(dy) - x̂ mean(dy x̂)), both
    means over the values of all workers. The gradients of weight and bias stay local: DDP reduces them.
    """

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        variance: Tensor,
        count: float,
        eps: float,
    ) -> Tensor:
        shape = (1, -1, *([1] * (input.dim() - 2)))
        scale = torch.rsqrt(variance + eps)
        unit = (_full(input) - mean.view(shape)) * scale.view(shape)
        ctx.save_for_backward(unit, weight, scale)
        ctx.count, ctx.shape, ctx.has_bias = count, shape, bias is not None
        output = unit if weight is None else unit * _full(weight).view(shape)
        output = output if bias is None else output + _full(bias).view(shape)
        return output.to(input.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        unit, weight, scale = ctx.saved_tensors
        grad = _full(grads[0])
        bias_grad = _per_channel(grad).sum(dim=1)
        weight_grad = _per_channel(grad * unit).sum(dim=1)
        local = torch.stack([bias_grad, weight_grad])
        mean_grad, mean_product = (_ordered_sum(local) / ctx.count).unbind()
        input_grad = grad - mean_grad.view(ctx.shape) - unit * mean_product.view(ctx.shape)
        factor = scale if weight is None else scale * _full(weight)
        return (
            (input_grad * factor.view(ctx.shape)).to(grads[0].dtype),
            None if weight is None else weight_grad.to(weight.dtype),
            bias_grad if ctx.has_bias else None,
            None,
            None,
            None,
            None,
        )


def _full(values: Tensor) -> Tensor:
    """At least float32."""
    return values if values.dtype == torch.float64 else values.float()


def _per_channel(values: Tensor) -> Tensor:
    """(N, C, ...) as (C, all others)."""
    return values.transpose(0, 1).reshape(values.shape[1], -1)


def _gather(values: Tensor) -> list[Tensor]:
    if not dist.is_initialized():
        return [values]
    parts = [torch.empty_like(values) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, values.contiguous())
    return parts


def _ordered_sum(values: Tensor) -> Tensor:
    """The sum over all workers, added in rank order."""
    parts = _gather(values)
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total
