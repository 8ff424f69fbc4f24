"""What rank 0 does for the group: it keeps the curve, the checkpoints, and the weights that are to be validated."""

from __future__ import annotations

from collections.abc import Callable

from jobs.outbox import first_line
from jobs.training.checkpoints import (
    TrainState,
    checkpoint_steps,
    prune_checkpoints,
    save_checkpoint,
    sweep_orphans,
)
from jobs.training.notice import Check
from jobs.training.plan import TrainPlan
from jobs.training.points import PointLog
from jobs.training.publish import Weights, is_published, publish
from jobs.training.saving import Saver
from jobs.training.validation import ValidationNews, copy_folder


class Keeper:
    """The curve, the checkpoints and the news of validations of one run; only rank 0 has one."""

    def __init__(self, plan: TrainPlan, state: TrainState | None, say: Callable[[str], None]) -> None:
        self._plan, self._say = plan, say
        for step in sweep_orphans(plan.run):
            say(f"checkpoint of step {step}: was never finished, removed")
        first = 0 if state is None else state.step
        self._damaged = [step for step in checkpoint_steps(plan.run) if step > first]
        self.saver = Saver(say=say, timeout_s=plan.save_timeout_s)
        self.points = _point_log(plan, state)
        self.news = _news(plan, state)

    @property
    def checks(self) -> tuple[Check, ...]:
        """What may end the run early."""
        return () if self.news is None else (self.news.check,)

    def save(
        self, state: TrainState | None, weights: Weights | None, *, ready: Callable[[], None], workers: int
    ) -> None:
        """Write in the background; `ready` waits until the tensors are in host memory.

        Weights that cannot be written cost their validation, not the checkpoint, which is written first.
        """

        def write(is_wanted: Callable[[], bool]) -> None:
            ready()
            if state is not None:
                self.points.flush()
                save_checkpoint(self._plan.run, state, is_wanted=is_wanted)
                self._prune(state.step)
            if weights is not None:
                self._publish(weights, workers)

        step = state.step if state is not None else weights.step if weights is not None else 0
        self.saver.submit(f"checkpoint of step {step}", write)

    def close(self) -> None:
        """Finish what is under way."""
        self.saver.close()
        self.points.close()

    def _prune(self, saved: int) -> None:
        keep = self._plan.keep_checkpoints
        try:
            prune_checkpoints(self._plan.run, saved=saved, keep=keep, damaged=self._damaged)
            self._damaged = []
        except (OSError, ValueError) as error:  # the next save tries again
            self._say(f"older checkpoints were not removed ({first_line(error)})")

    def _publish(self, weights: Weights, workers: int) -> None:
        """Put weights where their validation finds them, unless they have been there before."""
        known = {row["step"] for row in self.news.rows} if self.news else set()
        folder = copy_folder(weights.step)
        try:
            if weights.step not in known and not is_published(self._plan.run, folder):
                publish(self._plan, weights, folder=folder, workers=workers)
        except Exception as error:  # whatever it is, it ends no training that runs well
            self._say(f"validation of step {weights.step} left out: its weights were not written ({first_line(error)})")


def _point_log(plan: TrainPlan, state: TrainState | None) -> PointLog:
    sender = None
    if plan.tracking is not None:
        from jobs.tracking import MetricSender  # only the rank that sends loads MLflow

        sender = MetricSender(plan.tracking.run_id, plan.tracking.uri, output=plan.run)
    step, saved = (0, "") if state is None else (state.step, state.points)
    return PointLog(plan.run, from_step=step, saved=saved, sender=sender)


def _news(plan: TrainPlan, state: TrainState | None) -> ValidationNews | None:
    if plan.validation is None:
        return None
    saved = [] if state is None else state.facts["validations"]
    return ValidationNews(plan.run, metric=plan.validation.metric, patience=plan.validation.patience, saved=saved)
