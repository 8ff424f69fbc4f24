"""The training loop of one worker. Knows nothing of Ray: a process group, if any, is there already.

Every worker runs the same number of steps. The loss of a step is the mean over workers and micro-batches of the loss
each computes on its share of the global batch.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jobs.training.model import fresh_model, place_model, resumed_model
from jobs.training.plan import TrainPlan, Worker, sample_order
from jobs.training.points import PointLog
from jobs.training.progress import StepTimer
from jobs.training.reductions import broadcast_object, gather_objects, mean_over_workers
from jobs.training.resume import (
    TrainState,
    check_identity,
    load_checkpoint,
    newest_checkpoint,
    prune_checkpoints,
    restore_rng,
    rng_state,
    save_checkpoint,
)
from jobs.training.step import Stepper
from pipelines.batch_plan import BatchPlan, BatchStream
from pipelines.batches import open_batches
from seg_models.outputs import SegModel


def train(plan: TrainPlan, worker: Worker) -> tuple[SegModel, dict[str, Any]]:
    """Train from the newest good checkpoint of the run, or from the start, to the recipe's last step.

    Returns:
        The trained network and figures: steps, resumed_from, seconds, images_per_s, workers, transfer, and phases_s
        (seconds by phase since `resumed_from`).

    Raises:
        ValueError: something the user can mend: other settings than the run was started with, an unreadable sample,
            a loss that is not finite.
    """
    configure_torch(plan, worker.device)
    say = _print if worker.rank == 0 else _keep_quiet
    state = _find_state(plan, worker, say)
    trainer = _Trainer(plan, worker, state, say)
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


def _find_state(plan: TrainPlan, worker: Worker, say: Callable[[str], None]) -> TrainState | None:
    """The state to go on from; rank 0 chooses, so that all go on from the same step."""
    uri = broadcast_object(newest_checkpoint(plan.run, log=say) if worker.rank == 0 else None)
    if uri is None:
        return None
    state = load_checkpoint(uri)
    check_identity(plan.run, ours=plan.identity, theirs=state.facts["identity"])
    say(f"going on from step {state.step} ({uri})")
    return state


def _print(text: str) -> None:
    print(text, flush=True)


def _keep_quiet(text: str) -> None:
    pass


class _Trainer:
    """A running training: the stepper, its stream of batches, the log and the checkpoints."""

    def __init__(self, plan: TrainPlan, worker: Worker, state: TrainState | None, say: Callable[[str], None]) -> None:
        self.plan, self.worker, self.recipe, self.say = plan, worker, plan.recipe, say
        self.step = self.first_step = 0 if state is None else state.step
        self.seconds_before = 0.0 if state is None else float(state.facts["seconds"])
        model, self.transfer = self._model(state)
        self.stepper = Stepper(plan, worker, model)
        self._restore(state)
        self.timer = StepTimer(steps=self.recipe.steps, global_batch=self.recipe.global_batch, first_step=self.step)
        self.points = self._points() if worker.rank == 0 else None
        self.stream = self._stream()

    def run(self) -> dict[str, Any]:
        """All steps that are left; figures of the whole run."""
        losses: list[Tensor] = []
        while self.step < self.recipe.steps:
            with self.stepper.phases.host("data_wait"):
                batches = [next(self.stream) for _ in range(self.plan.accumulate)]
            assert all(batch.step == self.step for batch in batches)
            losses.append(self.stepper.step(batches))
            self.step += 1
            if self._is_due(self.plan.log_every):
                self._log(losses)
                losses.clear()
            if self._is_due(self.plan.checkpoint_every):
                with self.stepper.phases.host("checkpoint"):
                    self._save()
        seconds = self._seconds()
        return {
            "steps": self.recipe.steps,
            "resumed_from": self.first_step,
            "seconds": seconds,
            "images_per_s": self.recipe.steps * self.recipe.global_batch / seconds,
            "workers": self.worker.world,
            "transfer": self.transfer,
            "phases_s": self.timer.phases,
        }

    def close(self) -> None:
        """Stop the threads and finish the log."""
        self.stream.close()
        if self.points is not None:
            self.points.close()

    def _is_due(self, every: int) -> bool:
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
        """Optimizer and random state; a worker that the checkpoint does not know gets randomness of its own."""
        if state is not None:
            self.stepper.load_state_dict(state.stepper)
        if state is not None and self.worker.rank < len(state.rng):
            restore_rng(state.rng[self.worker.rank], self.worker.device)
        else:
            _seed(self.recipe.seed, self.worker.rank, self.step)

    def _stream(self) -> BatchStream:
        plan = BatchPlan(
            make_order=partial(sample_order, self.recipe, self.plan.index),
            augment=self.recipe.augment,
            global_batch=self.recipe.global_batch,
            steps=self.recipe.steps,
            start_step=self.first_step,
            accumulate=self.plan.accumulate,
            rank=self.worker.rank,
            world=self.worker.world,
        )
        return open_batches(plan, data_workers=self.plan.data_workers, threads=self.plan.data_threads)

    def _points(self) -> PointLog:
        sender = None
        if self.plan.tracking is not None:
            from jobs.tracking import MetricSender  # only the rank that sends loads MLflow

            sender = MetricSender(self.plan.tracking.run_id, self.plan.tracking.uri)
        return PointLog(self.plan.run, from_step=self.first_step, sender=sender)

    def _log(self, losses: list[Tensor]) -> None:
        """Record and print the mean loss over workers and the steps since the last line."""
        stepper = self.stepper
        lap = self.timer.lap(self.step, phases=stepper.phases.take())  # a GPU has done its steps from here on
        with stepper.phases.host("report"):
            stepper.check_losses(before=self.step)
            loss = float(mean_over_workers(torch.stack(losses).mean()))
            metrics = {"train/loss": loss, "train/lr": stepper.lr, **stepper.metrics(), **lap.metrics()}
            if self.points is not None:
                self.points.log(metrics, step=self.step)
            words = [
                f"step {self.step}/{self.recipe.steps}",
                f"loss {loss:.4f}",
                f"lr {stepper.lr:.2e}",
                stepper.text(),
            ]
            self.say("  ".join(word for word in (*words, lap.text()) if word))

    def _save(self) -> None:
        self.stepper.check_losses(before=self.step)
        state = self._state()
        if self.points is None:
            return
        self.points.flush()
        save_checkpoint(self.plan.run, state)
        prune_checkpoints(self.plan.run, saved=self.step, keep=self.plan.keep_checkpoints)

    def _state(self) -> TrainState:
        """The state after the present step; every worker takes part."""
        facts = {
            "identity": self.plan.identity,
            "world": self.worker.world,
            "lanes": self.recipe.lanes,
            "seconds": self._seconds(),
            "transfer": self.transfer,
        }
        rng = gather_objects(rng_state(self.worker.device))
        return TrainState(self.step, self.stepper.model_state(), self.stepper.state_dict(), rng, facts)


def _seed(*key: int) -> None:
    """Seed every global random generator of this process."""
    seed = int(np.random.SeedSequence([value % 2**64 for value in key]).generate_state(1)[0])
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002 (models may use it)
    random.seed(seed)
