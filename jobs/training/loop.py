"""The training loop of one worker. Knows nothing of Ray: a process group, if any, is there already.

Every worker runs the same number of steps. The loss of a step is the mean over workers and micro-batches of the loss
each computes on its share of the global batch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from jobs.training.agreement import Agreement
from jobs.training.checkpoints import TrainState
from jobs.training.feed import feed
from jobs.training.groups import note_group
from jobs.training.keeper import Keeper
from jobs.training.model import fresh_model, place_model, resumed_model
from jobs.training.notice import Check, Notices, Stop, Watch
from jobs.training.plan import TrainPlan, Worker, passes_of, sample_order
from jobs.training.progress import StepTimer
from jobs.training.publish import Weights
from jobs.training.reductions import broadcast_object, gather_objects, mean_over_workers
from jobs.training.resume import find_state
from jobs.training.rng import rng_state, seed_rng, start_rng
from jobs.training.saving import copied, host_copy
from jobs.training.step import Stepper
from pipelines.batch_plan import BatchPlan, BatchStream
from pipelines.batches import data_workers_each, open_batches
from seg_models.outputs import SegModel


def train(
    plan: TrainPlan, worker: Worker, *, notices: Notices | None = None, checks: tuple[Check, ...] = ()
) -> tuple[SegModel, dict[str, Any]]:
    """Train from the newest good checkpoint of the run, or from the start, to the recipe's last step or a notice.

    Args:
        notices: what asks this process to stop before the last step.
        checks: asked twice a second whether there is reason for such a notice.

    Returns:
        The trained network and figures: steps (done), resumed_from, seconds, images_per_s, workers, transfer, phases_s
        (seconds by phase since `resumed_from`), is_saved (whether the last checkpoint was written), stop (why it ended:
        NONE is the last step) and reason.

    Raises:
        ValueError: something the user can mend: other settings than the run was started with, an unreadable sample,
            a loss that is not finite, checkpoints that cannot be written.
    """
    configure_torch(plan, worker.device)
    say = _print if worker.rank == 0 else _keep_quiet
    state = find_state(plan, worker, say=say)
    trainer = _Trainer(plan, worker, state, say, notices=notices or Notices(), checks=checks)
    with contextlib.closing(trainer):
        figures = trainer.run()
        return trainer.stepper.result(), figures


def configure_torch(plan: TrainPlan, device: torch.device) -> None:
    """Threads and determinism of this process.

    CUDA has no deterministic kernel for some layers; there the promise is kept as far as torch can.
    """
    torch.set_num_threads(plan.threads)
    torch.use_deterministic_algorithms(plan.deterministic, warn_only=device.type == "cuda")
    torch.backends.cudnn.benchmark = not plan.deterministic


def _print(text: str) -> None:
    print(text, flush=True)


def _keep_quiet(text: str) -> None:
    pass


class _Trainer:
    """A running training: the stepper, its stream of batches, and on rank 0 what the others leave to it."""

    def __init__(
        self,
        plan: TrainPlan,
        worker: Worker,
        state: TrainState | None,
        say: Callable[[str], None],
        *,
        notices: Notices,
        checks: tuple[Check, ...],
    ) -> None:
        self.plan, self.worker, self.recipe, self.say = plan, worker, plan.recipe, say
        self.step = self.first_step = 0 if state is None else state.step
        self.seconds_before = 0.0 if state is None else float(state.facts["seconds"])
        self.passes = passes_of(plan, worker)
        model, self.transfer = self._model(state)
        self.stepper = Stepper(plan, worker, model)
        self._restore(state)
        self.timer = StepTimer(steps=self.recipe.steps, global_batch=self.recipe.global_batch, first_step=self.step)
        self.keeper = Keeper(plan, state, say) if worker.rank == 0 else None
        note_group(plan.run, worker, from_step=self.step)
        self.notices, self.agreement = notices, Agreement(worker.world)
        self.losses = _pending_losses(state, worker)
        self.stream = self._stream()
        self.watch = Watch(notices, (*checks, *(self.keeper.checks if self.keeper else ())))
        self.stop = Stop(broadcast_object(int(self.watch.ask())))

    def run(self) -> dict[str, Any]:
        """All steps that are left, or those until a notice; figures of the whole run."""
        while self.step < self.recipe.steps and self.stop is Stop.NONE:
            with self.stepper.phases.host("data_wait"):
                batches = [next(self.stream) for _ in range(self.passes)]
            assert all(batch.step == self.step for batch in batches)
            self.losses.append(self.stepper.step(batches))
            self.step += 1
            self.stop = self.agreement.reached(self.notices.stop)
            if self._is_due(self.plan.log_every):
                self._log()
            with self.stepper.phases.host("checkpoint"):
                self._save()
        figures = self._figures()
        self.stepper.finish()  # after the checkpoint: this machine may be about to go
        return figures

    def close(self) -> None:
        """Stop the threads and finish the log."""
        self.stream.close()
        self.watch.close()
        if self.keeper is not None:
            self.keeper.close()

    def _figures(self) -> dict[str, Any]:
        self.agreement.close()
        reasons = gather_objects(self.notices.reason)
        is_saved = self.keeper is None or self.keeper.saver.flush()
        seconds, is_last = self._seconds(), self.step == self.recipe.steps
        return {
            "steps": self.step,
            "resumed_from": self.first_step,
            "seconds": seconds,
            "images_per_s": self.step * self.recipe.global_batch / seconds,
            "workers": self.worker.world,
            "transfer": self.transfer,
            "phases_s": self.timer.phases,
            "is_saved": is_saved,
            "stop": (Stop.NONE if is_last else self.stop).name,
            "reason": "" if is_last else next(filter(None, reasons), ""),
        }

    def _is_due(self, every: int) -> bool:
        """Every so many steps, and after the last one."""
        return self.step % every == 0 or self.step == self.recipe.steps

    def _seconds(self) -> float:
        """Seconds of training behind the present state; work lost with a worker does not count."""
        return self.seconds_before + self.timer.seconds

    def _model(self, state: TrainState | None) -> tuple[SegModel, str | None]:
        if state is not None:
            return place_model(resumed_model(self.plan, state.model), self.plan, self.worker), state.facts["transfer"]
        model, transfer = fresh_model(self.plan, self.worker)
        if transfer is not None:
            self.say(f"weights of {self.plan.init_from}: {transfer}")
        return place_model(model, self.plan, self.worker), transfer

    def _restore(self, state: TrainState | None) -> None:
        """What a step goes on from beside the weights, and the random numbers (see `rng`)."""
        worker, seed = self.worker, self.recipe.seed
        if state is None:
            seed_rng(seed, 0, worker.world, worker.rank)
            return
        self.stepper.load_state_dict(state.stepper)
        start_rng(state.rng, seed=seed, step=state.step, rank=worker.rank, world=worker.world, device=worker.device)

    def _stream(self) -> BatchStream:
        plan = BatchPlan(
            make_order=partial(sample_order, self.recipe, self.plan.index),
            augment=self.recipe.augment,
            global_batch=self.recipe.global_batch,
            steps=self.recipe.steps,
            start_step=self.first_step,
            accumulate=self.passes,
            rank=self.worker.rank,
            world=self.worker.world,
        )
        each = data_workers_each(self.plan.data_workers, lanes=self.recipe.lanes, world=self.worker.world)
        return feed(open_batches(plan, data_workers=each, threads=self.plan.data_threads), self.worker.device)

    def _log(self) -> None:
        """Record and print the mean loss over workers and the steps since the last line."""
        stepper = self.stepper
        lap = self.timer.lap(self.step, phases=stepper.phases.take())  # a GPU has done its steps from here on
        with stepper.phases.host("report"):
            stepper.check_losses(before=self.step)
            loss = float(mean_over_workers(torch.stack(self.losses).mean()))
            self.losses.clear()
            if loss == 0:
                self.say(f"the loss is 0: no pixel of the steps up to {self.step} has a class that is learned from")
            metrics = {"train/loss": loss, "train/lr": stepper.lr, **stepper.metrics(), **lap.metrics()}
            if self.keeper is not None:
                self.keeper.points.log(metrics, step=self.step)
            words = [
                f"step {self.step}/{self.recipe.steps}",
                f"loss {loss:.4f}",
                f"lr {stepper.lr:.2e}",
                stepper.text(),
            ]
            self.say("  ".join(word for word in (*words, lap.text()) if word))

    def _save(self) -> None:
        """Hand over what is due after this step: a checkpoint, weights to be validated. Every worker takes part."""
        is_due = self._is_due(self.plan.checkpoint_every) or self.stop is not Stop.NONE
        is_validated = self._is_validated()
        if self.keeper is not None and (is_due or is_validated):
            self.keeper.saver.flush()  # before the copy: memory holds one
        state = self._state() if is_due else None
        weights = self._weights() if is_validated else None
        if self.keeper is not None and (state is not None or weights is not None):
            self.keeper.save(state, weights, ready=copied(self.worker.device), workers=self.worker.world)

    def _is_validated(self) -> bool:
        """Whether the weights of this step are; the last ones are evaluated after the training."""
        validation = self.plan.validation
        return validation is not None and self.step % validation.every == 0 and self.step < self.recipe.steps

    def _state(self) -> TrainState | None:
        """The state after the present step, for rank 0."""
        self.stepper.check_losses(before=self.step)
        rng = gather_objects(rng_state(self.worker.device))
        losses = gather_objects([float(loss) for loss in self.losses])
        model, stepper = self.stepper.model_state(), self.stepper.state_dict()
        if self.keeper is None:
            return None
        facts = {
            "identity": self.plan.identity,
            "world": self.worker.world,
            "lanes": self.recipe.lanes,
            "seconds": self._seconds(),
            "transfer": self.transfer,
            "losses": losses,
            "validations": self.keeper.news.rows if self.keeper.news else [],
        }
        points = self.keeper.points.text()
        return TrainState(self.step, host_copy(model), host_copy(stepper), rng, facts, points)

    def _weights(self) -> Weights | None:
        """The network to be validated, for rank 0."""
        tensors, parameters = self.stepper.result_state(), self.stepper.model.parameters()
        if self.keeper is None:
            return None
        return Weights(self.step, host_copy(tensors), sum(value.numel() for value in parameters))


def _pending_losses(state: TrainState | None, worker: Worker) -> list[Tensor]:
    """Losses of the steps that the next point of the curve is the mean of; in a group of another size, their means."""
    if state is None:
        return []
    saved = state.facts["losses"]
    if len(saved) == worker.world:
        values = saved[worker.rank]
    else:
        values = [sum(ranks) / len(saved) for ranks in zip(*saved, strict=True)]
    return [torch.tensor(value, device=worker.device) for value in values]
