"""Optimizers and their parameter groups."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parameter import Parameter
from torch.optim import SGD, AdamW, Optimizer

from jobs.training.reductions import norm_over_workers
from jobs.training.sharding import local
from seg_models.recipes.recipe import OptimizerSpec

BACKBONE = "backbone."


def build_optimizer(model: nn.Module, spec: OptimizerSpec) -> Optimizer:
    """The optimizer over the trainable parameters of a model; backbone and head may learn at rates of their own.

    Every group carries `base_lr`, the rate that the schedule multiplies.
    """
    groups = parameter_groups(model, spec)
    if spec.kind == "adamw":
        return AdamW(groups, lr=spec.lr, betas=(spec.momentum, 0.999), weight_decay=spec.weight_decay)
    return SGD(groups, lr=spec.lr, momentum=spec.momentum, weight_decay=spec.weight_decay)


def parameter_groups(model: nn.Module, spec: OptimizerSpec) -> list[dict[str, Any]]:
    """Groups by (backbone, decayed), in a fixed order, without empty ones.

    The backbone is what lies under `backbone.`, also of a network inside another; the rest is the head.

    Raises:
        ValueError: a factor is set for a part that the model does not have.
    """
    plain = set() if spec.decay_norms_and_biases else _norms_and_biases(model)
    groups: dict[tuple[bool, bool], list[Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            key = (f".{BACKBONE}" in f".{name}", name not in plain)
            groups.setdefault(key, []).append(parameter)
    parts = {"backbone": True, "head": False}
    for part, backbone in parts.items():
        if not any(key[0] is backbone for key in groups):
            _check_no_factor(model, spec, part)
    return [
        _group(groups[key], part="backbone" if key[0] else "head", decayed=key[1], spec=spec) for key in sorted(groups)
    ]


def _check_no_factor(model: nn.Module, spec: OptimizerSpec, part: str) -> None:
    for key in (f"{part}_lr_factor", f"{part}_decay_factor"):
        if (factor := getattr(spec, key)) != 1.0:
            where = "under `backbone`" if part == "backbone" else "outside of `backbone`"
            raise ValueError(
                f"optimizer.{key} = {factor} takes no effect: {type(model).__name__} has no parameters {where}"
            )


def _group(parameters: list[Parameter], *, part: str, decayed: bool, spec: OptimizerSpec) -> dict[str, Any]:
    lr: float = spec.lr * getattr(spec, f"{part}_lr_factor")
    decay: float = spec.weight_decay * getattr(spec, f"{part}_decay_factor")
    return {
        "params": parameters,
        "lr": lr,
        "base_lr": lr,
        "weight_decay": decay if decayed else 0.0,
    }


def _norms_and_biases(model: nn.Module) -> set[str]:
    """Names of biases and of parameters of normalisation layers (all have at most one dimension)."""
    return {name for name, parameter in model.named_parameters() if parameter.ndim <= 1}


def clip_gradients(model: nn.Module, spec: OptimizerSpec) -> Tensor | None:
    """Scale the gradients down to the largest norm the settings allow; the norm before, None without a limit.

    The norm is that of the gradient over all weights, also where every worker holds a part of them.
    """
    if spec.clip_grad_norm is None:
        return None
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm([local(gradient) for gradient in gradients])
    if any(isinstance(gradient, DTensor) for gradient in gradients):
        norm = norm_over_workers(norm)
    scale = (spec.clip_grad_norm / (norm + 1e-6)).clamp_max(1.0)
    torch._foreach_mul_([local(gradient) for gradient in gradients], scale)
    return norm
