"""Training steps of a recipe on one batch, for tests."""

from __future__ import annotations

import torch
from torch import Tensor

from seg_models.outputs import SemanticTarget
from seg_models.recipes.recipe import Recipe


def losses_of_steps(recipe: Recipe, images: Tensor, target: SemanticTarget, *, num_classes: int) -> list[float]:
    """The recipe's loss on one batch before each of three steps of SGD with its rate and momentum."""
    torch.manual_seed(0)
    model = recipe.model.build(num_classes).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=recipe.optimizer.lr, momentum=recipe.optimizer.momentum)
    seen = []
    for _ in range(3):
        losses = model.loss(model(images), target)
        weights = [recipe.loss.aux_weight if name.startswith("aux") else 1.0 for name in losses]
        loss = sum(weight * value for weight, value in zip(weights, losses.values(), strict=True))
        assert isinstance(loss, Tensor)
        seen.append(loss.item())
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    return seen
