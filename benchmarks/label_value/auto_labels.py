"""Labels of the other seven eighths: by the network that was trained on the eighth, or by one of Cityscapes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.label_value.label_quality import compare_labels
from benchmarks.label_value.results import Results, alone
from benchmarks.label_value.runs import Runs, run_of
from benchmarks.label_value.settings import Settings
from benchmarks.label_value.teachers import TEACHERS, publish_merged
from benchmarks.study.maps import short_hash
from jobs.walk import Walk
from pipelines.tables import Dataset
from seg_models.predictor import PredictorSpec

SPLIT = "rest"


class AutoLabels:
    """Label sets of the split `rest`.

    Args:
        frames: the dataset.
        data: the folder of the real data.
        walk: remembers which teacher was best.
        results: told how right the labels are.
    """

    def __init__(
        self, settings: Settings, *, frames: str, data: Path, runs: Runs, walk: Walk, results: Results
    ) -> None:
        self.settings, self.frames, self.data = settings, frames, data
        self.runs, self.walk, self.results = runs, walk, results

    def of_network(self, checkpoint: str, *, name: str) -> str:
        """Labels by a network that was trained on the eighth, told of by a name; the name of the label set."""
        settings = self.settings
        looks = PredictorSpec(short_side=settings.short_side, scales=settings.teacher_scales, flip=True)
        return self._label(name, checkpoint, looks)

    def of_cityscapes(self) -> str:
        """Labels by the Cityscapes network that is best on the eighth; the name of the label set."""
        with alone(self.runs.folder / "locks" / "cityscapes"):
            scores = self.walk.stage("cityscapes_teachers", self._score_teachers)
        for name, looks in TEACHERS.items():
            self.results.add(f"teacher/{name}", {"fingerprint": _key(looks), **scores[name]})
        best = max(TEACHERS, key=lambda name: float(scores[name]["miou"]))
        return self._label("cityscapes", self._teacher(best), TEACHERS[best])

    def _score_teachers(self) -> dict[str, Any]:
        """The scores of every Cityscapes network on the eighth, by name."""
        return {
            name: self.runs.evaluate(self._teacher(name), dataset=self.frames, split="eighth", predictor=looks)
            for name, looks in TEACHERS.items()
        }

    def _teacher(self, name: str) -> str:
        """The checkpoint of a Cityscapes network, published where it is not yet."""
        folder = self.runs.folder / "teachers" / name
        if (folder / "model" / "model.json").exists():
            return str(folder / "model")
        return publish_merged(folder, name=name, data=self.data, space=Dataset.open(self.frames).info.label_space)

    def _label(self, name: str, checkpoint: str, looks: PredictorSpec) -> str:
        key = _key(looks, run_of(checkpoint), self.settings.threshold)
        labels = f"{name.replace('/', '-')}-{key}"
        self.runs.autolabel(
            checkpoint,
            dataset=self.frames,
            split=SPLIT,
            labels=labels,
            threshold=self.settings.threshold,
            predictor=looks,
        )
        quality = compare_labels(self.frames, labels, truth="human", split=SPLIT)
        self.results.add(f"labels/{name}", {"fingerprint": key, "teacher": run_of(checkpoint), **quality})
        return labels


def _key(looks: PredictorSpec, *more: Any) -> str:
    return short_hash([*more, looks.model_dump(exclude_defaults=True)])
