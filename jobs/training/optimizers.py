"""Optimizers, their parameter groups, and the learning rate as a function of the step alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.parameter import Parameter
from torch.optim import SGD, AdamW, Optimizer

from seg_models.recipes.recipe import OptimizerSpec, ScheduleSpec

BACKBONE = "backbone."


def build_optimizer(model: nn.Module, spec: OptimizerSpec) -> Optimizer:
    """The optimizer over the trainable parameters of a model; the backbone may learn at another rate.

    Every group carries `base_lr`, the rate that the schedule multiplies.
    """
    groups = parameter_groups(model, spec)
    if spec.kind == "adamw":
        return AdamW(groups, lr=spec.lr, betas=(spec.momentum, 0.999), weight_decay=spec.weight_decay)
    return SGD(groups, lr=spec.lr, momentum=spec.momentum, weight_decay=spec.weight_decay)


def parameter_groups(model: nn.Module, spec: OptimizerSpec) -> list[dict[str, Any]]:
    """Groups by (backbone, decayed), in a fixed order, without empty ones.

    Raises:
        ValueError: a factor for the backbone is set but the model has no parameters under `backbone.`.
    """
    plain = set() if spec.decay_norms_and_biases else _norms_and_biases(model)
    groups: dict[tuple[bool, bool], list[Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            key = (f".{BACKBONE}" in f".{name}", name not in plain)  # also of a network inside another
            groups.setdefault(key, []).append(parameter)
    factors = {name: getattr(spec, name) for name in ("backbone_lr_factor", "backbone_decay_factor")}
    changed = [name for name, factor in factors.items() if factor != 1.0]
    if changed and not any(backbone for backbone, _ in groups):
        raise ValueError(
            f"optimizer.{changed[0]} = {factors[changed[0]]} takes no effect: "
            f"{type(model).__name__} has no parameters under `backbone`"
        )
    return [_group(groups[key], backbone=key[0], decayed=key[1], spec=spec) for key in sorted(groups)]


def _group(parameters: list[Parameter], *, backbone: bool, decayed: bool, spec: OptimizerSpec) -> dict[str, Any]:
    lr = spec.lr * (spec.backbone_lr_factor if backbone else 1.0)
    decay = spec.weight_decay * (spec.backbone_decay_factor if backbone else 1.0)
    return {
        "params": parameters,
        "lr": lr,
        "base_lr": lr,
        "weight_decay": decay if decayed else 0.0,
    }


def _norms_and_biases(model: nn.Module) -> set[str]:
    """Names of biases and of parameters of normalisation layers (all have at most one dimension)."""
    return {name for name, parameter in model.named_parameters() if parameter.ndim <= 1}


def lr_factor(step: int, *, spec: ScheduleSpec, steps: int) -> float:
    """What the base learning rate is multiplied with at a step (0-based).

    poly: (1 - step / steps) ** power (Liu et al., ParseNet, 2015). During warm-up the result grows linearly from
    `warmup_factor` times the schedule to the schedule itself.
    """
    factor = (1 - step / steps) ** spec.power if spec.kind == "poly" else 1.0
    if step < spec.warmup_steps:
        factor *= spec.warmup_factor + (1 - spec.warmup_factor) * step / spec.warmup_steps
    return factor


def set_lr(optimizer: Optimizer, factor: float) -> float:
    """Give every group `factor` times its base rate and return the largest rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
    return float(max(group["lr"] for group in optimizer.param_groups))


def clip_gradients(model: nn.Module, spec: OptimizerSpec) -> None:
    """Scale the gradients down to the largest norm the settings allow."""
    if spec.clip_grad_norm is not None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), spec.clip_grad_norm)
