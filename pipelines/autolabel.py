"""Auto-labelling: a published checkpoint as teacher -> a label set (specs: HMSA section 6.2), in two steps.

1. The teacher's own label set `<labels>-raw`: its class for every pixel and its confidence in twentieths, nothing cut.
2. The label set `<labels>`: thresholds, border and classes from coarse human labels, derived shard by shard.

Another threshold repeats the second step alone: from a named label set, or whenever a teacher's label set of the same
plan is there. A row that was rejected keeps its place with a reason in both.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.autolabel_plan import AutolabelWork, TeacherWork
from pipelines.label_run import LabelResult, OnProgress, run_work
from pipelines.labels import LabelSpace
from pipelines.shard_counts import by_class, read_stats, summed
from pipelines.shards import ComputeSpec
from pipelines.tables import ShardFile


@dataclass(frozen=True)
class AutolabelResult(LabelResult):
    """What a run did. Speeds are the teacher's where it ran, else those of deriving."""

    teacher: dict[str, Any]
    """The teacher's own label set: its name, and how many shards of it this run labelled."""
    kept_share: dict[str, float]
    """Share of the pixels given to a class that are kept; classes never predicted are left out."""
    kept_pixels: dict[str, int]
    """Pixels kept of the teacher's, by class name."""
    coarse_pixels: dict[str, int]
    """Pixels taken from the coarse human labels, by class name."""
    cut: dict[str, float]
    """Share of all pixels that are void, by cause: threshold, border, coarse."""
    kept: float
    """Share of the teacher's pixels that are kept."""


def run_autolabel(
    work: AutolabelWork, *, compute: ComputeSpec, max_rejected: float = 0.5, on_progress: OnProgress | None = None
) -> AutolabelResult:
    """Write or continue what was planned, first the teacher's own label set; Ray must be running.

    Raises:
        ValueError: a label set follows another plan, or too many rows are rejected.
        ShardError: a worker failed; finished shards are committed.
    """
    work.open()  # refuses another plan before the teacher starts
    taught = None
    if work.teacher_work is not None and _todo(work.teacher_work):
        taught = run_work(work.teacher_work, compute=compute, max_rejected=max_rejected, on_progress=on_progress)
    done = run_work(
        dataclasses.replace(work, shards=_source_shards(work)),
        compute=_light(compute),
        max_rejected=max_rejected,
        on_progress=on_progress if taught is None else None,
    )
    return _result(work, done, taught)


def _todo(work: TeacherWork) -> list[ShardFile]:
    done = work.committed()
    return [shard for shard in work.shards if shard.key not in done]


def _source_shards(work: AutolabelWork) -> tuple[ShardFile, ...]:
    """The teacher's shards in scope, in the order of the images'."""
    files = {file.key: file for file in work.dataset.labels(work.source).files()}
    return tuple(files[shard.key] for shard in work.shards)


def _light(compute: ComputeSpec) -> ComputeSpec:
    """What deriving needs of what the teacher needs: one CPU an actor, no GPU."""
    return compute.model_copy(update={"gpus": 0.0, "cpus": min(compute.cpus, 1.0) if compute.gpus == 0 else 1.0})


def _result(work: AutolabelWork, done: LabelResult, taught: LabelResult | None) -> AutolabelResult:
    table = dict(vars(done))
    ran = 0
    if taught is not None:
        ran = taught.num_shards - taught.resumed_shards
        phases = {**{f"derive_{name}": value for name, value in done.phases.items()}, **taught.phases}
        table |= {
            "seconds": round(done.seconds + taught.seconds, 3),
            "images_per_s": taught.images_per_s,
            "actors": taught.actors,
            "phases": phases,
        }
    stats = read_stats(work.open(), split=work.split)
    predicted, kept, cut = (summed(stats, key) for key in ("predicted", "kept", "cut"))
    coarse = by_class(summed(stats, "from_coarse"), work.space)
    total = predicted.total() or 1
    return AutolabelResult(
        **table,
        teacher={"labels": work.source, "shards_labelled": ran},
        kept_share=_shares(kept, predicted, work.space),
        kept_pixels=by_class(kept, work.space),
        coarse_pixels={name: count for name, count in coarse.items() if count},
        cut={cause: count / total for cause, count in cut.items() if count},
        kept=kept.total() / total,
    )


def _shares(kept: Mapping[str, int], predicted: Mapping[str, int], space: LabelSpace) -> dict[str, float]:
    """Kept share by class name, in the order of the classes."""
    order = sorted(predicted, key=int)
    return {space.names[int(index)]: kept.get(index, 0) / predicted[index] for index in order}
