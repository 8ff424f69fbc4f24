"""The jobs that are run, with places below one folder; what an earlier process finished there is kept."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from benchmarks.label_value.results import alone
from jobs import autolabel, evaluate, train
from jobs.specs import AutolabelJob, EvaluateJob, TrackingSpec, TrainData, TrainJob
from pipelines.keep import KeepSpec
from seg_models.predictor import PredictorSpec
from seg_models.recipes.recipe import Recipe

UNTRACKED: dict[str, Any] = {"tracking": TrackingSpec(enabled=False), "report": False}
EVERY = 100
"""Steps between lines of the log, and between checkpoints: what a stopped process costs."""
DIGITS = 5


class Runs:
    """Training, evaluation and auto-labelling below one folder, which several processes may share.

    Args:
        folder: where everything is kept.
        threads: of torch in each training worker.
    """

    def __init__(self, folder: Path, *, threads: int) -> None:
        self.folder, self.threads = folder, threads

    def train(
        self, name: str, recipe: Recipe, *, data: list[TrainData], init_from: str | None = None
    ) -> dict[str, Any]:
        """The result of a training; its `checkpoint` is what evaluation takes."""
        job = TrainJob(
            name=name,
            recipe=recipe,
            data=tuple(data),
            init_from=init_from,
            output=str(self.folder / "runs"),
            device="cpu",
            threads=self.threads,
            channels_last=True,  # 1.4 times as fast
            checkpoint_every=EVERY,
            keep_checkpoints=1,
            log_every=EVERY,
            **UNTRACKED,
        )
        with alone(self.folder / "locks" / name):
            result = train.run(job)
            shutil.rmtree(self.folder / "runs" / name / "checkpoints", ignore_errors=True)
        return result

    def evaluate(self, checkpoint: str, *, dataset: str, split: str, predictor: PredictorSpec) -> dict[str, Any]:
        """`miou`, `pixel_accuracy` and `iou` by class (None where no class was drawn) on a split."""
        job = EvaluateJob(
            checkpoint=checkpoint,
            dataset=dataset,
            split=split,
            predictor=predictor,
            output=str(self.folder / "evaluations" / f"{run_of(checkpoint)}-{split}"),
            num_pictures=0,
            num_worst=0,
            **UNTRACKED,
        )
        table = evaluate.run(job)
        iou = {row["class"]: None if row["iou"] is None else round(row["iou"], DIGITS) for row in table["classes"]}
        scores = {key: round(table[key], DIGITS) for key in ("miou", "pixel_accuracy")}
        return {**scores, "iou": iou}

    def autolabel(
        self, checkpoint: str, *, dataset: str, split: str, labels: str, threshold: float, predictor: PredictorSpec
    ) -> None:
        """A teacher's labels of a split; those that are there stay."""
        job = AutolabelJob(
            name=f"autolabel-{labels}",
            checkpoint=checkpoint,
            dataset=dataset,
            split=split,
            labels=labels,
            keep=KeepSpec(threshold=threshold),
            predictor=predictor,
            **UNTRACKED,
        )
        with alone(self.folder / "locks" / labels):
            autolabel.run(job)


def run_of(checkpoint: str) -> str:
    """The name of the run, or of the teacher, that a checkpoint is of."""
    return Path(checkpoint).parent.name
