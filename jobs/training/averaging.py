"""Averaged weights: an exponential moving average of the network, which is evaluated and published in its place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from jobs.training.sharding import local, sharded_like, whole
from seg_models.recipes.recipe import EmaSpec


class WeightAverage:
    """a <- d a + (1 - d) w after every step (Polyak and Juditsky 1992; Tarvainen and Valpola 2017).

    Buffers in floating point (the statistics of batch norms) are averaged like weights or taken as they are; counts
    are taken as they are. Of a sharded network every worker averages its part.
    """

    def __init__(self, model: nn.Module, spec: EmaSpec) -> None:
        self.num_updates = 0
        self._spec = spec
        self._tensors = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        weights = {name for name, _ in model.named_parameters()}
        self._averaged = [
            name
            for name, tensor in self._tensors.items()
            if tensor.is_floating_point() and (name in weights or spec.buffers == "average")
        ]
        self._taken = sorted(set(self._tensors) - set(self._averaged))

    @property
    def decay(self) -> float:
        """d of the next update: (1 + n) / (10 + n) after n updates until the decay asked for is reached.

        Without this warm-up the first weights, which are random, would weigh for 1 / (1 - d) steps (tf.train's
        ExponentialMovingAverage, `num_updates`).
        """
        if not self._spec.warmup:
            return self._spec.decay
        return min(self._spec.decay, (1 + self.num_updates) / (10 + self.num_updates))

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the weights of a network after a step."""
        state = model.state_dict()
        averaged = [local(self._tensors[name]) for name in self._averaged]
        torch._foreach_lerp_(averaged, [local(state[name]) for name in self._averaged], 1 - self.decay)
        for name in self._taken:
            local(self._tensors[name]).copy_(local(state[name]))
        self.num_updates += 1

    def tensors(self) -> dict[str, Tensor]:
        """The averaged network, whole. Every worker takes part; the next update may change the tensors."""
        return {name: whole(tensor) for name, tensor in self._tensors.items()}

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` takes. Every worker takes part."""
        return {"num_updates": self.num_updates, "tensors": self.tensors()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self.num_updates = int(state["num_updates"])
        for name, tensor in self._tensors.items():
            local(tensor).copy_(local(sharded_like(state["tensors"][name], tensor)))
