"""Pre-training of the whole network on PSSL labels of the ImageNet sample."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.label_value.arms import COARSE, pretraining_key
from benchmarks.label_value.coarse import write_coarse_labels
from benchmarks.label_value.results import Results, alone
from benchmarks.label_value.runs import UNTRACKED, Runs
from benchmarks.label_value.settings import Settings
from jobs import ingest, pssl
from jobs.specs import IngestJob, PsslJob, TrainData
from jobs.walk import Walk
from pipelines.pssl_spec import EnsembleSpec, PsslSpec, resolve_pssl
from pipelines.sources import ImageNetSource
from seg_models.explain import RandomSpec

IMAGES, CLASSIFIERS = "images/imagenet-sample-1000", "weights/imagenet-classifiers"


class Pretraining:
    """Networks by the label set they were pre-trained on.

    Args:
        data: the folder of the real data.
        walk: remembers finished stages.
        results: told how the loss fell.
    """

    def __init__(self, settings: Settings, *, data: Path, runs: Runs, walk: Walk, results: Results) -> None:
        self.settings, self.data = settings, data
        self.runs, self.walk, self.results = runs, walk, results
        self.images = str(runs.folder / "data" / "imagenet")

    def checkpoint(self, name: str) -> str:
        """The network after pre-training, on labels that are made first where they are not there.

        Args:
            name: `paper`, `fast` or `random`, or one of them with `-coarse` behind it.
        """
        labels = self._labels(name)
        key = pretraining_key(name, self.settings)
        data = [TrainData(dataset=self.images, labels=labels)]
        result = self.runs.train(f"pretrain-{name}-{key}", self.settings.pretraining(), data=data)
        losses = [round(result["curve"][end][1], 4) for end in (0, -1)]
        self.results.add(f"pretraining/{name}", {"fingerprint": key, "losses": losses, "samples": result["samples"]})
        return str(result["checkpoint"])

    def _labels(self, name: str) -> str:
        """The name of the label set, made where it is not there."""
        fine = name.removesuffix(COARSE)
        labels = fine if fine == "random" else f"{fine}-{self.settings.pssl_samples}"
        with alone(self.runs.folder / "locks" / "pssl"):
            self.walk.stage("ingest_imagenet", self._ingest)
            self.walk.stage(f"pssl_{labels}", partial(self._explain, fine, labels))
            if fine == name:
                return labels
            coarse = f"{labels}{COARSE}"
            self.walk.stage(f"pssl_{coarse}", partial(write_coarse_labels, self.images, labels, labels=coarse))
        return coarse

    def _ingest(self) -> dict[str, Any]:
        job = IngestJob(
            source=ImageNetSource(root=str(self.data / IMAGES)), dataset=self.images, shard_rows=50, **UNTRACKED
        )
        return ingest.run(job)

    def _explain(self, fine: str, labels: str) -> dict[str, Any]:
        """Labels of all classifiers there are, or random ones."""
        random = fine == "random"
        presets = () if random else (f"collected:{self.data / CLASSIFIERS}", "efficientnet_lite")
        job = PsslJob(
            dataset=self.images,
            labels=labels,
            pssl=PsslSpec(explainer=RandomSpec()) if random else self._rule(fine),
            ensemble=EnsembleSpec(presets=presets),
            **UNTRACKED,
        )
        return pssl.run(job)

    def _rule(self, preset: str) -> PsslSpec:
        return resolve_pssl({"base": preset, "explainer": {"samples": self.settings.pssl_samples}})
