"""Training settings of DANet.

Results quoted here are published by others and were not reproduced here. Costs are derived: three times the
multiply-adds of prediction per image, at 100 TFLOP/s sustained.
"""

from __future__ import annotations

from collections.abc import Callable

from seg_models.recipes import shared
from seg_models.recipes.recipe import AugmentSpec, OptimizerSpec, Recipe


def danet_resnet50_cityscapes() -> Recipe:
    """DANet with a dilated ResNet-50 on Cityscapes, 19 classes.

    Source: mmsegmentation, danet_r50-d8_4xb2-40k_cityscapes-512x1024 (Fu et al., CVPR 2019).
    Command: segray train job.toml with recipe = "danet_resnet50_cityscapes"; fetches timm's ImageNet weights.
    Cost: about 2.5 GPU-hours (441 GMAC per image).
    Result: published 78.74 mIoU on val, whole image, single scale; 79.34 after 80 000 steps. Not ours.
    """
    return shared.mmseg("danet_resnet50", crop=(512, 1024), steps=40_000, global_batch=8)


def danet_resnet101_cityscapes() -> Recipe:
    """DANet with a dilated ResNet-101 on Cityscapes, 19 classes.

    Source: mmsegmentation, danet_r101-d8_4xb2-40k_cityscapes-512x1024 (Fu et al., CVPR 2019).
    Command: segray train job.toml with recipe = "danet_resnet101_cityscapes"; fetches timm's ImageNet weights.
    Cost: about 3.5 GPU-hours (596 GMAC per image).
    Result: published 80.52 mIoU on val, whole image, single scale; 80.41 after 80 000 steps. Not ours.
    """
    return shared.mmseg("danet_resnet101", crop=(512, 1024), steps=40_000, global_batch=8)


def danet_resnet101_official_cityscapes() -> Recipe:
    """The authors' released DANet with ResNet-101 and multi-grid on Cityscapes, 19 classes.

    Source: the training command of the authors' 2018 release (specs: DANet section 3): 240 epochs of the 2 975 images,
    crops of 768, all but the backbone at ten times its learning rate. Upsampling does not align corners.
    Command: segray train job.toml with recipe = "danet_resnet101_official_cityscapes"; fetches timm's ImageNet weights.
    Cost: about 8 GPU-hours (673 GMAC per image).
    Result: published 79.93 mIoU on val, windows of 768, single scale; 81.49 with scales and flip; 81.5 on test. Not
    ours.
    """
    return Recipe(
        model=shared.pretrained("danet_resnet101_official"),
        optimizer=OptimizerSpec(lr=0.003, weight_decay=1e-4, head_lr_factor=10.0),
        augment=AugmentSpec(crop=(768, 768), short_side=1024, blur=(0.0, 1.0), blur_share=0.5),
        steps=240 * (2_975 // 8),
        global_batch=8,
    )


def danet_resnet50_ade20k() -> Recipe:
    """DANet with a dilated ResNet-50 on ADE20K, 150 classes.

    Source: mmsegmentation, danet_r50-d8_4xb4-80k_ade20k-512x512 (Fu et al., CVPR 2019).
    Command: segray train job.toml with recipe = "danet_resnet50_ade20k"; fetches timm's ImageNet weights.
    Cost: about 4.5 GPU-hours (211 GMAC per image).
    Result: published 41.66 mIoU on val, single scale; 42.90 with scales and flip. Not ours.
    """
    return shared.mmseg("danet_resnet50", crop=(512, 512), short_side=512, steps=80_000, global_batch=16)


def danet_resnet101_ade20k() -> Recipe:
    """DANet with a dilated ResNet-101 on ADE20K, 150 classes.

    Source: mmsegmentation, danet_r101-d8_4xb4-160k_ade20k-512x512 (Fu et al., CVPR 2019).
    Command: segray train job.toml with recipe = "danet_resnet101_ade20k"; fetches timm's ImageNet weights.
    Cost: about 12.5 GPU-hours (289 GMAC per image).
    Result: published 44.17 mIoU on val, single scale; 45.02 with scales and flip. Not ours.
    """
    return shared.mmseg("danet_resnet101", crop=(512, 512), short_side=512, steps=160_000, global_batch=16)


def danet_resnet50_voc() -> Recipe:
    """DANet with a dilated ResNet-50 on augmented Pascal VOC 2012, 21 classes.

    Source: mmsegmentation, danet_r50-d8_4xb4-40k_voc12aug-512x512 (Fu et al., CVPR 2019).
    Command: segray train job.toml with recipe = "danet_resnet50_voc"; fetches timm's ImageNet weights.
    Cost: about 2.5 GPU-hours (211 GMAC per image).
    Result: published 76.37 mIoU on val, single scale; 77.29 with scales and flip. Not ours.
    """
    return shared.mmseg("danet_resnet50", crop=(512, 512), short_side=512, steps=40_000, global_batch=16)


def danet_resnet101_voc() -> Recipe:
    """DANet with a dilated ResNet-101 on augmented Pascal VOC 2012, 21 classes.

    Source: mmsegmentation, danet_r101-d8_4xb4-40k_voc12aug-512x512 (Fu et al., CVPR 2019).
    Command: segray train job.toml with recipe = "danet_resnet101_voc"; fetches timm's ImageNet weights.
    Cost: about 3 GPU-hours (288 GMAC per image).
    Result: published 76.51 mIoU on val, single scale; 77.32 with scales and flip. Not ours.
    """
    return shared.mmseg("danet_resnet101", crop=(512, 512), short_side=512, steps=40_000, global_batch=16)


RECIPES: tuple[Callable[[], Recipe], ...] = (
    danet_resnet50_cityscapes,
    danet_resnet101_cityscapes,
    danet_resnet101_official_cityscapes,
    danet_resnet50_ade20k,
    danet_resnet101_ade20k,
    danet_resnet50_voc,
    danet_resnet101_voc,
)
