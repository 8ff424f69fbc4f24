"""ResNets with one dilation for all blocks of a stage, as several released segmentation networks have them.

timm, mmsegmentation and PaddleSeg give the first block of a dilated stage the dilation of the stage before.
"""

from __future__ import annotations

from typing import Any

from timm.models.resnet import Bottleneck
from torch import nn

from seg_models.backbones.timm_backbone import Backbone


def dilate_as_released(backbone: Backbone) -> None:
    """Give the first block of each stage of a timm ResNet the dilation of its others, and let max-pooling round up.

    Raises:
        ValueError: the backbone is no ResNet of bottlenecks.
    """
    children = dict(backbone.network.named_children())
    pool, stages = children.get("maxpool"), [stage for name, stage in children.items() if name.startswith("layer")]
    blocks: list[Any] = [next(stage.children()) for stage in stages]
    if not isinstance(pool, nn.MaxPool2d) or not blocks or not all(isinstance(block, Bottleneck) for block in blocks):
        raise ValueError("released_dilation needs a ResNet of bottlenecks, such as resnet50c or resnet101s")
    pool.ceil_mode = True
    for block in blocks:
        block.conv2.dilation = block.conv2.padding = (block.dilation, block.dilation)
