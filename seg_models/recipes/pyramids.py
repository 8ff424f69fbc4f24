"""Training settings of the pyramids that CFT is compared with: VT-FPN, FaPN, AlignSeg.

Results quoted here are published by others and were not reproduced here. Costs are derived: three times the
multiply-adds of prediction per image, at 100 TFLOP/s sustained.
"""

from __future__ import annotations

from collections.abc import Callable

from seg_models.recipes import shared
from seg_models.recipes.cft import cft_efficientnet_lite0_camvid, cft_resnet50_ade20k
from seg_models.recipes.recipe import AugmentSpec, LossSpec, OptimizerSpec, Recipe, ScheduleSpec
from seg_models.spec import ModelSpec


def _detectron(*, milestones: tuple[float, ...]) -> ScheduleSpec:
    """detectron2's schedule: a warm-up of 1000 steps, then a tenth from every milestone on."""
    return ScheduleSpec(kind="milestones", milestones=milestones, warmup_steps=1000, warmup_factor=1e-3)


def vtfpn_resnet50_coco_stuff() -> Recipe:
    """VT-FPN with ResNet-50 on COCO-Stuff, 91 classes of stuff.

    Source: Wu et al., ICCV 2021, section 5.3: detectron2's recipe for semantic FPN, 1x, with batches of 32 and a
    learning rate of 0.04. Whole images of short sides from 640 to 800 become crops of 800×1216.
    Command: segray train job.toml with recipe = "vtfpn_resnet50_coco_stuff"; fetches timm's ImageNet weights.
    Cost: about 6 GPU-hours (122 GMAC per image).
    Result: published 41.00 mIoU on val (the feature pyramid in its place: 40.78). Not ours.
    """
    return Recipe(
        model=shared.pretrained("vtfpn_resnet50"),
        optimizer=OptimizerSpec(lr=0.04, weight_decay=1e-4),
        schedule=_detectron(milestones=(60_000 / 90_000, 80_000 / 90_000)),
        augment=AugmentSpec(crop=(800, 1216), short_side=800, scale=(0.8, 1.0)),
        steps=90_000,
        global_batch=32,
    )


def fapn_resnet50_cityscapes() -> Recipe:
    """FaPN with ResNet-50 on Cityscapes, 19 classes.

    Source: EMI-Group/FaPN, pointrend_semantic_R_50_FAN_1x_cityscapes. Scores are not refined at points and the limit
    on the largest class of a crop is left out.
    Command: segray train job.toml with recipe = "fapn_resnet50_cityscapes"; fetches timm's ImageNet weights.
    Cost: about 5 GPU-hours (143 GMAC per image).
    Result: published 80.0 mIoU on val, with PointRend (arXiv 2108.07058, authors' README). Not ours.
    """
    return _fapn_cityscapes("fapn_resnet50")


def fapn_resnet101_cityscapes() -> Recipe:
    """FaPN with ResNet-101 on Cityscapes, 19 classes.

    Source: EMI-Group/FaPN, pointrend_semantic_R_101_FAN_1x_cityscapes; otherwise as `fapn_resnet50_cityscapes`.
    Command: segray train job.toml with recipe = "fapn_resnet101_cityscapes"; fetches timm's ImageNet weights.
    Cost: about 6 GPU-hours (181 GMAC per image).
    Result: published 80.1 mIoU on val, with PointRend (arXiv 2108.07058, authors' README). Not ours.
    """
    return _fapn_cityscapes("fapn_resnet101")


def alignseg_resnet101_cityscapes() -> Recipe:
    """AlignSeg with ResNet-101 on Cityscapes, 19 classes.

    Source: speedinghzl/AlignSeg, run_local.sh and README, without hard pixels (and the Lovász loss that comes with
    them): crops of 872, the auxiliary loss at a tenth.
    Command: segray train job.toml with recipe = "alignseg_resnet101_cityscapes"; fetches timm's ImageNet weights.
    Cost: about 5 GPU-hours (323 GMAC per image).
    Result: published 80.3 mIoU on val, single scale (81.4 with hard pixels). Not ours.
    """
    return Recipe(
        model=shared.pretrained("alignseg_resnet101_official"),
        optimizer=OptimizerSpec(lr=0.01, weight_decay=5e-4),
        augment=AugmentSpec(crop=(872, 872), scale=(0.7, 2.1)),
        loss=LossSpec(aux_weight=0.1),
        steps=120_000,
        global_batch=8,
    )


def vtfpn_resnet50_ade20k() -> Recipe:
    """VT-FPN with ResNet-50 on ADE20K, 150 classes: a row of CFT's table 1.

    Source: the settings of `cft_resnet50_ade20k`, so that the rows differ in the network alone.
    Command: segray train job.toml with recipe = "vtfpn_resnet50_ade20k"; fetches timm's ImageNet weights.
    Cost: about 1.5 GPU-hours (33 GMAC per image).
    Result: the published figure is not in our source. Not ours.
    """
    return _like(cft_resnet50_ade20k(), shared.pretrained("vtfpn_resnet50"))


def fapn_resnet50_ade20k() -> Recipe:
    """FaPN with ResNet-50 on ADE20K, 150 classes: a row of CFT's table 1.

    Source: the settings of `cft_resnet50_ade20k`, so that the rows differ in the network alone.
    Command: segray train job.toml with recipe = "fapn_resnet50_ade20k"; fetches timm's ImageNet weights.
    Cost: about 3 GPU-hours (72 GMAC per image).
    Result: the published figure is not in our source. Not ours.
    """
    return _like(cft_resnet50_ade20k(), shared.pretrained("fapn_resnet50"))


def alignseg_resnet50_ade20k() -> Recipe:
    """AlignSeg with ResNet-50 on ADE20K, 150 classes: a row of CFT's table 1.

    Source: the settings of `cft_resnet50_ade20k`, so that the rows differ in the network alone.
    Command: segray train job.toml with recipe = "alignseg_resnet50_ade20k"; fetches timm's ImageNet weights.
    Cost: about 4 GPU-hours (86 GMAC per image).
    Result: published 45.95 mIoU on val as the best of all (arXiv 2003.00872, abstract; ResNet-101). Not ours.
    """
    return _like(cft_resnet50_ade20k(), shared.pretrained("alignseg_resnet50"))


def vtfpn_efficientnet_lite0_camvid() -> Recipe:
    """A small VT-FPN with EfficientNet-Lite0 on CamVid, 11 classes, for a machine without a GPU.

    Source: the settings of `cft_efficientnet_lite0_camvid`, our own; real ImageNet weights from the extra `samples`.
    Command: segray train job.toml with recipe = "vtfpn_efficientnet_lite0_camvid"; nothing is fetched.
    Cost: not measured. Result: none published.
    """
    return _like(cft_efficientnet_lite0_camvid(), shared.from_package("vtfpn_efficientnet_lite0"))


def fapn_efficientnet_lite0_camvid() -> Recipe:
    """A small FaPN with EfficientNet-Lite0 on CamVid, 11 classes, for a machine without a GPU.

    Source: the settings of `cft_efficientnet_lite0_camvid`, our own; real ImageNet weights from the extra `samples`.
    Command: segray train job.toml with recipe = "fapn_efficientnet_lite0_camvid"; nothing is fetched.
    Cost: not measured. Result: none published.
    """
    return _like(cft_efficientnet_lite0_camvid(), shared.from_package("fapn_efficientnet_lite0"))


def alignseg_efficientnet_lite0_camvid() -> Recipe:
    """A small AlignSeg with EfficientNet-Lite0 on CamVid, 11 classes, for a machine without a GPU.

    Source: the settings of `cft_efficientnet_lite0_camvid`, our own; real ImageNet weights from the extra `samples`.
    Command: segray train job.toml with recipe = "alignseg_efficientnet_lite0_camvid"; nothing is fetched.
    Cost: not measured. Result: none published.
    """
    return _like(cft_efficientnet_lite0_camvid(), shared.from_package("alignseg_efficientnet_lite0"))


def _fapn_cityscapes(name: str) -> Recipe:
    return Recipe(
        model=shared.pretrained(name),
        optimizer=OptimizerSpec(lr=0.01, weight_decay=1e-4),
        schedule=_detectron(milestones=(40_000 / 65_000, 55_000 / 65_000)),
        augment=AugmentSpec(crop=(512, 1024), short_side=1024, brightness=0.125, contrast=0.5, saturation=0.5),
        steps=65_000,
        global_batch=32,
    )


def _like(recipe: Recipe, model: ModelSpec) -> Recipe:
    """The same settings for another model."""
    return recipe.model_copy(update={"model": model})


RECIPES: tuple[Callable[[], Recipe], ...] = (
    vtfpn_resnet50_coco_stuff,
    vtfpn_resnet50_ade20k,
    vtfpn_efficientnet_lite0_camvid,
    fapn_resnet50_cityscapes,
    fapn_resnet101_cityscapes,
    fapn_resnet50_ade20k,
    fapn_efficientnet_lite0_camvid,
    alignseg_resnet101_cityscapes,
    alignseg_resnet50_ade20k,
    alignseg_efficientnet_lite0_camvid,
)
