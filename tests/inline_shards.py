"""`run_shards` without Ray, for tests of what workers and drivers do; how Ray runs them is tested once per verb."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from pipelines.shards import ComputeSpec, RunStats, ShardError, ShardTask

USERS = ("pipelines.evaluation", "pipelines.label_run", "pipelines.predict", "pipelines.unpack")


def run_inline(
    worker: type,
    *,
    tasks: Sequence[ShardTask],
    worker_args: dict[str, Any],
    compute: ComputeSpec,
    on_result: Callable[[str, Any], None],
    label: str,
    unit: str = "images",
) -> RunStats:
    """Call one worker with every task in turn; everything that would travel is pickled on the way."""
    if not tasks:
        return RunStats()
    built = worker(**pickle.loads(pickle.dumps(worker_args)))
    for task in tasks:
        try:
            result = built(pickle.loads(pickle.dumps(task.payload)))
        except Exception as error:
            raise ShardError(f"{label}: shard {task.key}: {error}") from error
        on_result(task.key, pickle.loads(pickle.dumps(result)))
    return RunStats(tasks=len(tasks), actors=1)


@contextmanager
def inline_shards() -> Iterator[None]:
    """Run shards in this process for the length of the block."""
    with pytest.MonkeyPatch.context() as patch:
        for module in USERS:
            patch.setattr(f"{module}.run_shards", run_inline)
        yield
