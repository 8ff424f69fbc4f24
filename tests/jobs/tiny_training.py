"""Training runs that take a second: a tiny network, a tiny recipe, a plan."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from jobs.training.loop import train
from jobs.training.plan import TrainPlan, Worker, run_identity
from pipelines.centroids_worker import CentroidShard, CentroidWorker, join_centroids
from pipelines.samples import SampleIndex
from seg_models.outputs import SegModel, SemanticOutput, SemanticTarget
from seg_models.recipes.recipe import AugmentSpec, OptimizerSpec, Recipe
from seg_models.spec import ModelSpec

CPU = torch.device("cpu")
TINY_PSPNET: dict[str, Any] = {
    "arch": "pspnet",
    "backbone": {
        "name": "resnet10t",
        "output_stride": 8,
        "model_kwargs": {"channels": (8, 16, 16, 24), "stem_width": 8},
    },
    "bins": (1, 2),
    "head_channels": 16,
    "aux_channels": 8,
}


class TinySpec(ModelSpec):
    """Two convolutions."""

    arch: Literal["tests.jobs.tiny_training:TinySpec"] = "tests.jobs.tiny_training:TinySpec"
    width: int = 8
    norm: bool = False
    dropout: float = 0.0
    aux: bool = False
    """Name a second loss, equal to the first."""
    pause_s: float = 0.0
    """Seconds a forward pass rests, for tests that interfere with a run."""
    pause_while: str | None = None
    """A file; passes rest only while it exists."""

    def build(self, num_classes: int) -> SegModel:
        return Tiny(self, num_classes)


class Tiny(SegModel):
    class_dependent: ClassVar[tuple[str, ...]] = ("head.",)

    def __init__(self, spec: TinySpec, num_classes: int) -> None:
        super().__init__()
        self.spec, self.num_classes = spec, num_classes
        self.backbone = nn.Conv2d(3, spec.width, 3, padding=1)
        self.norm = nn.BatchNorm2d(spec.width) if spec.norm else nn.Identity()
        self.dropout = nn.Dropout(spec.dropout)
        self.head = nn.Conv2d(spec.width, num_classes, 1)

    def forward(self, images: Tensor) -> SemanticOutput:
        if self.spec.pause_s:  # a compiler cannot look into it
            _rest(self.spec)
        features = self.backbone(images.float() / 255 - 0.5)
        return SemanticOutput(self.head(self.dropout(torch.relu(self.norm(features)))))

    def loss(self, output: SemanticOutput, target: SemanticTarget) -> dict[str, Tensor]:
        ce = nn.functional.cross_entropy(
            output.logits, target.labels, weight=target.class_weights, ignore_index=target.void
        )
        return {"ce": ce, "aux_ce": ce} if self.spec.aux else {"ce": ce}


def _rest(spec: TinySpec) -> None:
    if spec.pause_while is None or Path(spec.pause_while).exists():
        time.sleep(spec.pause_s)


def tiny_recipe(**changes: Any) -> Recipe:
    """Six steps of four 24 × 24 crops."""
    settings: dict[str, Any] = {
        "model": TinySpec(),
        "optimizer": OptimizerSpec(lr=0.05),
        "augment": AugmentSpec(crop=(24, 24), scale=(1.0, 1.2)),
        "steps": 6,
        "global_batch": 4,
        "lanes": 4,
    }
    return Recipe(**(settings | changes))


def plan_of(index: SampleIndex, run: Path | str, recipe: Recipe, **changes: Any) -> TrainPlan:
    """A plan that logs every second step."""
    identity = run_identity(recipe, index, init_from=changes.get("init_from"))
    settings: dict[str, Any] = {"checkpoint_every": 3, "log_every": 2, "data_threads": 1}
    return TrainPlan(run=str(run), recipe=recipe, index=index, identity=identity, **(settings | changes))


def with_centroids(index: SampleIndex, *, tile_px: int) -> SampleIndex:
    """The index with its centroids, found in this process."""
    worker = CentroidWorker(tile_px=tile_px, num_classes=index.label_space.num_classes)
    found = {place: worker(CentroidShard(*shard.labels)) for place, shard in enumerate(index.shards)}
    return dataclasses.replace(index, centroids=join_centroids(index, found))


def train_alone(plan: TrainPlan) -> tuple[SegModel, dict[str, Any]]:
    """Train in this process."""
    return train(plan, Worker(rank=0, world=1, device=CPU))


def train_as_rank(rank: int, world: int, plan: TrainPlan) -> dict[str, Tensor]:
    """Train as a member of a group; the weights."""
    model, _ = train(plan, Worker(rank=rank, world=world, device=CPU))
    return dict(model.state_dict())
