"""A backbone, a pyramid over its last four levels and the semantic branch over it: what SemFPN, VT-FPN and FaPN are.

Shapes: N batch, C channels, K classes, H W pixels, h w cells.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from seg_models.backbones.timm_backbone import Backbone
from seg_models.outputs import SegModel, SemanticOutput, SemanticTarget
from seg_models.parts.heads import Classifier
from seg_models.parts.losses import cross_entropies
from seg_models.parts.pyramid import ScaleHeads

NUM_LEVELS = 4


class PyramidNet(SegModel):
    """Backbone, pyramid, doublings and sum, classifier.

    Args:
        pyramid: one (N, C, h, w) per level, fine to coarse, to as many of one width.
        head: those to one map of the finest level's size.
    """

    class_dependent: ClassVar[tuple[str, ...]] = ("classifier.conv.",)

    def __init__(self, backbone: Backbone, *, pyramid: nn.Module, head: ScaleHeads, classifier: Classifier) -> None:
        super().__init__()
        self.backbone = backbone
        self.pyramid = pyramid
        self.head = head
        self.classifier = classifier
        self.num_classes = classifier.conv.out_channels
        self.output_stride = head.strides[0]

    def forward(self, images: Tensor) -> SemanticOutput:
        """(N, 3, H, W) images, uint8 or float in 0..255, to scores (N, K, h, w) of the finest level."""
        features = self.backbone(images)[-NUM_LEVELS:]
        return SemanticOutput(self.classifier(self.head(self.pyramid(features))))

    def loss(self, output: SemanticOutput, target: SemanticTarget) -> dict[str, Tensor]:
        """`ce` of the scores."""
        return cross_entropies(output, target)
