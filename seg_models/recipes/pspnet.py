"""Training settings of PSPNet.

Results quoted here are published by others and were not reproduced here unless a line says so.
"""

from __future__ import annotations

from collections.abc import Callable

from seg_models.recipes import shared
from seg_models.recipes.recipe import AugmentSpec, OptimizerSpec, Recipe


def pspnet_resnet50_cityscapes() -> Recipe:
    """PSPNet with a dilated ResNet-50 on Cityscapes, 19 classes.

    Source: mmsegmentation, pspnet_r50-d8_4xb2-80k_cityscapes-512x1024 (Zhao et al., CVPR 2017).
    Command: segray train job.toml with recipe = "pspnet_resnet50_cityscapes"; fetches timm's ImageNet weights.
    Cost: about half a day on 4 V100 (derived: mmsegmentation reports 0.83 s per step for ResNet-101).
    Result: published 78.55 mIoU on val, whole image, single scale; 79.79 with scales and flip. Not ours.
    """
    return shared.mmseg("pspnet_resnet50", crop=(512, 1024), steps=80_000, global_batch=8)


def pspnet_resnet50_voc() -> Recipe:
    """PSPNet with a dilated ResNet-50 on augmented Pascal VOC 2012, 21 classes.

    Source: PaddleSeg, pspnet_resnet50_os8_voc12aug_512x512_40k (specs: PSSL section 8).
    Command: segray train job.toml with recipe = "pspnet_resnet50_voc"; `init_from` a PSSL checkpoint for that arm.
    Cost: about 3 GPU-hours at 100 TFLOP/s sustained (derived from 178 GMAC per image).
    Result: published 80.76 mIoU on val, from stronger distilled ImageNet weights and a head of 1024 channels. Not ours.
    """
    return Recipe(
        model=shared.pretrained("pspnet_resnet50"),
        optimizer=OptimizerSpec(lr=0.01, weight_decay=4e-5),
        augment=AugmentSpec(crop=(512, 512), brightness=0.4, contrast=0.4, saturation=0.4),
        steps=40_000,
        global_batch=16,
    )


def pspnet_resnet50_pssl() -> Recipe:
    """Pre-training of a whole PSPNet on PSSL labels of ImageNet, 1001 classes.

    Source: the released settings of STDC-Seg and PP-LiteSeg (specs: PSSL section 7) with a poly schedule; PSPNet's own
    are not released. 66 725 steps of 96 images are 5 epochs of the 1 281 121 images.
    Command: segray train job.toml with recipe = "pspnet_resnet50_pssl"; fetches timm's ImageNet weights.
    Cost: about 5 GPU-hours at 100 TFLOP/s sustained (derived from 45 GMAC per image), loss of 1001 classes not counted.
    Result: none published for PSPNet beyond "improvements" after fine-tuning (arXiv 2207.03335). Not ours.
    """
    return shared.pssl(shared.pretrained("pspnet_resnet50"), crop=256, steps=66_725, global_batch=96)


def pspnet_mobilenetv2_camvid() -> Recipe:
    """A small PSPNet with MobileNetV2 on CamVid, 11 classes, for a machine without a GPU.

    Source: settings of our own.
    Command: segray train job.toml with recipe = "pspnet_mobilenetv2_camvid"; fetches timm's ImageNet weights.
    Cost: a few hours on 2 CPU cores. Result: none published.
    """
    return shared.camvid(shared.pretrained("pspnet_mobilenetv2"))


def pspnet_efficientnet_lite0_camvid() -> Recipe:
    """A small PSPNet with EfficientNet-Lite0 on CamVid, 11 classes, for a machine without a GPU.

    Source: settings of our own; real ImageNet weights from the extra `samples`, nothing is fetched.
    Command: segray train job.toml with recipe = "pspnet_efficientnet_lite0_camvid".
    Cost: about 40 minutes on 2 CPU cores (1.1 s per step). Result: none published.
    """
    return shared.camvid(shared.from_package("pspnet_efficientnet_lite0"))


def pspnet_mobilenetv2_pssl() -> Recipe:
    """Pre-training of a small PSPNet with MobileNetV2 on PSSL labels, for a machine without a GPU.

    Source: `pspnet_resnet50_pssl` with crops of 160 and fewer steps.
    Command: segray train job.toml with recipe = "pspnet_mobilenetv2_pssl"; fetches timm's ImageNet weights.
    Cost: about an hour on 2 CPU cores. Result: none published.
    """
    return shared.pssl(shared.pretrained("pspnet_mobilenetv2"), crop=160, steps=2_000, global_batch=8)


def pspnet_efficientnet_lite0_pssl() -> Recipe:
    """Pre-training of a small PSPNet with EfficientNet-Lite0 on PSSL labels, for a machine without a GPU.

    Source: `pspnet_resnet50_pssl` with crops of 160 and fewer steps; ImageNet weights from the extra `samples`.
    Command: segray train job.toml with recipe = "pspnet_efficientnet_lite0_pssl".
    Cost: about an hour on 2 CPU cores. Result: none published.
    """
    return shared.pssl(shared.from_package("pspnet_efficientnet_lite0"), crop=160, steps=2_000, global_batch=8)


RECIPES: tuple[Callable[[], Recipe], ...] = (
    pspnet_resnet50_cityscapes,
    pspnet_resnet50_voc,
    pspnet_resnet50_pssl,
    pspnet_mobilenetv2_camvid,
    pspnet_mobilenetv2_pssl,
    pspnet_efficientnet_lite0_camvid,
    pspnet_efficientnet_lite0_pssl,
)
