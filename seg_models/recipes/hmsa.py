"""Training settings of HRNet-OCR and of hierarchical multi-scale attention.

Results quoted here are published by others and were not reproduced here unless a line says so.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from seg_models.models import change_spec
from seg_models.recipes import shared
from seg_models.recipes.recipe import AugmentSpec, LossSpec, OptimizerSpec, Recipe, ScheduleSpec
from seg_models.spec import preset

PRETRAINED: dict[str, Any] = {"backbone": {"pretrained": True}}


def hrnet_ocr_w48_cityscapes() -> Recipe:
    """HRNetV2-W48 with object context on Cityscapes, 19 classes.

    Source: HRNet-Semantic-Segmentation, branch HRNet-OCR, seg_hrnet_ocr_w48_train_512x1024 (484 epochs of batches of
    12). Its class weights are left out, and corners are not aligned.
    Command: segray train job.toml with recipe = "hrnet_ocr_w48_cityscapes"; fetches timm's ImageNet weights.
    Cost: about 4 days on 4 V100 (derived from 324.5 GMAC per crop at 25 TFLOP/s sustained each).
    Result: published 81.6 mIoU on val, whole image, single scale (80.9 without object context). Not ours.
    """
    return Recipe(
        model=change_spec(preset("hrnet_ocr_w48"), PRETRAINED),
        optimizer=OptimizerSpec(lr=0.01, weight_decay=5e-4),
        augment=AugmentSpec(crop=(512, 1024)),
        loss=LossSpec(aux_weight=0.4),
        steps=120_000,
        global_batch=12,
    )


def hmsa_w48_cityscapes() -> Recipe:
    """HMSA around HRNet-OCR on Cityscapes fine, 19 classes.

    Source: NVIDIA/semantic-segmentation, scripts/train_cityscapes.yml (Tao et al., arXiv 2005.10821), 175 epochs of
    batches of 8. It starts from weights trained on Mapillary (`init_from`), and draws half of its crops so that all
    classes are met equally; hue jitter is left out.
    Command: segray train job.toml with recipe = "hmsa_w48_cityscapes"; fetches timm's ImageNet weights.
    Cost: about 4 days on 8 A100 (derived from 1912 GMAC per image and pair at 60 TFLOP/s sustained each).
    Result: published 84.7 mIoU on val with fine labels only, scales 0.5, 1, 2; 85.4 on test with auto-labels. Not ours.
    """
    return Recipe(
        model=change_spec(preset("hmsa_w48"), {"inner": PRETRAINED}),
        optimizer=OptimizerSpec(lr=5e-3, weight_decay=1e-4),
        schedule=ScheduleSpec(power=2.0, per="epoch"),
        augment=AugmentSpec(crop=(1024, 2048), brightness=0.25, contrast=0.25, saturation=0.25),
        loss=LossSpec(aux_weight=0.4),
        steps=65_078,
        global_batch=8,
    )


def hmsa_w48_mapillary() -> Recipe:
    """HMSA around HRNet-OCR on Mapillary Vistas, 65 classes.

    Source: NVIDIA/semantic-segmentation, scripts/train_mapillary.yml, 200 epochs of the 18 000 images in batches of 16,
    no losses of single scales. Images are brought to a long side of 2177 there; the short side of 1633 here is that of
    a picture of 4:3. Gaussian blur and hue jitter are left out.
    Command: segray train job.toml with recipe = "hmsa_w48_mapillary"; fetches timm's ImageNet weights.
    Cost: about 12 days on 8 A100 (derived from 965 GMAC per crop and pair at 60 TFLOP/s sustained each).
    Result: published 61.05 mIoU on val with scales 0.25, 0.5, 1, 2 and mirroring. Not ours.
    """
    return Recipe(
        model=change_spec(preset("hmsa_w48"), {"inner": PRETRAINED, "supervised_weight": 0.0}),
        optimizer=OptimizerSpec(lr=5e-3, weight_decay=1e-4),
        schedule=ScheduleSpec(power=1.0, per="epoch"),
        augment=AugmentSpec(crop=(1024, 1024), short_side=1633, brightness=0.25, contrast=0.25, saturation=0.25),
        loss=LossSpec(aux_weight=0.4),
        steps=225_000,
        global_batch=16,
    )


def hrnet_ocr_w18_small_camvid() -> Recipe:
    """A small HRNet with object context on CamVid, 11 classes, for a machine without a GPU.

    Source: settings of our own.
    Command: segray train job.toml with recipe = "hrnet_ocr_w18_small_camvid"; fetches timm's ImageNet weights.
    Cost: a few hours on 2 CPU cores. Result: none published.
    """
    return shared.camvid(change_spec(preset("hrnet_ocr_w18_small"), PRETRAINED))


def hmsa_pspnet_efficientnet_lite0_camvid() -> Recipe:
    """HMSA around a small PSPNet on CamVid, 11 classes, for a machine without a GPU.

    Source: settings of our own; real ImageNet weights from the extra `samples`, nothing is fetched.
    Command: segray train job.toml with recipe = "hmsa_pspnet_efficientnet_lite0_camvid".
    Cost: about an hour on 2 CPU cores. Result: none published.
    """
    return shared.camvid(shared.from_package("hmsa_pspnet_efficientnet_lite0"))


RECIPES: tuple[Callable[[], Recipe], ...] = (
    hrnet_ocr_w48_cityscapes,
    hmsa_w48_cityscapes,
    hmsa_w48_mapillary,
    hrnet_ocr_w18_small_camvid,
    hmsa_pspnet_efficientnet_lite0_camvid,
)
