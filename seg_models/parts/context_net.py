"""A dilated backbone, a context module and a head: what FCN, PSPNet and DeepLabV3 are, with other contexts.

Shapes: N batch, K classes, H W pixels, h w cells.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from seg_models.backbones.timm_backbone import Backbone
from seg_models.outputs import SegModel, SemanticOutput, SemanticTarget
from seg_models.parts.heads import ClassifierHead
from seg_models.parts.losses import cross_entropies


class ContextNet(SegModel):
    """Backbone, context, head; in training an auxiliary head on the level before the last.

    Args:
        context: features (N, C, h, w) of the last level to those that the head is given.
    """

    class_dependent: ClassVar[tuple[str, ...]] = ("head.classifier.", "aux_head.classifier.")

    def __init__(
        self,
        backbone: Backbone,
        *,
        context: nn.Module,
        head: ClassifierHead,
        aux_head: ClassifierHead | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.context = context
        self.head = head
        self.aux_head = aux_head
        self.num_classes = head.classifier.out_channels
        self.output_stride = backbone.strides[-1]

    def forward(self, images: Tensor) -> SemanticOutput:
        """(N, 3, H, W) images, uint8 or float in 0..255, to scores (N, K, h, w)."""
        features = self.backbone(images)
        logits = self.head(self.context(features[-1]))
        if self.aux_head is None or not self.training:
            return SemanticOutput(logits)
        return SemanticOutput(logits, aux=(self.aux_head(features[-2]),))

    def loss(self, output: SemanticOutput, target: SemanticTarget) -> dict[str, Tensor]:
        """`ce` of the head and, in training, `aux_ce` of the auxiliary head, both unweighted."""
        return cross_entropies(output, target)
