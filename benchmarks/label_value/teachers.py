"""A Cityscapes network that says CamVid's classes.

Shapes: N batch, C classes of the inner network, K classes of CamVid, h w cells.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.real_teachers import CITYSCAPES, camvid_of_cityscapes, publish_espnet, publish_graph
from pipelines.labels import LabelSpace
from seg_models.checkpoints import load_model, save_model
from seg_models.outputs import SegModel, SemanticOutput, SemanticTarget
from seg_models.predictor import PredictorSpec
from seg_models.spec import AnyModelSpec, ModelSpec

TEACHERS = {
    "deeplab_edgetpu_slim_cityscapes19_513": PredictorSpec(size=(513, 513), flip=True),
    "espnetv2_s_2.0_city_1024x512": PredictorSpec(size=(512, 1024), flip=True),
}
"""How each looks at a frame; the graph takes no other size."""


class MergedSpec(ModelSpec):
    """A network whose classes are groups of another one's."""

    arch: Literal["benchmarks.label_value.teachers:MergedSpec"] = "benchmarks.label_value.teachers:MergedSpec"
    inner: AnyModelSpec
    groups: tuple[int, ...]
    """For each class of the inner network the class it belongs to."""

    def build(self, num_classes: int) -> Merged:
        """The network; `num_classes` is the number of groups."""
        return Merged(self.inner.build(len(self.groups)), groups=self.groups, num_classes=num_classes)


class Merged(SegModel):
    """Adds up the probabilities of the classes of a group: log of the sum of exponentials of their scores."""

    class_dependent: ClassVar[tuple[str, ...]] = ()

    def __init__(self, inner: SegModel, *, groups: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        self.inner, self.groups, self.num_classes = inner, torch.tensor(groups), num_classes
        self.output_stride = inner.output_stride

    def forward(self, images: Tensor) -> SemanticOutput:
        """(N, C, h, w) scores to (N, K, h, w)."""
        scores = self.inner(images).logits
        merged = [scores[:, self.groups == group].logsumexp(1) for group in range(self.num_classes)]
        return SemanticOutput(torch.stack(merged, dim=1))

    def loss(self, output: SemanticOutput, target: SemanticTarget) -> dict[str, Tensor]:
        """Cross-entropy at the size of the scores."""
        return {"ce": functional.cross_entropy(output.logits, target.labels, ignore_index=target.void)}


def publish_merged(folder: Path, *, name: str, data: Path, space: LabelSpace) -> str:
    """Publish a Cityscapes network of the real data with the classes of CamVid; the checkpoint's folder.

    Args:
        name: one of `TEACHERS`.
        data: the folder of the real data.
        space: CamVid's classes.
    """
    publish = publish_espnet if name.startswith("espnet") else publish_graph
    loaded = load_model(publish(folder / "inner", name=name, shared_data=data, space=CITYSCAPES))
    groups = tuple(int(group) for group in camvid_of_cityscapes(space))
    spec = MergedSpec(inner=loaded.spec, groups=groups)
    model = Merged(loaded.model, groups=groups, num_classes=space.num_classes)
    save_model(folder / "model", model=model, spec=spec, label_space=space.model_dump(mode="json"))
    return str(folder / "model")
