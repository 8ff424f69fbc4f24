"""Training settings of the plain networks others are compared with: FCN, DeepLabV3, DeepLabV3+.

Results quoted here are published by others and were not reproduced here unless a line says so.
"""

from __future__ import annotations

from collections.abc import Callable

from seg_models.recipes import shared
from seg_models.recipes.recipe import Recipe


def fcn_resnet50_cityscapes() -> Recipe:
    """FCN with a dilated ResNet-50 on Cityscapes, 19 classes.

    Source: mmsegmentation, fcn_r50-d8_4xb2-80k_cityscapes-512x1024. Its head
    has one 3×3 convolution and a skip more than ours.
    Command: segray train job.toml with recipe = "fcn_resnet50_cityscapes"; fetches timm's ImageNet weights.
    Cost: about 3 GPU-hours at 100 TFLOP/s sustained (derived from 277 GMAC per image).
    Result: published 73.61 mIoU on val, whole image, single scale; 74.24 with scales and flip. Not ours.
    """
    return shared.mmseg("fcn_resnet50", crop=(512, 1024), steps=80_000, global_batch=8)


def deeplabv3_resnet50_cityscapes() -> Recipe:
    """DeepLabV3 with a dilated ResNet-50 on Cityscapes, 19 classes.

    Source: mmsegmentation, deeplabv3_r50-d8_4xb2-80k_cityscapes-512x1024. Its
    branches have 512 channels without projection.
    Command: segray train job.toml with recipe = "deeplabv3_resnet50_cityscapes"; fetches timm's ImageNet weights.
    Cost: about 3 GPU-hours at 100 TFLOP/s sustained (derived from 330 GMAC per image).
    Result: published 79.32 mIoU on val, whole image, single scale. Not ours.
    """
    return shared.mmseg("deeplabv3_resnet50", crop=(512, 1024), steps=80_000, global_batch=8)


def deeplabv3plus_resnet50_cityscapes() -> Recipe:
    """DeepLabV3+ with ResNet-50 on Cityscapes, 19 classes.

    Source: mmsegmentation, deeplabv3plus_r50-d8_4xb2-80k_cityscapes-512x1024. Hue jitter is left
    out; its stride is 8, its branches have 512 channels, and it has an auxiliary head.
    Command: segray train job.toml with recipe = "deeplabv3plus_resnet50_cityscapes"; fetches timm's ImageNet weights.
    Cost: about 1 GPU-hour at 100 TFLOP/s sustained (derived from the multiply-adds).
    Result: published 80.09 mIoU on val, whole image, single scale; 81.13 with scales and flip. Not ours.
    """
    return shared.mmseg("deeplabv3plus_resnet50", crop=(512, 1024), steps=80_000, global_batch=8)


RECIPES: tuple[Callable[[], Recipe], ...] = (
    fcn_resnet50_cityscapes,
    deeplabv3_resnet50_cityscapes,
    deeplabv3plus_resnet50_cityscapes,
)
