"""A walk over several verbs: times every stage, remembers finished ones, and sums the figures up."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from jobs import autolabel, evaluate, ingest, pssl, train
from jobs.specs import AutolabelJob, EvaluateJob, IngestJob, Job, PsslJob, TrackingSpec, TrainData, TrainJob
from pipelines import storage
from pipelines.pssl_spec import EnsembleSpec, PsslSpec
from pipelines.sources import AnySource
from pipelines.tables import differing_keys
from seg_models.predictor import PredictorSpec
from seg_models.recipes.recipe import Recipe

COUNTS = ("images_in", "labelled", "rejected")


@dataclass
class Walk:
    """Stages of one walk. Finished stages lie under `<output>/stages/` and are not run again."""

    output: str
    settings: dict[str, Any] = field(default_factory=dict)
    """What the stages depend on; a walk with other settings must not take them for its own."""
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Result of every stage in the order they ran, with the `seconds` of the attempt that ended it and the number of
    `attempts`: a walk that was killed begins the stage again, and the stage goes on from what is committed."""

    def begin(self) -> None:
        """Remember the settings, or compare them with those of an earlier run in this folder.

        Raises:
            ValueError: they differ.
        """
        place = storage.join(self.output, "stages", "settings.json")
        if not storage.exists(place):
            storage.write_text(place, json.dumps(self.settings))
            return
        differing = differing_keys(self.settings, json.loads(storage.read_bytes(place)))
        if differing:
            raise ValueError(
                f"{self.output}: the stages there were made with other settings ({'; '.join(differing)}); "
                "choose another folder with --output"
            )

    def stage(self, name: str, run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Run a stage, or take the result of an earlier, finished one."""
        place = storage.join(self.output, "stages", f"{name}.json")
        if storage.exists(place):
            result: dict[str, Any] = json.loads(storage.read_bytes(place))
            print(f"--- {name}: finished earlier, {result['seconds']:.0f} s", flush=True)
        else:
            print(f"--- {name}", flush=True)
            begun = storage.join(self.output, "stages", f"{name}.attempts")
            attempts = 1 + (int(storage.read_bytes(begun)) if storage.exists(begun) else 0)
            storage.write_text(begun, str(attempts))
            start = time.monotonic()
            result = {**run(), "seconds": round(time.monotonic() - start, 2), "attempts": attempts}
            storage.write_text(place, json.dumps(result))
        self.stages[name] = result
        return result

    def summary(self) -> dict[str, Any]:
        """Per stage: seconds, MLflow run and, where a stage works on images, the counts of rows."""
        return {name: _figures(result) for name, result in self.stages.items()}


def _figures(result: dict[str, Any]) -> dict[str, Any]:
    figures: dict[str, Any] = {"seconds": result["seconds"]}
    if result["attempts"] > 1:
        figures["attempts"] = result["attempts"]
    if "images_in" in result:
        figures |= {key: result[key] for key in COUNTS if key in result}
    tracked = result.get("mlflow") or {}
    if tracked.get("run_id"):
        figures["mlflow_run_id"] = tracked["run_id"]
    if "miou" in result:
        figures["miou"] = result["miou"]
    return figures


def tracking_of(job: Job, output: str) -> TrackingSpec:
    """The walk's tracking, with one database for all of its jobs where the user names no server."""
    if job.tracking.uri is not None or os.environ.get("MLFLOW_TRACKING_URI"):
        return job.tracking
    return job.tracking.model_copy(update={"uri": f"sqlite:///{storage.normalise(output)}/mlflow.db"})


class Verbs:
    """The verbs of a walk, as ordinary jobs whose places lie below one folder."""

    def __init__(self, job: Job, output: str, *, predictor: PredictorSpec | None = None, threads: int | None = None):
        self.output = output
        self.predictor = predictor or PredictorSpec()
        self.threads = threads
        self.common: dict[str, Any] = {"tracking": tracking_of(job, output), "compute": job.compute}

    def place(self, *parts: str) -> str:
        """A place below the output folder."""
        return storage.join(self.output, *parts)

    def ingest(self, dataset: str, source: AnySource, *, shard_rows: int = 256) -> dict[str, Any]:
        """Images -> a dataset; `labelled` of the result are the rows written, with a label where the source has any."""
        job = IngestJob(source=source, dataset=self.place(dataset), shard_rows=shard_rows, **self.common)
        result = ingest.run(job)
        return result | {"labelled": result["good"]}

    def pssl(self, dataset: str, *, ensemble: Any, settings: PsslSpec) -> dict[str, Any]:
        """Images with classes -> the label set `pssl`."""
        job = PsslJob(
            dataset=self.place(dataset), ensemble=EnsembleSpec.model_validate(ensemble), pssl=settings, **self.common
        )
        return pssl.run(job)

    def train(
        self, name: str, recipe: Recipe, *, data: list[TrainData], init_from: str | None = None
    ) -> dict[str, Any]:
        """Datasets and a recipe -> the checkpoint `runs/<name>/model`."""
        job = TrainJob(
            name=name,
            recipe=recipe,
            data=tuple(data),
            init_from=init_from,
            output=self.place("runs"),
            device="cpu",
            threads=self.threads,
            **self.common,
        )
        return train.run(job)

    def autolabel(self, dataset: str, *, teacher: str, split: str | None = None) -> dict[str, Any]:
        """A trained run labels images into the label set `teacher`; pixels below 0.5 are void."""
        job = AutolabelJob(
            checkpoint=self.place("runs", teacher, "model"),
            dataset=self.place(dataset),
            split=split,
            predictor=self.predictor,
            **self.common,
        )
        return autolabel.run(job)

    def evaluate(self, name: str, *, dataset: str) -> dict[str, Any]:
        """A trained run on the split `test`."""
        job = EvaluateJob(
            checkpoint=self.place("runs", name, "model"),
            dataset=self.place(dataset),
            predictor=self.predictor,
            output=self.place("evaluate", name),
            **self.common,
        )
        return evaluate.run(job)


def summarise(walk: Walk, *, arms: dict[str, str]) -> dict[str, Any]:
    """Figures of all stages, and the mIoU of the arms; the stages `ingest`, `pssl` and `autolabel` also by name."""
    figures = walk.summary()
    runs = {name: stage["mlflow_run_id"] for name, stage in figures.items() if "mlflow_run_id" in stage}
    return {
        **{name: figures[name] for name in ("ingest", "pssl", "autolabel")},
        "stages": figures,
        "seconds": round(sum(stage["seconds"] for stage in figures.values()), 1),
        "miou": {arm: walk.stages[f"evaluate_{arm}"]["miou"] for arm in arms},
        "mlflow_run_ids": runs,
    }


def closing(summary: dict[str, Any], *, arms: dict[str, str], report: str) -> str:
    """What is printed at the end of a walk."""
    lines = ["mIoU on the same held-out images:"]
    lines += [f"  {title:<24} {summary['miou'][arm]:.4f}" for arm, title in arms.items()]
    return "\n".join([*lines, f"{summary['seconds']:.0f} s in all; report: {report}"])
