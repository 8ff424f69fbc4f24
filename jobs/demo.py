"""`segray demo`: the whole walk on an embedded sample, in minutes on two cores.

Generated scenes have a small labelled part, a class-only part and an unlabelled part. Three arms end on the same
held-out scenes: from scratch, pre-trained on PSSL labels, and the latter with teacher labels added. PSSL also runs on
real photographs that lie inside the wheels of scikit-image and scikit-learn, with three real ImageNet classifiers.
"""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

from jobs.classifiers import train_classifiers
from jobs.cluster import ray_session
from jobs.dry_run import show_plan
from jobs.photos import write_photos
from jobs.scenes import CLASSES, COLORS, SIZE, write_scenes
from jobs.specs import DemoJob, TrainData
from jobs.walk import Verbs, Walk, closing, summarise
from jobs.walk_report import write_walk_report
from pipelines.pssl_spec import PsslSpec
from pipelines.sources import FolderSource, ImageNetSource
from seg_models.predictor import PredictorSpec
from seg_models.recipes.recipe import AugmentSpec, LossSpec, OptimizerSpec, Recipe

TITLE = "The whole walk on generated scenes"
ARMS = {"scratch": "from scratch", "pssl": "PSSL pre-trained", "pssl_teacher": "PSSL + teacher labels"}
MARK = ".segray-demo"  # tells a demo's folder from anybody else's
PRETRAIN_STEPS, FINETUNE_STEPS = 180, 120
VIEW = 2 * SIZE  # scenes are enlarged for the network, whose cells are eight pixels wide
MODEL = "pspnet_resnet10t_narrow"


def run(job: DemoJob, *, dry_run: bool = False) -> dict[str, Any]:
    """Walk through ingest, PSSL, pre-training, fine-tuning, auto-labelling and evaluation.

    Writes `summary.json` and `report.html` into the output folder.

    Raises:
        ValueError: the folder holds something that is no demo.
    """
    output = Path(job.output).resolve()
    if dry_run:
        steps = {"pretrain_steps": PRETRAIN_STEPS, "finetune_steps": FINETUNE_STEPS}
        return show_plan(job, {"arms": ARMS, "model": MODEL, **steps, "writes": str(output / "report.html")})
    clear(output)
    demo = Demo(job, output)
    with ray_session(job.compute):
        demo.run()
    summary = summarise(demo.walk, arms=ARMS)
    (output / "summary.json").write_text(json.dumps(summary, indent=2))
    report = write_walk_report(demo.walk, summary, output=output, arms=ARMS, best="pssl_teacher", title=TITLE)
    print(closing(summary, arms=ARMS, report=report))
    return summary


def clear(output: Path) -> None:
    """Make the folder empty, when an earlier demo made it.

    Raises:
        ValueError: it holds something else.
    """
    if output.exists() and any(output.iterdir()):
        if not (output / MARK).exists():
            raise ValueError(f"{output}: this folder is not empty and no demo made it; choose another with --output")
        shutil.rmtree(output)
    output.mkdir(parents=True, exist_ok=True)
    (output / MARK).touch()


class Demo(Verbs):
    """The stages of the demo; every one is an ordinary job."""

    def __init__(self, job: DemoJob, output: Path) -> None:
        super().__init__(job, str(output), predictor=PredictorSpec(short_side=VIEW))
        self.seed = job.seed
        self.images = output / "images"
        self.walk = Walk(str(output))

    def run(self) -> None:
        """All stages in order."""
        stage = self.walk.stage
        stage("scenes", self.write_images)
        stage("ingest", partial(self.ingest, "labelled", self.labelled()))
        stage("ingest_objects", partial(self.ingest, "objects", self.objects()))
        stage("ingest_unlabelled", partial(self.ingest, "unlabelled", self.unlabelled()))
        stage("ingest_photos", partial(self.ingest, "photos", ImageNetSource(root=str(self.images / "photos"))))
        own = {"classifiers": stage("classifiers", self.classifiers)["classifiers"]}
        stage("pssl", partial(self.pssl, "objects", ensemble=own, settings=PsslSpec()))
        stage("pssl_photos", partial(self.pssl, "photos", ensemble="efficientnet_lite", settings=PsslSpec()))
        stage("pretrain", self.pretrain)
        stage("train_scratch", partial(self.finetune, "scratch"))
        stage("train_pssl", partial(self.finetune, "pssl"))
        stage("autolabel", partial(self.autolabel, "unlabelled", teacher="pssl"))
        stage("train_pssl_teacher", partial(self.finetune, "pssl_teacher"))
        for arm in ARMS:
            stage(f"evaluate_{arm}", partial(self.evaluate, arm, dataset="labelled"))

    def labelled(self) -> FolderSource:
        """The scenes with labels."""
        root, classes = self.images / "labelled", self.images / "classes.txt"
        return FolderSource(
            images=f"{root}/images", labels=f"{root}/labels", classes=str(classes), colors=COLORS, label_codec="index"
        )

    def objects(self) -> ImageNetSource:
        """The class-only images."""
        return ImageNetSource(root=str(self.images / "objects"), synsets=str(self.images / "synsets.txt"))

    def unlabelled(self) -> FolderSource:
        """The scenes without labels."""
        folder, classes = self.images / "unlabelled", self.images / "classes.txt"
        return FolderSource(images=str(folder), classes=str(classes), colors=COLORS, splits="train")

    def write_images(self) -> dict[str, Any]:
        """Generate the scenes and copy the photographs."""
        write_scenes(self.images, seed=self.seed)
        write_photos(self.images / "photos")
        return {}

    def classifiers(self) -> dict[str, Any]:
        """Train the small ensemble on the class-only images."""
        folder = Path(self.place("classifiers"))
        return train_classifiers(self.images / "objects", folder, classes=CLASSES[1:], size=SIZE, seed=self.seed)

    def recipe(self, *, steps: int, background_weight: float | None = None) -> Recipe:
        """What all training of the demo shares."""
        return Recipe(
            model=MODEL,
            optimizer=OptimizerSpec(lr=0.05, weight_decay=1e-4),
            augment=AugmentSpec(
                crop=(VIEW, VIEW), short_side=VIEW, scale=(0.75, 1.5), brightness=0.2, contrast=0.2, saturation=0.2
            ),
            loss=LossSpec(background_weight=background_weight),
            steps=steps,
            global_batch=8,
            seed=self.seed,
        )

    def pretrain(self) -> dict[str, Any]:
        """A whole network on the pseudo-labels."""
        recipe = self.recipe(steps=PRETRAIN_STEPS, background_weight=0.1)
        return self.train("pretrain", recipe, data=[TrainData(dataset=self.place("objects"), labels="pssl")])

    def finetune(self, arm: str) -> dict[str, Any]:
        """One arm on the labelled scenes; all have the same recipe."""
        data = [TrainData(dataset=self.place("labelled"))]
        if arm == "pssl_teacher":
            data.append(TrainData(dataset=self.place("unlabelled"), labels="teacher"))
        init_from = None if arm == "scratch" else self.place("runs", "pretrain", "model")
        return self.train(arm, self.recipe(steps=FINETUNE_STEPS), data=data, init_from=init_from)
