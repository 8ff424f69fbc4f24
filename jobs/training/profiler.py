"""What a few steps spend their time on, on request, as a trace that Perfetto and chrome://tracing show."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from jobs.training.plan import TrainPlan, Worker
from pipelines import storage


class StepProfiler:
    """Records the steps that the plan names, of the first worker, into `<run>/profile`.

    A run that is stopped among them writes those it did, and the rest in a trace of its own when it goes on.
    """

    def __init__(self, plan: TrainPlan, worker: Worker) -> None:
        self._steps = plan.profile_steps if worker.rank == 0 else None
        self._folder = storage.join(plan.run, "profile")
        self._on_gpu = worker.device.type == "cuda"
        self._profile: profile | None = None
        self._recorded: list[int] = []

    @contextlib.contextmanager
    def step(self, number: int) -> Iterator[None]:
        """The block is step `number`, counted from 1 as in the log."""
        if self._steps is None or not self._steps[0] <= number <= self._steps[1]:
            yield
            return
        if self._profile is None:
            self._profile = self._begin()
        with record_function(f"step {number}"):
            yield
        self._recorded.append(number)
        if number == self._steps[1]:
            self.finish()

    def finish(self) -> None:
        """Write what has been recorded and not written."""
        if self._profile is not None:
            recorder, self._profile = self._profile, None
            self._write(recorder)

    def _begin(self) -> profile:
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self._on_gpu else [])]
        recorder = profile(activities=activities, profile_memory=True, acc_events=True)
        recorder.start()
        return recorder

    def _write(self, recorder: profile) -> None:
        if self._on_gpu:
            torch.cuda.synchronize()
        recorder.stop()
        first, last = self._recorded[0], self._recorded[-1]
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch, f"steps-{first:08d}-{last:08d}.json")
            recorder.export_chrome_trace(str(path))
            storage.write_bytes(storage.join(self._folder, path.name), path.read_bytes())
