"""One arm with one seed, from the real data to its figures; what arms share is made once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.label_value.arms import EIGHTH, Arm
from benchmarks.label_value.auto_labels import AutoLabels
from benchmarks.label_value.frames import SPLITS, copy_frames
from benchmarks.label_value.pretraining import Pretraining
from benchmarks.label_value.results import Results, alone
from benchmarks.label_value.runs import UNTRACKED, Runs
from benchmarks.label_value.settings import Settings
from jobs import ingest
from jobs.specs import IngestJob, TrainData
from jobs.walk import Walk
from pipelines.sources import FolderSource
from pipelines.sources.camvid import CLASSES, UNLABELLED
from seg_models.predictor import PredictorSpec

FRAMES = "datasets/camvid-11"


class Stages:
    """Everything below one output folder; several processes may work in it at once.

    Args:
        data: the folder of the real data.
        output: what is made is kept here and not made again.
        results: where figures are kept.
        threads: of torch in each training worker.
    """

    def __init__(self, settings: Settings, *, data: Path, output: Path, results: Results, threads: int = 1) -> None:
        self.settings, self.results = settings, results
        self.data, self.output = data.resolve(), output.resolve()
        self.frames = str(self.output / "data" / "camvid")
        self.walk = Walk(str(self.output), {"data": str(self.data)})
        self.runs = Runs(self.output, threads=threads)
        shared: dict[str, Any] = {"data": self.data, "runs": self.runs, "walk": self.walk, "results": results}
        self.auto_labels = AutoLabels(settings, frames=self.frames, **shared)
        self.pretraining = Pretraining(settings, **shared)

    def prepare(self) -> None:
        """Write CamVid as a dataset with the splits `eighth`, `rest`, `val` and `test`.

        Raises:
            ValueError: the data are not there, or the folder was made from others.
        """
        if not (self.data / FRAMES).is_dir():
            raise ValueError(f"{self.data / FRAMES}: no such folder; name that of the data with --data")
        with alone(self.output / "locks" / "prepare"):
            self.walk.begin()
            self.walk.stage("ingest_camvid", self._ingest)

    def measure(self, arm: Arm, *, seed: int) -> dict[str, Any]:
        """Train and evaluate an arm with one seed, unless its figures are known with these settings."""
        name, fingerprint = f"{arm.name}/{seed}", arm.fingerprint(self.settings, seed=seed)
        with alone(self.output / "locks" / f"measure-{arm.name}-{seed}"):
            known = self.results.get(name, fingerprint=fingerprint)
            if known is not None:
                print(f"--- {name}: measured earlier, mIoU {known['miou']:.4f}", flush=True)
                return known
            print(f"--- {name}", flush=True)
            trained = self.train(arm, seed=seed)
            looks = PredictorSpec(short_side=self.settings.short_side)
            scores = self.runs.evaluate(trained["checkpoint"], dataset=self.frames, split="test", predictor=looks)
            figures = {"loss": round(trained["loss"], 4), "seconds": round(trained["seconds"])}
            record = {"fingerprint": fingerprint, **scores, **figures}
            self.results.add(name, record)
            return record

    def train(self, arm: Arm, *, seed: int) -> dict[str, Any]:
        """The result of an arm's training, with what it needs: pre-training, a teacher and its labels."""
        return self.runs.train(
            f"{arm.name}-{seed}-{arm.fingerprint(self.settings, seed=seed)}",
            self.settings.finetuning(steps=arm.steps(self.settings), seed=seed, imagenet=arm.imagenet),
            data=self._data(arm, seed=seed),
            init_from=None if arm.pssl is None else self.pretraining.checkpoint(arm.pssl),
        )

    def _data(self, arm: Arm, *, seed: int) -> list[TrainData]:
        """What an arm trains on. Human labels have a share of their own beside a teacher's, which are many."""
        parts = {"eighth": "human"}
        if arm.rest is not None:
            parts["rest"] = self._labels_of(arm.rest, seed=seed)
        by_teacher = arm.rest not in (None, "human")
        share = self.settings.human_share
        weights = {"eighth": share, "rest": 1 - share} if by_teacher else {}
        return [
            TrainData(dataset=self.frames, split=split, labels=labels, weight=weights.get(split))
            for split, labels in parts.items()
        ]

    def _labels_of(self, rest: str, *, seed: int) -> str:
        """The name of the label set of the rest."""
        if rest == "self":
            return self.auto_labels.of_network(self.train(EIGHTH, seed=seed)["checkpoint"], name=f"self/{seed}")
        return self.auto_labels.of_cityscapes() if rest == "cityscapes" else rest

    def _ingest(self) -> dict[str, Any]:
        source = self.output / "data" / "frames"
        counts = copy_frames(self.data / FRAMES, source)
        job = IngestJob(
            source=FolderSource(
                images=str(source / "{split}" / "images"),
                labels=str(source / "{split}" / "labels"),
                classes=tuple(CLASSES),
                colors=tuple(CLASSES.values()),
                void_values=(UNLABELLED,),
                label_codec="index",
                splits={split: split for split in SPLITS},
            ),
            dataset=self.frames,
            shard_rows=24,
            **UNTRACKED,
        )
        ingest.run(job)
        return counts
