"""Training settings of OCRNet on dilated ResNets.

Results quoted here are published by others and were not reproduced here. Costs are derived: three times the
multiply-adds of prediction per image, at 100 TFLOP/s sustained.
"""

from __future__ import annotations

from collections.abc import Callable

from seg_models.models import change_spec
from seg_models.recipes import shared
from seg_models.recipes.recipe import AugmentSpec, OptimizerSpec, Recipe


def ocrnet_resnet101_cityscapes() -> Recipe:
    """OCRNet with a dilated ResNet-101 on Cityscapes, 19 classes.

    Source: mmsegmentation, ocrnet_r101-d8_8xb2-80k_cityscapes-512x1024 (Yuan et al., ECCV 2020).
    Command: segray train job.toml with recipe = "ocrnet_resnet101_cityscapes"; fetches timm's ImageNet weights.
    Cost: about 10 GPU-hours (461 GMAC per crop of 512×1024).
    Result: published 80.81 mIoU on val, whole image, single scale; 80.30 after 40 000 steps. Not ours.
    """
    recipe = shared.mmseg("ocrnet_resnet101", crop=(512, 1024), steps=80_000, global_batch=16)
    return recipe.model_copy(update={"optimizer": OptimizerSpec(lr=0.02, weight_decay=5e-4)})


def ocrnet_resnet50_cityscapes() -> Recipe:
    """OCRNet with a dilated ResNet-50 on Cityscapes, 19 classes.

    Source: mmsegmentation's settings for ResNet-101 with batches of 8, ocrnet_r101-d8_4xb2-40k_cityscapes-512x1024, on
    its model ocrnet_r50-d8.
    Command: segray train job.toml with recipe = "ocrnet_resnet50_cityscapes"; fetches timm's ImageNet weights.
    Cost: about 1.5 GPU-hours (306 GMAC per crop of 512×1024).
    Result: none published for ResNet-50; 80.09 mIoU on val with ResNet-101. Not ours.
    """
    return shared.mmseg("ocrnet_resnet50", crop=(512, 1024), steps=40_000, global_batch=8)


def ocrnet_resnet101_official_ade20k() -> Recipe:
    """OCRNet with a dilated ResNet-101 on ADE20K, 150 classes: the authors' settings.

    Source: openseg.pytorch, scripts/ade20k/ocrnet/run_res101d8_ocr_ade20k with configs/ade20k/R_101_D_8. Its small
    changes of brightness and aspect are left out.
    Command: segray train job.toml with recipe = "ocrnet_resnet101_official_ade20k"; fetches timm's ImageNet weights.
    Cost: about 10 GPU-hours (249 GMAC per crop of 520).
    Result: published 45.28 mIoU on val with scales and flip (arXiv 1909.11065; quoted from memory). Not ours.
    """
    return Recipe(
        model=shared.pretrained("ocrnet_resnet101_official"),
        optimizer=OptimizerSpec(lr=0.02, weight_decay=1e-4),
        augment=AugmentSpec(crop=(520, 520), short_side=520),
        steps=150_000,
        global_batch=16,
    )


def ocrnet_resnet101_official_ade20k_masks() -> Recipe:
    """`ocrnet_resnet101_official_ade20k` with CFT's loss of category masks on the regions (CFT's table 3).

    Source: CFT's article has each network with the settings of its own paper; focal 5, dice 2 (specs: CFT section 2).
    Whether the cross-entropy of the regions stays is not said: here it does, `loss.aux_weight = 0` leaves it out.
    Command: segray train job.toml with recipe = "ocrnet_resnet101_official_ade20k_masks"; fetches timm's weights.
    Cost: about 10 GPU-hours (249 GMAC per crop of 520).
    Result: the published figure is not in our source. Not ours.
    """
    recipe = ocrnet_resnet101_official_ade20k()
    return recipe.model_copy(update={"model": change_spec(recipe.model, {"mask_loss": {}})})


def ocrnet_efficientnet_lite0_camvid() -> Recipe:
    """A small OCRNet with EfficientNet-Lite0 on CamVid, 11 classes, for a machine without a GPU.

    Source: settings of our own; real ImageNet weights from the extra `samples`, nothing is fetched.
    Command: segray train job.toml with recipe = "ocrnet_efficientnet_lite0_camvid".
    Cost: not measured. Result: none published.
    """
    return shared.camvid(shared.from_package("ocrnet_efficientnet_lite0"))


RECIPES: tuple[Callable[[], Recipe], ...] = (
    ocrnet_resnet50_cityscapes,
    ocrnet_resnet101_cityscapes,
    ocrnet_resnet101_official_ade20k,
    ocrnet_resnet101_official_ade20k_masks,
    ocrnet_efficientnet_lite0_camvid,
)
