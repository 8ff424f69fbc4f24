"""One optimizer step: forward, loss, backward and update of one worker's share of the global batch."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from jobs.training.averaging import WeightAverage
from jobs.training.loss import TrainLoss
from jobs.training.model import call, is_sharded, parallel, resumed_model
from jobs.training.optimizers import build_optimizer, clip_gradients
from jobs.training.phases import PhaseTimer
from jobs.training.plan import TrainPlan, Worker
from jobs.training.precision import autocast_dtype, gradient_scaler
from jobs.training.profiler import StepProfiler
from jobs.training.schedules import lr_factor, set_lr
from jobs.training.sharding import broadcast_buffers, load_optimizer_state, set_reduction, whole, whole_optimizer_state
from pipelines.batch_plan import Batch
from seg_models.outputs import SegModel


class _Seen(NamedTuple):
    """A micro-batch whose loss has not been looked at."""

    step: int
    ids: tuple[str, ...]
    loss: Tensor
    any_class: Tensor
    """Whether a pixel has a class."""


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
        self._average = None if plan.recipe.ema is None else WeightAverage(model, plan.recipe.ema)
        self._plan, self._worker, self._device = plan, worker, worker.device
        self._is_sharded = is_sharded(plan, worker)
        self._dtype = autocast_dtype(plan, worker.device)
        self._train_loss = TrainLoss(plan, worker.device)
        self._scaler = gradient_scaler(self._dtype, worker.device)
        self._profiler = StepProfiler(plan, worker)
        self._gradient_norm: Tensor | None = None
        self._unchecked: deque[_Seen] = deque()
        self.network.train()

    def step(self, batches: Sequence[Batch]) -> Tensor:
        """Update the network with the micro-batches of a step; their mean loss, still on the device."""
        with self._profiler.step(batches[0].step + 1):
            return self._step(batches)

    def _step(self, batches: Sequence[Batch]) -> Tensor:
        recipe, step = self._plan.recipe, batches[0].step
        factor = lr_factor(step, spec=recipe.schedule, steps=recipe.steps, epoch_steps=self._plan.epoch_steps)
        self.lr = set_lr(self._optimizer, factor)
        self._optimizer.zero_grad(set_to_none=True)
        if self._is_sharded and not recipe.sync_batch_norm:
            broadcast_buffers(self.model)
        losses: list[Tensor] = []
        for batch in batches:
            with self._reduction(on=batch is batches[-1]):
                losses.append(self._backward(batch, share=1 / len(batches)))
        with self.phases.device("update"):
            self._update()
        self.check_losses(before=step)  # one step late, so that a GPU need not stop for it
        return torch.stack(losses).mean()

    def finish(self) -> None:
        """Write what a profiler still holds: no step follows."""
        self._profiler.finish()

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs beside the weights: plain values and whole tensors, which the next step changes."""
        return {
            "optimizer": whole_optimizer_state(self._optimizer),
            "scaler": self._scaler.state_dict(),
            "average": None if self._average is None else self._average.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned; the number of workers and the precision may be others."""
        load_optimizer_state(self._optimizer, state["optimizer"])
        if state["scaler"]:
            self._scaler.load_state_dict(state["scaler"])
        if self._average is not None:
            self._average.load_state_dict(state["average"])

    def model_state(self) -> dict[str, Tensor]:
        """Parameters and buffers of the network in training, whole; the next step changes them."""
        return {name: whole(tensor) for name, tensor in self.model.state_dict().items()}

    def result_state(self) -> dict[str, Tensor]:
        """Parameters and buffers of the network to evaluate and to publish: averaged ones where the recipe asks."""
        return self.model_state() if self._average is None else self._average.tensors()

    def result(self) -> SegModel:
        """The network to evaluate and to publish; training may go on with it, so only look at it."""
        if self._average is None and not self._is_sharded:
            return self.model
        state = self.result_state()
        with torch.random.fork_rng(devices=[]):  # building draws numbers that training must not miss
            return resumed_model(self._plan, state).to(self._device)

    def metrics(self) -> dict[str, float]:
        """Points of the curve beside loss, rate and timing."""
        found = {}
        if self._gradient_norm is not None:
            found["train/gradient_norm"] = float(self._gradient_norm)
        if self._scaler.is_enabled():
            found["train/loss_scale"] = self._scaler.get_scale()
        return found

    def text(self) -> str:
        """For the line of the log, beside loss, rate and timing; may be empty."""
        return f"loss scale {self._scaler.get_scale():g}" if self._scaler.is_enabled() else ""

    def check_losses(self, *, before: int) -> None:
        """Look at the losses of the steps before this one.

        Raises:
            ValueError: one is no finite number; names the step and the samples.
        """
        while self._unchecked and self._unchecked[0].step < before:
            seen = self._unchecked.popleft()
            if not bool(torch.isfinite(seen.loss)):
                samples = ", ".join(seen.ids[:8]) + (" …" if len(seen.ids) > 8 else "")
                raise ValueError(
                    f"the loss is {seen.loss.item()} at step {seen.step} (samples {samples}); {self._remedy(seen)}"
                )

    def _remedy(self, seen: _Seen) -> str:
        """What to do about a loss that is no finite number."""
        if not bool(seen.any_class):
            return "no pixel of theirs has a class, and the loss of this network does not allow for that"
        wider = "precision = 'bf16' or 'fp32', " if self._scaler.is_enabled() else ""
        return (
            f"try {wider}a smaller recipe.optimizer.lr, recipe.optimizer.clip_grad_norm, or more "
            "recipe.schedule.warmup_steps"
        )

    def _update(self) -> None:
        """Change the weights by the gradients that have been added up."""
        self._scaler.unscale_(self._optimizer)
        self._gradient_norm = clip_gradients(self.model, self._plan.recipe.optimizer)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        if self._average is not None:
            self._average.update(self.model)

    @contextlib.contextmanager
    def _reduction(self, *, on: bool) -> Iterator[None]:
        """Without reduction gradients add up locally; the last micro-batch of a step reduces their sum."""
        if self._is_sharded:
            set_reduction(self.model, on=on)
            yield
            return
        with contextlib.nullcontext() if on else _no_sync(self.network):
            yield

    def _backward(self, batch: Batch, *, share: float) -> Tensor:
        with self.phases.device("transfer"):
            images, labels = _move(batch.images, self._device), _move(batch.labels, self._device).long()
            if self._plan.channels_last and self._is_sharded:
                images = images.contiguous(memory_format=torch.channels_last)
        with self.phases.device("forward"):
            loss = self._loss(images, labels)
        any_class = (labels != self._plan.label_space.void).any()
        self._unchecked.append(_Seen(batch.step, batch.ids, loss.detach(), any_class))
        with self.phases.device("backward"):
            self._scaler.scale(loss * share).backward()
        return loss.detach()

    def _loss(self, images: Tensor, labels: Tensor) -> Tensor:
        with torch.autocast(self._device.type, dtype=self._dtype, enabled=self._dtype is not None):
            return self._train_loss(self.model, call(self.network, images), labels)


def _no_sync(network: nn.Module) -> Any:
    no_sync = getattr(network, "no_sync", contextlib.nullcontext)  # one worker has nothing to reduce
    return no_sync()


def _move(tensor: Tensor, device: torch.device) -> Tensor:
    if device.type != "cuda" or tensor.is_cuda:
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)
