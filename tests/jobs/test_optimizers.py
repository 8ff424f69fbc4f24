"""Optimizers and parameter groups."""

from __future__ import annotations

import pytest
from torch import nn

from jobs.training.optimizers import build_optimizer, parameter_groups
from jobs.training.schedules import set_lr
from seg_models.recipes.recipe import OptimizerSpec
from tests.jobs.tiny_training import TinySpec


def test_the_backbone_learns_at_its_own_rate_and_norms_may_go_without_decay() -> None:
    model = TinySpec(norm=True).build(3)
    spec = OptimizerSpec(lr=0.1, weight_decay=0.01, backbone_lr_factor=0.1, decay_norms_and_biases=False)
    optimizer = build_optimizer(model, spec)
    set_lr(optimizer, 0.5)
    found = {
        name: (group["lr"], group["weight_decay"])
        for name, parameter in model.named_parameters()
        for group in optimizer.param_groups
        if any(parameter is other for other in group["params"])
    }
    assert found == {
        "backbone.weight": (pytest.approx(0.005), 0.01),
        "backbone.bias": (pytest.approx(0.005), 0.0),
        "norm.weight": (pytest.approx(0.05), 0.0),
        "norm.bias": (pytest.approx(0.05), 0.0),
        "head.weight": (pytest.approx(0.05), 0.01),
        "head.bias": (pytest.approx(0.05), 0.0),
    }


def test_a_backbone_rate_without_a_backbone_is_refused() -> None:
    with pytest.raises(ValueError, match=r"backbone_lr_factor = 0\.1 takes no effect"):
        parameter_groups(nn.Linear(2, 2), OptimizerSpec(backbone_lr_factor=0.1))


def test_the_backbone_decays_by_its_own_share() -> None:
    spec = OptimizerSpec(weight_decay=0.01, backbone_decay_factor=0.002)
    groups = parameter_groups(TinySpec(norm=True).build(3), spec)
    assert [group["weight_decay"] for group in groups] == pytest.approx([0.01, 2e-5])
    with pytest.raises(ValueError, match=r"backbone_decay_factor = 0\.002 takes no effect"):
        parameter_groups(nn.Linear(2, 2), spec)


def test_adamw_takes_its_momentum_as_first_beta() -> None:
    optimizer = build_optimizer(nn.Linear(2, 2), OptimizerSpec(kind="adamw", momentum=0.8))
    assert optimizer.param_groups[0]["betas"] == (0.8, 0.999)


def test_the_head_learns_and_decays_at_its_own_share() -> None:
    spec = OptimizerSpec(lr=0.01, weight_decay=2e-5, head_lr_factor=10.0, head_decay_factor=500.0)
    groups = parameter_groups(TinySpec(norm=True).build(3), spec)
    assert [group["base_lr"] for group in groups] == pytest.approx([0.1, 0.01])
    assert [group["weight_decay"] for group in groups] == pytest.approx([0.01, 2e-5])


@pytest.mark.parametrize("key", ["head_lr_factor", "head_decay_factor"])
def test_a_factor_for_a_head_that_does_not_exist_is_refused(key: str) -> None:
    model = nn.ModuleDict({"backbone": nn.Linear(2, 2)})
    with pytest.raises(ValueError, match=rf"{key} = 3\.0 takes no effect: ModuleDict has no parameters outside"):
        parameter_groups(model, OptimizerSpec(**{key: 3.0}))
