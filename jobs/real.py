"""`segray real`: the whole walk on real data.

PSSL labels for the ImageNet sample from 14 real classifiers, pre-training on them, then three arms on CamVid-11 with
equal steps: ImageNet backbone, PSSL pre-trained, and the latter with teacher labels of the validation frames, which
count as unlabelled. All are evaluated on CamVid's test frames. An interrupted walk continues where it stopped.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from jobs.cluster import ray_session
from jobs.dry_run import show_plan
from jobs.specs import RealJob, TrainData
from jobs.walk import Verbs, Walk, closing, summarise
from jobs.walk_report import write_walk_report
from pipelines import storage
from pipelines.ingest_plan import plan_ingest
from pipelines.pssl_spec import PsslSpec
from pipelines.shards import ComputeSpec
from pipelines.sources import CamVidSource, ImageNetSource
from seg_models.explain import SmoothGradSpec
from seg_models.predictor import PredictorSpec
from seg_models.recipes import resolve_recipe
from seg_models.recipes.recipe import Recipe
from seg_models.smoothing import NoSmoothing

TITLE = "The whole walk on real data: ImageNet classes to CamVid"
ARMS = {"imagenet": "ImageNet backbone", "pssl": "PSSL pre-trained", "pssl_teacher": "PSSL + teacher labels"}
TRAIN_SIZE = (240, 320)
PRETRAIN_SIZE = (128, 128)
SHARD_ROWS = {"imagenet": 50, "camvid": 64}


def run(job: RealJob, *, dry_run: bool = False) -> dict[str, Any]:
    """Walk on real data and write `summary.json`, `results.md` and `report.html` into the output folder.

    Raises:
        ValueError: the data are not there.
    """
    data = storage.normalise(job.data)
    for folder in ("images/imagenet-sample-1000", "datasets/camvid-11", "weights/imagenet-classifiers"):
        storage.require_dir(storage.join(data, folder))
    output = Path(job.output).resolve()
    walk = Real(job, data=data, output=output)
    if dry_run:
        return show_plan(job, walk.planned())
    walk.walk.begin()
    with ray_session(job.compute):
        walk.run()
    summary = summarise(walk.walk, arms=ARMS)
    (output / "summary.json").write_text(json.dumps(summary, indent=2))
    (output / "results.md").write_text(results_markdown(job, walk.walk, summary))
    report = write_walk_report(walk.walk, summary, output=output, arms=ARMS, best="pssl_teacher", title=TITLE)
    print(closing(summary, arms=ARMS, report=report))
    return summary


class Real(Verbs):
    """The stages of the walk on real data."""

    def __init__(self, job: RealJob, *, data: str, output: Path) -> None:
        # Two actors of one thread share the two cores of a small machine; training uses both in one worker.
        shared = job.model_copy(update={"compute": job.compute if job.compute != ComputeSpec() else _two_actors()})
        super().__init__(shared, str(output), predictor=PredictorSpec(short_side=TRAIN_SIZE[0]), threads=2)
        self.job, self.data = job, data
        chosen = {"seed", "samples", "pretrain_steps", "finetune_steps"}
        self.walk = Walk(str(output), {"data": data, **job.model_dump(include=chosen)})
        self.images = ImageNetSource(root=storage.join(data, "images/imagenet-sample-1000"))
        self.frames = CamVidSource(root=storage.join(data, "datasets/camvid-11"))

    def planned(self) -> dict[str, Any]:
        """What the walk would do: images, steps and arms."""
        sources = {"imagenet": self.images, "camvid": self.frames}
        return {
            "images": {
                name: plan_ingest(source, dataset=self.place(name), shard_rows=SHARD_ROWS[name]).summary()["images"]
                for name, source in sources.items()
            },
            "arms": ARMS,
            "writes": [self.place(name) for name in ("summary.json", "results.md", "report.html")],
        }

    def run(self) -> None:
        """All stages in order."""
        stage = self.walk.stage
        stage("ingest_imagenet", partial(self.ingest, "imagenet", self.images, shard_rows=SHARD_ROWS["imagenet"]))
        stage("ingest", partial(self.ingest, "camvid", self.frames, shard_rows=SHARD_ROWS["camvid"]))
        stage("pssl", self.pseudo_labels)
        stage("pretrain", self.pretrain)
        stage("train_imagenet", partial(self.finetune, "imagenet"))
        stage("train_pssl", partial(self.finetune, "pssl"))
        stage("autolabel", partial(self.autolabel, "camvid", teacher="pssl", split="val"))
        stage("train_pssl_teacher", partial(self.finetune, "pssl_teacher"))
        for arm in ARMS:
            stage(f"evaluate_{arm}", partial(self.evaluate, arm, dataset="camvid"))

    def pseudo_labels(self) -> dict[str, Any]:
        """Fourteen real classifiers: eleven collected ones and three from packages."""
        folder = storage.join(self.data, "weights/imagenet-classifiers")
        ensemble = {"presets": (f"collected:{folder}", "efficientnet_lite")}
        explainer = SmoothGradSpec(samples=self.job.samples, score="logit")
        settings = PsslSpec(explainer=explainer, smoothing=NoSmoothing(), resize="square", seed=self.job.seed)
        return self.pssl("imagenet", ensemble=ensemble, settings=settings)

    def recipe(self, base: str, **changes: Any) -> Recipe:
        """A small recipe of the project; its backbone starts from real ImageNet weights, which lie in a package."""
        return resolve_recipe({"base": base, "seed": self.job.seed, **changes})

    def pretrain(self) -> dict[str, Any]:
        """The whole network on the pseudo-labels, starting from the ImageNet backbone."""
        recipe = self.recipe(
            "pspnet_efficientnet_lite0_pssl",
            steps=self.job.pretrain_steps,
            global_batch=8,
            augment={"crop": PRETRAIN_SIZE, "short_side": PRETRAIN_SIZE[0]},
        )
        return self.train("pretrain", recipe, data=[TrainData(dataset=self.place("imagenet"), labels="pssl")])

    def finetune(self, arm: str) -> dict[str, Any]:
        """One arm on CamVid; all have the same recipe."""
        data = [TrainData(dataset=self.place("camvid"))]
        if arm == "pssl_teacher":
            data.append(TrainData(dataset=self.place("camvid"), labels="teacher", split="val"))
        recipe = self.recipe(
            "pspnet_efficientnet_lite0_camvid",
            steps=self.job.finetune_steps,
            global_batch=4,
            augment={"crop": TRAIN_SIZE, "short_side": TRAIN_SIZE[0], "scale": (0.75, 1.5)},
        )
        init_from = None if arm == "imagenet" else self.place("runs", "pretrain", "model")
        return self.train(arm, recipe, data=data, init_from=init_from)


def _two_actors() -> ComputeSpec:
    return ComputeSpec(actors=2, cpus=0.9)


def _attempts(stage: dict[str, Any]) -> str:
    count = stage.get("attempts", 1)
    return f" (the last of {count} attempts)" if count > 1 else ""


def results_markdown(job: RealJob, walk: Walk, summary: dict[str, Any]) -> str:
    """The section of `docs/results.md` about this walk."""
    stages = summary["stages"]
    pssl = walk.stages["pssl"]
    lines = [
        "## CamVid-11 test, PSPNet with EfficientNet-Lite0 (output stride 16)",
        "",
        f"Command: `segray real --samples {job.samples} --pretrain_steps {job.pretrain_steps} "
        f"--finetune_steps {job.finetune_steps}` (`make real`), seed {job.seed}, one seed, 2 CPU cores, "
        f"{summary['seconds'] / 60:.0f} minutes in all.",
        "",
        f"PSSL: {pssl['labelled']:,} of {pssl['images_in']:,} ImageNet images labelled by 14 real classifiers "
        f"(SmoothGrad of the logit, n = {job.samples}, `square` inputs, L1-normalised), "
        f"{pssl['images_per_s']:.2f} images/s; pre-training {job.pretrain_steps:,} steps of 8 crops of "
        f"{PRETRAIN_SIZE[0]}×{PRETRAIN_SIZE[1]}; fine-tuning {job.finetune_steps:,} steps of 4 crops of "
        f"{TRAIN_SIZE[0]}×{TRAIN_SIZE[1]} on the 367 training frames; teacher labels for the 101 validation frames, "
        "whose human labels no arm sees; evaluation of all 233 test frames at 360×480, short side 240 px.",
        "",
        "| arm | mIoU | pixel accuracy |",
        "|---|---|---|",
    ]
    for arm, title in ARMS.items():
        result = walk.stages[f"evaluate_{arm}"]
        lines.append(f"| {title} | {result['miou']:.4f} | {result['pixel_accuracy']:.4f} |")
    lines += ["", "| class | " + " | ".join(ARMS.values()) + " |", "|---" * (len(ARMS) + 1) + "|"]
    tables = [walk.stages[f"evaluate_{arm}"]["classes"] for arm in ARMS]
    for rows in zip(*tables, strict=True):
        figures = ["–" if row["iou"] is None else f"{row['iou']:.4f}" for row in rows]
        lines.append(f"| {rows[0]['class']} | " + " | ".join(figures) + " |")
    lines += ["", "| stage | seconds |", "|---|---|"]
    lines += [f"| {name} | {stage['seconds']:.0f}{_attempts(stage)} |" for name, stage in stages.items()]
    return "\n".join(lines) + "\n"
