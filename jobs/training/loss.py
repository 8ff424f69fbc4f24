"""The number that a step makes smaller: a network's losses with the weights and the choice of pixels of the recipe."""

from __future__ import annotations

import torch
from torch import Tensor

from jobs.training.plan import TrainPlan, class_weights
from seg_models.outputs import SegModel, SemanticOutput, SemanticTarget
from seg_models.parts.mining import HardPixels
from seg_models.recipes.recipe import LossSpec


class TrainLoss:
    """The loss of a micro-batch of one worker: means over its pixels, or over its hard ones."""

    def __init__(self, plan: TrainPlan, device: torch.device) -> None:
        weights, ohem = class_weights(plan.recipe, plan.label_space), plan.recipe.loss.ohem
        self._void = plan.label_space.void
        self._class_weights = None if weights is None else weights.to(device)
        self._mining = None if ohem is None else HardPixels(**ohem.model_dump())
        self._aux_weight = plan.recipe.loss.aux_weight
        self._about_aux = _about_aux(plan.recipe.loss)

    def __call__(self, model: SegModel, output: SemanticOutput, labels: Tensor) -> Tensor:
        """The weighted sum of the network's losses.

        Raises:
            ValueError: hard pixels were asked for and no loss of the network chooses pixels, or a weight for auxiliary
                losses and it has none.
        """
        target = SemanticTarget(labels, void=self._void, class_weights=self._class_weights, mining=self._mining)
        losses = model.loss(output, target)
        if self._mining is not None and not self._mining.was_used:
            raise ValueError(
                f"recipe.loss.ohem takes no effect: the loss of {type(model).__name__} with these settings has no "
                "cross-entropy of class scores that chooses pixels"
            )
        if self._about_aux and not any(name.startswith("aux") for name in losses):
            raise ValueError(
                f"{self._about_aux} takes no effect: {type(model).__name__} with these settings has no auxiliary "
                f"losses (its losses: {', '.join(losses)})"
            )
        return total_loss(losses, aux_weight=self._aux_weight)


def _about_aux(spec: LossSpec) -> str:
    """A setting that only a network with auxiliary losses follows; empty where there is none."""
    if spec.aux_weight != LossSpec().aux_weight:
        return f"recipe.loss.aux_weight = {spec.aux_weight}"
    return "recipe.loss.ohem.auxiliary = true" if spec.ohem is not None and spec.ohem.auxiliary else ""


def total_loss(losses: dict[str, Tensor], *, aux_weight: float) -> Tensor:
    """The sum of named losses; those whose name starts with `aux` are weighted."""
    return torch.stack([loss * aux_weight if name.startswith("aux") else loss for name, loss in losses.items()]).sum()
