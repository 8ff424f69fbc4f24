"""One optimizer step: forward, loss, backward and update of one worker's share of the global batch."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from jobs.training.model import call, parallel
from jobs.training.optimizers import build_optimizer, clip_gradients, lr_factor, set_lr
from jobs.training.phases import PhaseTimer
from jobs.training.plan import TrainPlan, Worker, class_weights
from pipelines.batches import Batch
from seg_models.outputs import SegModel, SemanticTarget


def autocast_dtype(plan: TrainPlan, device: torch.device) -> torch.dtype | None:
    """bf16, or None for float32 throughout.

    Raises:
        ValueError: bf16 was asked for and the GPU does not have it.
    """
    has_bf16 = device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)
    if plan.precision == "bf16" and not has_bf16:
        raise ValueError(f"precision = 'bf16': {torch.cuda.get_device_name(device)} has no bf16; use 'fp32' or 'auto'")
    wanted = plan.precision == "bf16" or (plan.precision == "auto" and device.type == "cuda" and has_bf16)
    return torch.bfloat16 if wanted else None


class Stepper:
    """A network with everything that a step changes: its weights, the optimizer, and what else goes on with a run.

    `model` is the network itself, `network` the one that talks to other workers. `state_dict`, `model_state` and
    `result` gather what is spread over the workers: every worker calls them, in the same order.
    """

    def __init__(self, plan: TrainPlan, worker: Worker, model: SegModel) -> None:
        self.model = model
        self.network = parallel(model, plan, worker)
        self.lr = 0.0
        self.phases = PhaseTimer(worker.device)
        """Seconds of transfer, forward, backward and update; the loop adds its own phases."""
        self._optimizer = build_optimizer(model, plan.recipe.optimizer)
        self._plan, self._device = plan, worker.device
        self._dtype = autocast_dtype(plan, worker.device)
        weights = class_weights(plan.recipe, plan.label_space)
        self._class_weights = None if weights is None else weights.to(worker.device)
        self._unchecked: deque[tuple[int, tuple[str, ...], Tensor]] = deque()
        self.network.train()

    def step(self, batches: Sequence[Batch]) -> Tensor:
        """Update the network with the micro-batches of a step; their mean loss, still on the device."""
        recipe, step = self._plan.recipe, batches[0].step
        self.lr = set_lr(self._optimizer, lr_factor(step, spec=recipe.schedule, steps=recipe.steps))
        self._optimizer.zero_grad(set_to_none=True)
        losses: list[Tensor] = []
        for batch in batches:
            with contextlib.nullcontext() if batch is batches[-1] else _without_reduction(self.network):
                losses.append(self._backward(batch, share=1 / len(batches)))
        with self.phases.device("update"):
            clip_gradients(self.model, recipe.optimizer)
            self._optimizer.step()
        self.check_losses(before=step)  # one step late, so that a GPU need not stop for it
        return torch.stack(losses).mean()

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs beside the weights: plain values and tensors, which the next step changes."""
        return {"optimizer": self._optimizer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned; the number of workers may be another one."""
        self._optimizer.load_state_dict(state["optimizer"])

    def model_state(self) -> dict[str, Tensor]:
        """Parameters and buffers of the network in training, whole; the next step changes them."""
        return dict(self.model.state_dict())

    def result(self) -> SegModel:
        """The network to evaluate and to publish; training may go on with it, so only look at it."""
        return self.model

    def metrics(self) -> dict[str, float]:
        """Points of the curve beside loss, rate and timing."""
        return {}

    def text(self) -> str:
        """For the line of the log, beside loss, rate and timing; may be empty."""
        return ""

    def check_losses(self, *, before: int) -> None:
        """Look at the losses of the steps before this one.

        Raises:
            ValueError: one is no finite number; names the step and the samples.
        """
        while self._unchecked and self._unchecked[0][0] < before:
            step, ids, loss = self._unchecked.popleft()
            if not bool(torch.isfinite(loss)):
                samples = ", ".join(ids[:8]) + (" …" if len(ids) > 8 else "")
                raise ValueError(
                    f"the loss is {loss.item()} at step {step} (samples {samples}); try a smaller recipe.optimizer.lr, "
                    "recipe.optimizer.clip_grad_norm, or more recipe.schedule.warmup_steps"
                )

    def _backward(self, batch: Batch, *, share: float) -> Tensor:
        with self.phases.device("transfer"):
            images, labels = (_move(tensor, self._device) for tensor in (batch.images, batch.labels))
        with self.phases.device("forward"):
            loss = self._loss(images, labels)
        self._unchecked.append((batch.step, batch.ids, loss.detach()))
        with self.phases.device("backward"):
            (loss * share).backward()
        return loss.detach()

    def _loss(self, images: Tensor, labels: Tensor) -> Tensor:
        with torch.autocast(self._device.type, dtype=self._dtype, enabled=self._dtype is not None):
            output = call(self.network, images)
            target = SemanticTarget(labels, void=self._plan.label_space.void, class_weights=self._class_weights)
            return total_loss(self.model.loss(output, target), aux_weight=self._plan.recipe.loss.aux_weight)


def total_loss(losses: dict[str, Tensor], *, aux_weight: float) -> Tensor:
    """The sum of named losses; those whose name starts with `aux` are weighted."""
    return torch.stack([loss * aux_weight if name.startswith("aux") else loss for name, loss in losses.items()]).sum()


def _without_reduction(network: nn.Module) -> Any:
    """Gradients add up locally; the last micro-batch reduces their sum."""
    no_sync = getattr(network, "no_sync", contextlib.nullcontext)
    return no_sync()


def _move(tensor: Tensor, device: torch.device) -> Tensor:
    if device.type != "cuda":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)
