"""Training settings of CondNet.

Results quoted here are published by others and were not reproduced here. Costs are derived: three times the
multiply-adds of prediction per image, at 100 TFLOP/s sustained. A batch of 16 is assumed,
mmsegmentation's for these data sets.
"""

from __future__ import annotations

from collections.abc import Callable

from seg_models.models import change_spec
from seg_models.recipes import shared
from seg_models.recipes.recipe import OptimizerSpec, Recipe


def condnet_resnet50_ade20k() -> Recipe:
    """CondNet with a dilated ResNet-50 on ADE20K, 150 classes.

    Source: the authors' condnet_r50-d8_512x512_160k_ade20k (Yu et al., IEEE SPL 2021).
    Command: segray train job.toml with recipe = "condnet_resnet50_ade20k"; fetches timm's ImageNet weights.
    Cost: about 7.5 GPU-hours (181 GMAC per crop of 512).
    Result: published 43.68 mIoU on val, single scale; 44.30 with scales and flip. Not ours.
    """
    return shared.mmseg("condnet_resnet50", crop=(512, 512), short_side=512, steps=160_000, global_batch=16)


def condnet_resnet101_ade20k() -> Recipe:
    """CondNet with a dilated ResNet-101 on ADE20K, 150 classes.

    Source: the authors' condnet_r101-d8_512x512_160k_ade20k (Yu et al., IEEE SPL 2021).
    Command: segray train job.toml with recipe = "condnet_resnet101_ade20k"; fetches timm's ImageNet weights.
    Cost: about 11 GPU-hours (258 GMAC per crop of 512).
    Result: published 45.64 mIoU on val, windows of 512, single scale; 47.12 with scales and flip. Not ours.
    """
    return shared.mmseg("condnet_resnet101", crop=(512, 512), short_side=512, steps=160_000, global_batch=16)


def condnet_resnet101_ade20k_masks() -> Recipe:
    """`condnet_resnet101_ade20k` with CFT's loss of category masks on the guidance (CFT's table 3).

    Source: CFT's article has each network with the settings of its own paper; focal 5, dice 2 (specs: CFT section 2).
    Whether the Dice loss of the guidance stays is not said: here it does, `model.guidance_weight = 0` leaves it out.
    Command: segray train job.toml with recipe = "condnet_resnet101_ade20k_masks"; fetches timm's ImageNet weights.
    Cost: about 11 GPU-hours (258 GMAC per crop of 512).
    Result: the published figure is not in our source. Not ours.
    """
    recipe = condnet_resnet101_ade20k()
    return recipe.model_copy(update={"model": change_spec(recipe.model, {"mask_loss": {}})})


def condnet_resnet101_pascal_context() -> Recipe:
    """CondNet with a dilated ResNet-101 on Pascal-Context, 59 classes; the heads learn at ten times the rate.

    Source: the authors' condnet_r101-d8_headlrx10_lr1e-3_480x480_80k_pascal_context_59 (Yu et al., IEEE SPL 2021). The
    backbone's rate falls to 1e-5 instead of 1e-4, a hundredth like that of the heads.
    Command: segray train job.toml with recipe = "condnet_resnet101_pascal_context"; fetches timm's ImageNet weights.
    Cost: about 5 GPU-hours (225 GMAC per crop of 480).
    Result: published 54.29 mIoU on val, windows of 480, single scale; 55.74 with scales and flip. Not ours.
    """
    recipe = shared.mmseg("condnet_resnet101", crop=(480, 480), short_side=520, steps=80_000, global_batch=16)
    optimizer = OptimizerSpec(lr=0.001, weight_decay=1e-4, head_lr_factor=10.0)
    return recipe.model_copy(update={"optimizer": optimizer})


def condnet_efficientnet_lite0_camvid() -> Recipe:
    """A small CondNet with EfficientNet-Lite0 on CamVid, 11 classes, for a machine without a GPU.

    Source: settings of our own; real ImageNet weights from the extra `samples`, nothing is fetched.
    Command: segray train job.toml with recipe = "condnet_efficientnet_lite0_camvid".
    Cost: not measured. Result: none published.
    """
    return shared.camvid(shared.from_package("condnet_efficientnet_lite0"))


RECIPES: tuple[Callable[[], Recipe], ...] = (
    condnet_resnet50_ade20k,
    condnet_resnet101_ade20k,
    condnet_resnet101_ade20k_masks,
    condnet_resnet101_pascal_context,
    condnet_efficientnet_lite0_camvid,
)
