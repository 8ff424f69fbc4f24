"""Training settings of CCNet.

Results quoted here are published by others and were not reproduced here unless a line says so. Hours are derived from
multiply-adds at 100 TFLOP/s sustained.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from seg_models.models import change_spec
from seg_models.recipes import shared
from seg_models.recipes.recipe import AugmentSpec, LossSpec, OhemSpec, OptimizerSpec, Recipe
from seg_models.spec import preset

TIMM_INPUT = {"pretrained": True, "mean": None, "std": None}
"""timm's weights of the official backbone, with the means and deviations that they were trained with."""


def ccnet_resnet101_cityscapes() -> Recipe:
    """CCNet as released on Cityscapes, 19 classes, R = 2.

    Source: speedinghzl/CCNet, run_local.sh (weight decay 5e-4; its README says 1e-4) with the 60 000 steps of the
    table; scales 0.7 to 2.1. The authors begin with MIT's ImageNet weights and subtract BGR means; here both are
    timm's for the same network.
    Command: segray train job.toml with recipe = "ccnet_resnet101_cityscapes"; fetches timm's ImageNet weights.
    Cost: about 6 GPU-hours (derived from 698 GMAC per crop of 769).
    Result: published 79.8 mIoU on val, single scale; reruns of the authors 78.4 to 79.7, on test 81.9. Not ours.
    """
    return _official({"backbone": TIMM_INPUT})


def ccnet_resnet101_cityscapes_ohem() -> Recipe:
    """The same with hard pixels only in the main loss.

    Source: speedinghzl/CCNet, `--ohem 1` (threshold 0.7, at least 100 000 pixels of the two images of a GPU). The
    released code looks for its threshold in a map zoomed to an eighth, ours in every eighth pixel of every eighth row.
    Command: segray train job.toml with recipe = "ccnet_resnet101_cityscapes_ohem"; fetches timm's ImageNet weights.
    Cost: about 6 GPU-hours (derived from 698 GMAC per crop of 769), mining not counted.
    Result: published 78.67, 80.00 and 79.83 mIoU on val in three runs of the authors. Not ours.
    """
    ohem = OhemSpec(threshold=0.7, min_kept=50_000, sample_every=8)
    return _official({"backbone": TIMM_INPUT}).model_copy(update={"loss": LossSpec(ohem=ohem)})


def ccnet_resnet101_cityscapes_consistent() -> Recipe:
    """The same with the category-consistent loss.

    Source: TPAMI 2020, section 3.4 (δ_v = 0.5, δ_d = 1.5, weights 1, 1, 0.001); no code of it was released. It is
    warmed up over the first 3 000 steps, since a user of it reports unstable training (speedinghzl/CCNet, issue 104).
    Command: segray train job.toml with recipe = "ccnet_resnet101_cityscapes_consistent"; fetches timm's weights.
    Cost: about 6 GPU-hours (derived from 698 GMAC per crop of 769).
    Result: published about 0.7 mIoU above the same network without the loss. Not ours.
    """
    return _official({"backbone": TIMM_INPUT, "consistency": {"warmup": 3_000}})


def ccnet_resnet50_cityscapes() -> Recipe:
    """CCNet with a dilated ResNet-50 on Cityscapes, 19 classes.

    Source: mmsegmentation, ccnet_r50-d8_4xb2-80k_cityscapes-512x1024.
    Command: segray train job.toml with recipe = "ccnet_resnet50_cityscapes"; fetches timm's ImageNet weights.
    Cost: about 5 GPU-hours (derived from 422 GMAC per crop of 512×1024).
    Result: published 79.03 mIoU on val, whole image, single scale; 80.16 with scales and flip. Not ours.
    """
    return shared.mmseg("ccnet_resnet50", crop=(512, 1024), steps=80_000, global_batch=8)


def ccnet_resnet101_cityscapes_mmseg() -> Recipe:
    """CCNet with a dilated ResNet-101 on Cityscapes, 19 classes, without what is special in the released code.

    Source: mmsegmentation, ccnet_r101-d8_4xb2-80k_cityscapes-512x1024; see `ccnet_resnet50_cityscapes`.
    Command: segray train job.toml with recipe = "ccnet_resnet101_cityscapes_mmseg"; fetches timm's ImageNet weights.
    Cost: about 6 GPU-hours (derived from 577 GMAC per crop of 512×1024).
    Result: published 78.87 mIoU on val, whole image, single scale; 79.90 with scales and flip. Not ours.
    """
    return shared.mmseg("ccnet_resnet101", crop=(512, 1024), steps=80_000, global_batch=8)


def ccnet_resnet50_ade20k() -> Recipe:
    """CCNet with a dilated ResNet-50 on ADE20K, 150 classes.

    Source: mmsegmentation, ccnet_r50-d8_4xb4-160k_ade20k-512x512; see `ccnet_resnet50_cityscapes`.
    Command: segray train job.toml with recipe = "ccnet_resnet50_ade20k"; fetches timm's ImageNet weights.
    Cost: about 9 GPU-hours (derived from 211 GMAC per crop of 512).
    Result: published 42.08 mIoU on val, single scale; 43.13 with scales and flip. Not ours.
    """
    return shared.mmseg("ccnet_resnet50", crop=(512, 512), short_side=512, steps=160_000, global_batch=16)


def ccnet_resnet101_ade20k() -> Recipe:
    """CCNet with a dilated ResNet-101 on ADE20K, 150 classes.

    Source: mmsegmentation, ccnet_r101-d8_4xb4-80k_ade20k-512x512; see `ccnet_resnet50_cityscapes`.
    Command: segray train job.toml with recipe = "ccnet_resnet101_ade20k"; fetches timm's ImageNet weights.
    Cost: about 6 GPU-hours (derived from 288 GMAC per crop of 512).
    Result: published 43.97 mIoU on val, single scale; 45.13 with scales and flip. Not ours.
    """
    return shared.mmseg("ccnet_resnet101", crop=(512, 512), short_side=512, steps=80_000, global_batch=16)


def ccnet_resnet50_voc() -> Recipe:
    """CCNet with a dilated ResNet-50 on augmented Pascal VOC 2012, 21 classes.

    Source: mmsegmentation, ccnet_r50-d8_4xb4-20k_voc12aug-512x512; see `ccnet_resnet50_cityscapes`.
    Command: segray train job.toml with recipe = "ccnet_resnet50_voc"; `init_from` a PSSL checkpoint for that arm.
    Cost: about 1 GPU-hour (derived from 211 GMAC per crop of 512).
    Result: published 76.17 mIoU on val, single scale; 77.51 with scales and flip. Not ours.
    """
    return shared.mmseg("ccnet_resnet50", crop=(512, 512), short_side=512, steps=20_000, global_batch=16)


def ccnet_resnet50_pssl() -> Recipe:
    """Pre-training of a whole CCNet on PSSL labels of ImageNet, 1001 classes.

    Source: the settings of `pspnet_resnet50_pssl`: 66 725 steps of 96 images are 5 epochs.
    Command: segray train job.toml with recipe = "ccnet_resnet50_pssl"; fetches timm's ImageNet weights.
    Cost: about 6 GPU-hours (derived from 53 GMAC per crop of 256), loss of 1001 classes not counted.
    Result: none published for CCNet.
    """
    return shared.pssl(shared.pretrained("ccnet_resnet50"), crop=256, steps=66_725, global_batch=96)


def ccnet_efficientnet_lite0_camvid() -> Recipe:
    """A small CCNet with EfficientNet-Lite0 on CamVid, 11 classes, for a machine without a GPU.

    Source: settings of our own; real ImageNet weights from the extra `samples`, nothing is fetched.
    Command: segray train job.toml with recipe = "ccnet_efficientnet_lite0_camvid".
    Cost: about an hour on 2 CPU cores. Result: none published.
    """
    return shared.camvid(shared.from_package("ccnet_efficientnet_lite0"))


def ccnet_efficientnet_lite0_pssl() -> Recipe:
    """Pre-training of a small CCNet with EfficientNet-Lite0 on PSSL labels, for a machine without a GPU.

    Source: `ccnet_resnet50_pssl` with crops of 160 and fewer steps; ImageNet weights from the extra `samples`.
    Command: segray train job.toml with recipe = "ccnet_efficientnet_lite0_pssl".
    Cost: about an hour on 2 CPU cores. Result: none published.
    """
    return shared.pssl(shared.from_package("ccnet_efficientnet_lite0"), crop=160, steps=2_000, global_batch=8)


def _official(changes: dict[str, Any]) -> Recipe:
    """The released script on Cityscapes."""
    return Recipe(
        model=change_spec(preset("ccnet_resnet101_official"), changes),
        optimizer=OptimizerSpec(lr=0.01, weight_decay=5e-4),
        augment=AugmentSpec(crop=(769, 769), scale=(0.7, 2.1)),
        steps=60_000,
        global_batch=8,
    )


RECIPES: tuple[Callable[[], Recipe], ...] = (
    ccnet_resnet101_cityscapes,
    ccnet_resnet101_cityscapes_ohem,
    ccnet_resnet101_cityscapes_consistent,
    ccnet_resnet50_cityscapes,
    ccnet_resnet101_cityscapes_mmseg,
    ccnet_resnet50_ade20k,
    ccnet_resnet101_ade20k,
    ccnet_resnet50_voc,
    ccnet_resnet50_pssl,
    ccnet_efficientnet_lite0_camvid,
    ccnet_efficientnet_lite0_pssl,
)
