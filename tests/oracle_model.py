"""A model that reads the class off the colour of a pixel, so that every metric of it is known exactly."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from pipelines.labels import LabelSpace
from seg_models.checkpoints import save_model
from seg_models.outputs import SegModel, SemanticOutput, SemanticTarget
from seg_models.spec import ModelSpec
from tests.tiny_data import COLORS, SPACE


class OracleSpec(ModelSpec):
    """The nearest of three colours."""

    arch: Literal["tests.oracle_model:OracleSpec"] = "tests.oracle_model:OracleSpec"
    answers: tuple[int, ...] = (0, 1, 2)
    """Class that is answered for ground, red and green."""
    sharpness: float = 1.0
    """Large: sure of everything; small: nearly equal probabilities."""

    def build(self, num_classes: int) -> Oracle:
        return Oracle(num_classes, answers=self.answers, sharpness=self.sharpness)


class Oracle(SegModel):
    """Scores are negative squared distances of a pixel to the colours."""

    class_dependent: ClassVar[tuple[str, ...]] = ()

    def __init__(self, num_classes: int, *, answers: tuple[int, ...], sharpness: float) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.answers, self.sharpness = answers, sharpness
        self.colors = nn.Parameter(torch.tensor(COLORS, dtype=torch.float32) / 255)

    def forward(self, images: Tensor) -> SemanticOutput:
        pixels = images.float() / 255
        distances = ((pixels[:, None] - self.colors[None, :, :, None, None]) ** 2).sum(2)
        scores = torch.full((len(images), self.num_classes, *images.shape[-2:]), -1e4, device=images.device)
        for color, answer in enumerate(self.answers):
            scores[:, answer] = torch.maximum(scores[:, answer], -self.sharpness * distances[:, color])
        return SemanticOutput(scores)

    def loss(self, output: SemanticOutput, target: SemanticTarget) -> dict[str, Tensor]:
        return {"ce": nn.functional.cross_entropy(output.logits, target.labels, ignore_index=target.void)}


def publish(folder: Path, *, spec: OracleSpec | None = None, space: LabelSpace = SPACE) -> str:
    """Write the model as a checkpoint; returns its folder."""
    spec = spec or OracleSpec()
    model = spec.build(space.num_classes)
    save_model(folder, model=model, spec=spec, label_space=space.model_dump(mode="json"), provenance={"step": 7})
    return str(folder)
