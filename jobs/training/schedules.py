"""The learning rate as a function of the step alone."""

from __future__ import annotations

import math

from torch.optim import Optimizer

from seg_models.recipes.recipe import ScheduleSpec


def lr_factor(step: int, *, spec: ScheduleSpec, steps: int, epoch_steps: float) -> float:
    """What the base learning rates are multiplied with at a step (0-based).

    poly: (1 - step / steps) ** power (Liu et al., ParseNet, 2015); cosine: (1 + cos(pi step / steps)) / 2 (Loshchilov
    and Hutter, SGDR, 2017, without restarts); milestones: gamma to the number of milestones passed. With per = "epoch"
    the step is that at which the present epoch began. During warm-up the result grows linearly from `warmup_factor`
    times the schedule to the schedule itself (Goyal et al., 2017).

    Args:
        step: from 0.
        spec: the schedule.
        steps: steps of the whole run.
        epoch_steps: steps in which the data is gone through once; need not be whole.
    """
    factor = _scheduled(step, spec=spec, steps=steps, epoch_steps=epoch_steps)
    warmup = spec.warmup_epochs * epoch_steps if spec.warmup_epochs else spec.warmup_steps
    if step < warmup:
        factor *= spec.warmup_factor + (1 - spec.warmup_factor) * step / warmup
    return factor


def _scheduled(step: int, *, spec: ScheduleSpec, steps: int, epoch_steps: float) -> float:
    """The factor without warm-up."""
    epoch = math.floor(step / epoch_steps + 1e-9)  # an epoch that begins exactly at a step has begun
    share = (step if spec.per == "step" else epoch * epoch_steps) / steps
    if spec.kind == "milestones":
        return float(spec.gamma ** sum(milestone <= share + 1e-9 for milestone in spec.milestones))
    if spec.kind == "constant":
        return 1.0
    falling = max(0.0, 1 - share) ** spec.power if spec.kind == "poly" else (1 + math.cos(math.pi * share)) / 2
    return spec.min_lr_factor + (1 - spec.min_lr_factor) * falling


def set_lr(optimizer: Optimizer, factor: float) -> float:
    """Give every group `factor` times its base rate and return the largest rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
    return float(max(group["lr"] for group in optimizer.param_groups))
