"""Learning rates over a run, against formulas and torch's own schedulers."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, MultiStepLR, PolynomialLR

from jobs.training.schedules import lr_factor, set_lr
from seg_models.recipes import resolve_recipe
from seg_models.recipes.recipe import ScheduleSpec


def factors(steps: int, *, epoch_steps: float = 10.0, **settings: Any) -> list[float]:
    spec = ScheduleSpec(**settings)
    return [lr_factor(step, spec=spec, steps=steps, epoch_steps=epoch_steps) for step in range(steps)]


def rates_of(scheduler: LRScheduler, steps: int) -> list[float]:
    rates = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no optimizer step is taken before that of the scheduler
        for _ in range(steps):
            rates.append(float(scheduler.get_last_lr()[0]))
            scheduler.step()
    return rates


def optimizer_of_rate_one() -> SGD:
    return SGD(nn.Linear(1, 1).parameters(), lr=1.0)


def test_poly_cosine_and_milestones_are_those_of_torch() -> None:
    optimizer = optimizer_of_rate_one()
    poly = PolynomialLR(optimizer, total_iters=50, power=0.9)
    assert factors(50) == pytest.approx(rates_of(poly, 50), rel=1e-9)
    cosine = CosineAnnealingLR(optimizer_of_rate_one(), T_max=50, eta_min=0.05)
    assert factors(50, kind="cosine", min_lr_factor=0.05) == pytest.approx(rates_of(cosine, 50), rel=1e-9)
    steps = MultiStepLR(optimizer_of_rate_one(), milestones=[20, 35], gamma=0.1)
    found = factors(50, kind="milestones", milestones=(20 / 50, 35 / 50))
    assert found == pytest.approx(rates_of(steps, 50), rel=1e-9)
    assert factors(5, kind="constant") == [1.0] * 5


def test_a_floor_is_reached_the_way_mmsegmentation_reaches_it() -> None:
    found = factors(100, power=0.9, min_lr_factor=0.01)
    assert found == pytest.approx([0.01 + 0.99 * (1 - step / 100) ** 0.9 for step in range(100)])
    recipe = resolve_recipe("pspnet_resnet50_cityscapes")
    last = lr_factor(recipe.steps - 1, spec=recipe.schedule, steps=recipe.steps, epoch_steps=372.0)
    assert recipe.optimizer.lr * last == pytest.approx(1e-4, rel=1e-2)


@pytest.mark.parametrize("settings", [{}, {"kind": "cosine"}, {"kind": "milestones", "milestones": (0.35,)}])
def test_per_epoch_the_rate_stays_while_the_data_is_gone_through(settings: dict[str, Any]) -> None:
    by_step = factors(40, epoch_steps=8, **settings)
    by_epoch = factors(40, epoch_steps=8, per="epoch", **settings)
    assert by_epoch == [by_step[step // 8 * 8] for step in range(40)]


def test_an_epoch_need_not_be_a_whole_number_of_steps() -> None:
    found = factors(10, epoch_steps=10 / 4, power=1.0, per="epoch")  # 4 epochs in 10 steps
    assert found == pytest.approx([1, 1, 1, 0.75, 0.75, 0.5, 0.5, 0.5, 0.25, 0.25])


def test_the_schedule_of_hmsa_is_that_of_its_released_code() -> None:
    recipe = resolve_recipe("hmsa_w48_cityscapes")
    epoch_steps = 2975 / recipe.global_batch
    for epoch in (0, 1, 100, 174):
        for step in (math.ceil(epoch * epoch_steps), math.ceil((epoch + 1) * epoch_steps) - 1):
            factor = lr_factor(step, spec=recipe.schedule, steps=recipe.steps, epoch_steps=epoch_steps)
            assert factor == pytest.approx((1 - epoch / 175) ** 2, rel=1e-4, abs=1e-6)


def test_warm_up_grows_linearly_to_the_schedule() -> None:
    found = factors(100, kind="constant", warmup_steps=10, warmup_factor=0.1)
    assert found[:11:5] == pytest.approx([0.1, 0.55, 1.0])
    by_epochs = factors(100, epoch_steps=4, warmup_epochs=2.5, warmup_factor=0.1, kind="constant")
    assert by_epochs == found


def test_every_group_keeps_its_share_of_the_rate() -> None:
    groups = [{"params": [torch.zeros(1)], "lr": lr, "base_lr": lr} for lr in (0.1, 1.0)]
    optimizer = SGD(groups, lr=1.0)
    assert set_lr(optimizer, 0.5) == 0.5
    assert [group["lr"] for group in optimizer.param_groups] == [0.05, 0.5]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "cosine", "power": 0.5}, r"power = 0\.5 takes no effect with kind = 'cosine'"),
        ({"milestones": (0.5,)}, r"milestones = \(0\.5,\) takes no effect with kind = 'poly'"),
        ({"kind": "constant", "min_lr_factor": 0.1}, r"min_lr_factor = 0\.1 takes no effect with kind = 'constant'"),
        ({"kind": "constant", "per": "epoch"}, r"per = 'epoch' takes no effect"),
        ({"kind": "milestones"}, r"needs at least one"),
        ({"kind": "milestones", "milestones": (0.5, 0.4)}, r"must rise between 0 and 1"),
        ({"kind": "milestones", "milestones": (60_000,)}, r"must rise between 0 and 1 \(shares of the run\)"),
        ({"warmup_steps": 3, "warmup_epochs": 1.0}, r"only one can count"),
    ],
)
def test_settings_without_effect_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ScheduleSpec(**settings)
