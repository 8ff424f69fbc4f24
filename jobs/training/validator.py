"""Validations beside the training: a thread of the driver has published weights evaluated in a Ray task of its own.

One validation is under way at a time. Of weights that wait the newest are taken and the others are passed over, so a
validation that takes longer than the steps between two never falls behind. Nothing here stops the training, not even
an error: it is told.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import ray
from ray.exceptions import RayError

from jobs.outbox import first_line
from jobs.specs import ValidationSplit
from jobs.tracked_run import Run, now_ms
from jobs.training.plan import Metric
from jobs.training.publish import BEST_FOLDER, copy_published, is_published
from jobs.training.validation import (
    Row,
    best_row,
    copy_folder,
    merge_rows,
    points_of_row,
    read_rows,
    waiting_steps,
    write_rows,
)
from pipelines import storage
from pipelines.evaluation import plan_evaluation, run_evaluation
from pipelines.shards import ComputeSpec, run_here

LOOK_EVERY_S = 1.0
FIGURES = ("miou", "fwiou", "pixel_accuracy", "mean_accuracy", "evaluated", "skipped")


def validate_weights(checkpoint: str, data: ValidationSplit, compute: ComputeSpec) -> dict[str, float]:
    """Evaluate published weights in this process.

    Raises:
        ValueError: the data or the weights cannot be read.
    """
    work = plan_evaluation(
        checkpoint, dataset=data.dataset, labels=data.labels, split=data.split, predictor=data.predictor
    )
    result = run_evaluation(work, compute=compute, num_pictures=0, num_worst=0, run=run_here).as_dict()
    return {key: result[key] for key in FIGURES}


class Validator:
    """The validations of one run, from the driver's side."""

    def __init__(
        self,
        run: str,
        *,
        data: ValidationSplit,
        metric: Metric,
        keep_best: bool,
        compute: ComputeSpec,
        tracked: Run,
        saved: list[Row],
        say: Callable[[str], None],
    ) -> None:
        """
        Args:
            saved: the validations that the newest checkpoint knows of.
        """
        self._run, self._data, self._metric, self._keep_best = run, data, metric, keep_best
        self._compute, self._tracked, self._say = compute, tracked, say
        self.rows = merge_rows(read_rows(run), saved)
        has_best = keep_best and is_published(run, BEST_FOLDER)
        self._gone = set() if has_best else {row["step"] for row in self.rows}
        self._failed: set[int] = set()
        self._told_to_wait = False
        self._closing = threading.Event()
        self._deadline = float("inf")
        self._thread = threading.Thread(target=self._work, name="validation", daemon=True)

    def __enter__(self) -> Self:
        if self._keep_best and self._gone:
            self._say(
                f"{self._run}: no weights are left of the validations so far; {BEST_FOLDER}/ holds those of the best "
                "from here on"
            )
        self._tracked.log_curve([points_of_row(row) for row in self.rows])  # what an earlier driver could not send
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.finish(timeout_s=0.0)

    def finish(self, *, timeout_s: float) -> None:
        """Let the validations that wait be done, for so many seconds; those that are not done then are left out."""
        self._deadline = min(self._deadline, time.monotonic() + timeout_s)
        self._closing.set()
        self._thread.join()

    def add(self, row: Row, *, source: str) -> None:
        """Take up a validation of the weights in `<run>/<source>/`; they are kept where they are the best so far."""
        rows = merge_rows(self.rows, [row])
        best = self._best_kept(rows)
        if self._keep_best and best is not None and best["step"] == row["step"]:
            copy_published(self._run, source=source, target=BEST_FOLDER)
        self.rows = rows
        write_rows(self._run, rows, metric=self._metric)

    def best_kept(self) -> Row | None:
        """The validation whose weights lie in `<run>/best/`, where they are kept."""
        return self._best_kept(self.rows)

    def _best_kept(self, rows: list[Row]) -> Row | None:
        return best_row([row for row in rows if row["step"] not in self._gone], self._metric)

    def _work(self) -> None:
        left: list[int] = []
        is_over, trouble = False, ""
        while time.monotonic() <= self._deadline and not is_over:
            is_closing = self._closing.is_set()  # before looking: weights may come until then
            try:
                left, trouble = self._turn(is_closing=is_closing), ""
                is_over = is_closing and not left
            except Exception as error:  # of Ray or the store: without this thread nothing would be validated any more
                if first_line(error) != trouble:
                    trouble = first_line(error)
                    self._say(f"validation: {trouble}; looking again")
                time.sleep(LOOK_EVERY_S)
        for step in left:
            self._say(f"validation of step {step} left out: the time for it is over (validate_timeout_s)")

    def _turn(self, *, is_closing: bool) -> list[int]:
        """Validate the newest weights that wait, or wait for some; what still waits."""
        steps = self._waiting()
        if steps and self._has_room():
            self._pass_over(steps[:-1])
            self._validate(steps[-1])
            return self._waiting()
        if not is_closing:
            self._closing.wait(LOOK_EVERY_S)
        elif steps:
            time.sleep(LOOK_EVERY_S)
        return steps

    def _waiting(self) -> list[int]:
        """Steps whose weights wait; what is left of those that are done goes."""
        done = {row["step"] for row in self.rows}
        found = waiting_steps(self._run)
        for step in done & set(found):
            storage.delete(storage.join(self._run, copy_folder(step)))
        return [step for step in found if step not in done | self._failed]

    def _has_room(self) -> bool:
        """Whether the cluster can start a validation now; that one has to wait is said once."""
        name, needed = ("GPU", self._compute.gpus) if self._compute.gpus > 0 else ("CPU", self._compute.cpus)
        has_room = bool(ray.available_resources().get(name, 0.0) >= needed)
        if not has_room and not self._told_to_wait:
            self._say(f"validation waits for {needed:g} {name} to be free; the training goes on")
        self._told_to_wait = not has_room
        return has_room

    def _pass_over(self, steps: list[int]) -> None:
        for step in steps:
            self._say(f"validation of step {step} passed over: there are newer weights")
            storage.delete(storage.join(self._run, copy_folder(step)))

    def _validate(self, step: int) -> None:
        begin = time.monotonic()
        try:
            figures = self._evaluate(storage.join(self._run, copy_folder(step)))
            if figures is None:
                return
            row: Row = {"step": step, "time_ms": now_ms(), "seconds": time.monotonic() - begin, **figures}
            self.add(row, source=copy_folder(step))
            storage.delete(storage.join(self._run, copy_folder(step)))
        except (RayError, ValueError, OSError) as error:
            self._failed.add(step)
            self._say(f"validation of step {step} failed: {_cause(error)}; the training goes on")
            return
        self._say(self._text(row))
        self._tracked.log_curve([points_of_row(row)])

    def _evaluate(self, checkpoint: str) -> dict[str, float] | None:
        """The figures; None where the time is over."""
        compute = self._compute
        resources = {"num_gpus": compute.gpus} if compute.gpus > 0 else {"num_cpus": compute.cpus}
        task: Any = ray.remote(**resources)(validate_weights)
        future = task.remote(checkpoint, self._data, compute)
        while time.monotonic() <= self._deadline:
            if ray.wait([future], timeout=LOOK_EVERY_S)[0]:
                figures: dict[str, float] = ray.get(future)
                return figures
        ray.cancel(future, force=True)
        return None

    def _text(self, row: Row) -> str:
        best = best_row(self.rows, self._metric)
        assert best is not None or row[self._metric] != row[self._metric]
        compared = "" if best is None else "the best so far" if best is row else f"best at step {best['step']}"
        return (
            f"validation of step {row['step']}: mIoU {row['miou']:.4f}, pixel accuracy {row['pixel_accuracy']:.4f} "
            f"({compared}), {row['seconds']:.1f} s beside the training"
        )


def _cause(error: Exception) -> str:
    cause = getattr(error, "cause", None)
    return first_line(cause if isinstance(cause, Exception) else error)
