"""Training runs for tests that interfere with them: a job, its undisturbed twin, drivers, and a table of recoveries."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jobs.training.groups import read_groups
from jobs.training.plan import TrainPlan
from jobs.training.points import read_points
from jobs.training.publish import MODEL_FOLDER, copy_weights, publish
from pipelines.samples import Part, build_index
from seg_models.recipes.recipe import OptimizerSpec, Recipe
from tests.jobs.ranks import run_ranks
from tests.jobs.tiny_training import CPU, TinySpec, plan_of, tiny_recipe

ROOT = Path(__file__).resolve().parents[2]
STEPS = 60
"""Of a run that is interfered with several times."""
EVERY = 5
"""Steps between checkpoints."""
SLACK = 2
"""Steps done while the newest checkpoint is still being written."""
PAUSE_S = 0.15
"""How long a step rests while the brake is on, in the runs that are interfered with."""


def recipe_of(*, steps: int, brake: Path, **changes: Any) -> Recipe:
    """A recipe in which everything that could go wrong at a resume takes part.

    Args:
        brake: steps last a while until this file, which is made here, is taken away.
    """
    brake.touch()
    model = TinySpec(norm=True, dropout=0.3, width=33, pause_s=PAUSE_S, pause_while=str(brake))
    settings: dict[str, Any] = {"model": model, "optimizer": OptimizerSpec(lr=0.05, momentum=0.9)}
    return tiny_recipe(**(settings | {"steps": steps, "global_batch": 6, "lanes": 12} | changes))


def job_of(dataset: str, output: Path, recipe: Recipe, **changes: Any) -> dict[str, Any]:
    """The job file of a run called `tiny`."""
    settings: dict[str, Any] = {
        "name": "tiny",
        "recipe": recipe.model_dump(mode="json"),
        "data": [{"dataset": dataset}],
        "output": str(output),
        "workers": 2,
        "device": "cpu",
        "threads": 1,
        "checkpoint_every": EVERY,
        "log_every": 1,
        "max_failures": 8,
        "report": False,
        "tracking": {"enabled": False},
    }
    return settings | changes


def undisturbed(dataset: str, run: Path, recipe: Recipe, *, world: int) -> bytes:
    """The final weights of the same run, which nobody interferes with; without Ray, and without rests."""
    plan = plan_of(build_index([Part(dataset=dataset)]), run, recipe, checkpoint_every=EVERY, log_every=1)
    run_ranks(_train_and_publish, world, plan)
    return weights_of(run)


def _train_and_publish(rank: int, world: int, plan: TrainPlan) -> None:
    from jobs.training.loop import train
    from jobs.training.plan import Worker

    with _no_rest():
        model, figures = train(plan, Worker(rank=rank, world=world, device=CPU))
    if rank == 0:
        publish(plan, copy_weights(model, step=figures["steps"]), folder=MODEL_FOLDER, workers=world)


class _no_rest:
    """Makes sleep return at once, in a process of its own."""

    def __enter__(self) -> None:
        self._sleep, time.sleep = time.sleep, lambda seconds: None

    def __exit__(self, *_: object) -> None:
        time.sleep = self._sleep


def weights_of(run: Path) -> bytes:
    """The bytes of the published weights."""
    return (run / MODEL_FOLDER / "model.safetensors").read_bytes()


def last_step(run: Path) -> int:
    """The last step that a run has recorded."""
    return max((int(point["step"]) for point in read_points(str(run))), default=0)


def wait_for(happened: Callable[[], bool], *, what: str, alive: Callable[[], bool], seconds: float = 240.0) -> None:
    """Wait until something has happened to a run that is alive."""
    deadline = time.monotonic() + seconds
    while not happened():
        assert alive(), f"the run ended before {what}"
        assert time.monotonic() < deadline, f"{what}: not within {seconds:g} s"
        time.sleep(0.01)


@dataclass
class Driver:
    """`segray train` as a process of its own; what it prints goes beside the job file."""

    process: subprocess.Popen[bytes]
    log: Path

    def is_alive(self) -> bool:
        """Whether it still runs."""
        return self.process.poll() is None

    def finish(self) -> str:
        """Wait for a good end; what was printed."""
        code = self.process.wait(timeout=400)
        printed = self.log.read_text()
        assert code == 0, printed[-3000:]
        return printed


def start_driver(job: Mapping[str, Any], file: Path, *, environment: Mapping[str, str]) -> Driver:
    """Start `segray train` on a job."""
    file.write_text(json.dumps(job))
    log = file.with_suffix(".log")
    with log.open("ab") as out:
        command = [sys.executable, "-m", "jobs", "train", str(file)]
        settings = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
        process = subprocess.Popen(
            command, stdout=out, stderr=out, cwd=ROOT, env=settings, preexec_fn=_listen_to_interrupts
        )
        return Driver(process, log)


def _listen_to_interrupts() -> None:
    """Tests that run in the background are deaf to Ctrl-C, and so would be what they start."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@dataclass
class Recoveries:
    """What became of a run after each fault, as a table."""

    run: Path
    rows: list[tuple[str, int, int, float]] = field(default_factory=list)

    def after(self, fault: str, cause: Callable[[], object], *, alive: Callable[[], bool]) -> None:
        """Cause a fault, and wait until a group of workers has gone on."""
        groups, begin = len(read_groups(str(self.run))), time.time()
        cause()
        wait_for(lambda: len(read_groups(str(self.run))) > groups, what=f"a group after {fault}", alive=alive)
        group = read_groups(str(self.run))[groups]
        reached = max(point["step"] for point in read_points(str(self.run)) if point["time_ms"] <= group["time_ms"])
        self.rows.append((fault, reached, int(group["from_step"]), group["time_ms"] / 1000 - begin))

    def redone(self) -> list[int]:
        """Steps that were done a second time after each fault."""
        return [max(0, step - resumed) for _, step, resumed, _ in self.rows]

    def table(self) -> str:
        """What became of the run, a line for each fault."""
        lines = ["fault                          at step  from step  redone  recovered in"]
        for (fault, step, resumed, seconds), redone in zip(self.rows, self.redone(), strict=True):
            lines.append(f"{fault:<30} {step:>7} {resumed:>10} {redone:>7} {seconds:>10.1f} s")
        return "\n".join(lines)


def pid_of(run: Path, rank: int) -> int:
    """The process of a rank of the present group."""
    return int(read_groups(str(run))[-1]["workers"][rank]["pid"])
