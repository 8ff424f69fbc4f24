"""A step of our training loop against a plain script with DistributedDataParallel: CPU-seconds of two ranks.

    python -m benchmarks.train_step

Both train the same network on the same batches with the same optimizer and schedule, one thread a rank, gradients over
gloo, without synchronised batch norm (torch's own refuses CPUs); the losses differ by less than a
hundredth, for dropout draws other numbers. Ours is the
whole loop of a worker without its stream of batches, which is measured by `benchmarks.data_path`: timers, schedule,
checks of the losses, log and curve. Neither writes checkpoints while it is measured.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import start_processes
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LambdaLR

from benchmarks.measure import Effort, Entries, command, median_pair
from jobs.training.loop import train
from jobs.training.plan import TrainPlan, Worker, run_identity
from pipelines.batch_plan import Batch
from pipelines.labels import LabelSpace
from pipelines.samples import Part, PartSummary, SampleIndex, ShardRows
from pipelines.schema import ShardKey
from seg_models.outputs import SemanticTarget
from seg_models.recipes.recipe import AugmentSpec, OptimizerSpec, Recipe, ScheduleSpec
from seg_models.spec import preset

RANKS, SIZE, WARM, COUNTED = 2, 2, 2, 8
SPACE = LabelSpace(names=tuple(f"class {number}" for number in range(11)))
LR, DECAY = 0.01, 5e-4


def entries(effort: Effort) -> Entries:
    """Runs of ours and of the plain script in turns, in the same two processes."""
    with tempfile.TemporaryDirectory() as folder:
        start_processes(measure, args=(folder, effort.many.pairs, effort.tiny), nprocs=RANKS, start_method="spawn")
        told = [json.loads(Path(folder, f"rank-{rank}.json").read_text()) for rank in range(RANKS)]
    pairs = [(sum(ours for ours, _ in ranks), sum(plain for _, plain in ranks)) for ranks in zip(*told, strict=True)]
    return {"train_step_ddp": median_pair(pairs, unit="CPU-s", note=f"{RANKS} ranks x {SIZE} images")}


def measure(rank: int, folder: str, pairs: int, tiny: bool) -> None:
    """As one rank: CPU-seconds of a step of ours and of the plain script, after a pair to warm up."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=RANKS)
    counted, crop = (1, (32, 32)) if tiny else (COUNTED, (192, 256))
    recipe, given = recipe_of(WARM + counted + 1, crop=crop), batches(rank, WARM + counted + 1, crop=crop)
    found = []
    for number in range(pairs + 1):
        run = f"{folder}/run-{number}"
        sides = (partial(ours, recipe, given, run=run, rank=rank), partial(plain, recipe, given))
        order = (0, 1) if number % 2 else (1, 0)
        spent = {}
        for side in order:
            dist.barrier()
            spent[side] = sides[side]()
        (ours_s, ours_loss), (plain_s, plain_loss) = spent[0], spent[1]
        assert abs(ours_loss - plain_loss) <= 1e-2 * abs(plain_loss), f"losses differ: {ours_loss}, {plain_loss}"
        found.append((ours_s, plain_s))
    Path(folder, f"rank-{rank}.json").write_text(json.dumps(found[1:]))
    dist.destroy_process_group()


def recipe_of(steps: int, *, crop: tuple[int, int]) -> Recipe:
    """A small PSPNet with SGD and the poly schedule."""
    return Recipe(
        model=preset("pspnet_mobilenetv2"),
        optimizer=OptimizerSpec(lr=LR, weight_decay=DECAY),
        schedule=ScheduleSpec(),
        augment=AugmentSpec(crop=crop),
        steps=steps,
        global_batch=RANKS * SIZE,
        sync_batch_norm=False,
    )


def batches(rank: int, num: int, *, crop: tuple[int, int]) -> list[Batch]:
    """The micro-batches of a rank, made before anything is measured."""
    rng = np.random.default_rng(rank)
    ids = tuple(str(number) for number in range(SIZE))
    return [
        Batch(
            step,
            ids,
            torch.from_numpy(rng.integers(0, 256, (SIZE, 3, *crop), np.uint8)),
            torch.from_numpy(rng.integers(0, SPACE.num_classes, (SIZE, *crop), np.uint8)),
        )
        for step in range(num)
    ]


class Given:
    """A stream that hands out what it is given, and notes the CPU time at the first and last step that count."""

    def __init__(self, given: Sequence[Batch]) -> None:
        self._given = iter(given)
        self._last = given[-1].step
        self.noted: list[float] = []

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        batch = next(self._given)
        if batch.step in (WARM, self._last):
            self.noted.append(time.process_time())
        return batch

    def close(self) -> None:
        """Nothing to stop."""


def ours(recipe: Recipe, given: Sequence[Batch], *, run: str, rank: int) -> tuple[float, float]:
    """CPU-seconds of a step of our loop, and the loss of the last one."""
    stream = Given(given)
    losses: list[float] = []
    with mock.patch("jobs.training.loop.open_batches", return_value=stream), _losses(losses):
        train(plan_of(recipe, run), Worker(rank, RANKS, torch.device("cpu")))
    return (stream.noted[1] - stream.noted[0]) / (len(given) - 1 - WARM), losses[-1]


def _losses(found: list[float]) -> Any:
    """Listen to the losses of the stepper."""
    from jobs.training.step import Stepper

    step = Stepper.step

    def listening(self: Stepper, batches: Sequence[Batch]) -> torch.Tensor:
        loss = step(self, batches)
        found.append(float(loss))
        return loss

    return mock.patch.object(Stepper, "step", listening)


def plan_of(recipe: Recipe, run: str) -> TrainPlan:
    """A run of our loop over data that is never read."""
    part = PartSummary(Part(dataset="none"), num_rows=4, num_samples=4, num_missing_shards=0, fingerprint="0")
    shard = ShardRows(0, ShardKey("train", 0), np.arange(4, dtype=np.int32), ("", ""), ("", ""))
    index = SampleIndex(label_space=SPACE, parts=(part,), shards=(shard,))
    identity = run_identity(recipe, index, init_from=None)
    return TrainPlan(run, recipe, index, identity, deterministic=False, checkpoint_every=10**6)


def plain(recipe: Recipe, given: Sequence[Batch]) -> tuple[float, float]:
    """CPU-seconds of a step of the script that one would write by hand, and the loss of the last one."""
    torch.manual_seed(recipe.seed)
    model = recipe.model.build(SPACE.num_classes).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    network = DistributedDataParallel(model.train())
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9, weight_decay=DECAY)
    schedule = LambdaLR(optimizer, lambda step: (1 - step / recipe.steps) ** 0.9)
    noted, last = [], 0.0
    for step, batch in enumerate(given):
        if step in (WARM, len(given) - 1):
            noted.append(time.process_time())
        optimizer.zero_grad()
        losses = model.loss(network(batch.images), SemanticTarget(batch.labels.long(), void=SPACE.void))
        loss = sum(value * (0.4 if name.startswith("aux") else 1.0) for name, value in losses.items())
        loss.backward()
        optimizer.step()
        schedule.step()
        last = loss.item()
    return (noted[1] - noted[0]) / (len(given) - 1 - WARM), last


if __name__ == "__main__":
    command(__doc__, entries)
