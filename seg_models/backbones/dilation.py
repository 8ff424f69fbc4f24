"""Dilations inside the stages of a ResNet that published networks have and timm does not."""

from __future__ import annotations

from typing import Any

from timm.models.resnet import Bottleneck
from torch import nn

from seg_models.backbones.timm_backbone import Backbone


def set_multi_grid(backbone: Backbone, dilations: tuple[int, ...]) -> None:
    """Give block b of the last stage the dilation `dilations[b mod len(dilations)]`; sizes and weights stay.

    Every convolution of the block that sees more than one cell is dilated: in a bottleneck the middle one. DANet's and
    PyTorch-Encoding's ResNets count dilations so, absolutely and not as factors of the stage's own.

    Raises:
        ValueError: the backbone is not a ResNet, or its last stage is not dilated.
    """
    stage = getattr(backbone.network, "layer4", None)
    if not isinstance(stage, nn.Sequential):
        raise ValueError(f"multi_grid {dilations} needs a backbone with stages layer1 to layer4: choose a ResNet")
    if backbone.strides[-1] != backbone.strides[-2]:
        raise ValueError(
            f"multi_grid {dilations} needs a backbone whose last stage is dilated: set output_stride to 8 or 16, "
            f"found {backbone.strides[-1]}"
        )
    for number, block in enumerate(stage):
        for module in block.modules():
            if isinstance(module, nn.Conv2d) and module.kernel_size != (1, 1):
                module.dilation = module.padding = 2 * (dilations[number % len(dilations)],)


def dilate_as_released(backbone: Backbone) -> None:
    """`dilate_whole_stages`, and let max-pooling round up.

    Raises:
        ValueError: the backbone is no ResNet of bottlenecks.
    """
    dilate_whole_stages(backbone)
    pool = backbone.network.get_submodule("maxpool")
    assert isinstance(pool, nn.MaxPool2d)
    pool.ceil_mode = True


def dilate_whole_stages(backbone: Backbone) -> None:
    """Give the first block of each stage of a timm ResNet the dilation of its others, and let its shortcut not pool.

    timm and mmsegmentation give the first block of a dilated stage the dilation of the stage before, and timm pools in
    the shortcut of a ResNet-D there too, with stride 1.

    Raises:
        ValueError: the backbone is no ResNet of bottlenecks.
    """
    children = dict(backbone.network.named_children())
    pool, stages = children.get("maxpool"), [stage for name, stage in children.items() if name.startswith("layer")]
    blocks: list[Any] = [next(stage.children()) for stage in stages]
    if not isinstance(pool, nn.MaxPool2d) or not blocks or not all(isinstance(block, Bottleneck) for block in blocks):
        raise ValueError("released_dilation needs a ResNet of bottlenecks, such as resnet50c or resnet101s")
    for block in blocks:
        block.conv2.dilation = block.conv2.padding = (block.dilation, block.dilation)
        shortcut = block.downsample
        if shortcut is not None and isinstance(shortcut[0], nn.AvgPool2d) and shortcut[0].stride in (1, (1, 1)):
            shortcut[0] = nn.Identity()


def dilate_stages(backbone: Backbone, dilations: tuple[int, int]) -> None:
    """Dilate the 3×3 convolutions of a ResNet's last two stages and leave their strides; first blocks by half.

    Raises:
        ValueError: not a ResNet of bottleneck blocks.
    """
    for name, dilation in zip(("layer3", "layer4"), dilations, strict=True):
        stage = getattr(backbone.network, name, None)
        if stage is None or not hasattr(stage[0], "conv3"):
            raise ValueError("strided_dilations needs a ResNet of bottleneck blocks, such as resnet50c")
        for number, block in enumerate(stage):
            rate = max(1, dilation // 2) if number == 0 else dilation
            block.conv2.dilation = block.conv2.padding = (rate, rate)
