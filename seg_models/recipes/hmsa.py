"""Training settings of HRNet-OCR and of hierarchical multi-scale attention.

Results quoted here are published by others and were not reproduced here unless a line says so.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from seg_models.models import change_spec
from seg_models.recipes import shared
from seg_models.recipes.recipe import AugmentSpec, LossSpec, OhemSpec, OptimizerSpec, Recipe, ScheduleSpec
from seg_models.recipes.sampling import ClassUniformSpec, PartRule, SamplingSpec
from seg_models.spec import preset

PRETRAINED: dict[str, Any] = {"backbone": {"pretrained": True}}
CLASS_UNIFORM = SamplingSpec(class_uniform=ClassUniformSpec(share=0.5, tile=1024))
BOOSTED = (
    *("wall", "fence", "traffic light", "traffic sign", "terrain", "person", "rider"),
    *("car", "truck", "bus", "train", "motorcycle", "bicycle"),
)
"""Classes for which crops are taken of Cityscapes' coarsely labelled images, too."""


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


def hrnet_ocr_w48_ade20k() -> Recipe:
    """HRNetV2-W48 with object context on ADE20K, 150 classes, the main scores trained on hard pixels.

    Source: HRNet-Semantic-Segmentation, branch HRNet-OCR, seg_hrnet_ocr_w48_520x520_ohem (threshold 0.9, at least
    131 072 pixels of the four images of a GPU; 120 epochs of the 20 210 images). Its Cityscapes settings name the same
    numbers and switch them off. Corners are not aligned.
    Command: segray train job.toml with recipe = "hrnet_ocr_w48_ade20k"; fetches timm's ImageNet weights.
    Cost: about 7 hours on 4 V100 (derived from 174 GMAC per crop at 25 TFLOP/s sustained each).
    Result: the published figure is not in our source. Not ours.
    """
    return Recipe(
        model=change_spec(preset("hrnet_ocr_w48"), PRETRAINED),
        optimizer=OptimizerSpec(lr=0.02, weight_decay=1e-4),
        augment=AugmentSpec(crop=(520, 520), short_side=520),
        loss=LossSpec(aux_weight=0.4, ohem=OhemSpec(threshold=0.9, min_kept=32_768)),
        steps=120 * (20_210 // 16),
        global_batch=16,
    )


def hmsa_w48_cityscapes() -> Recipe:
    """HMSA around HRNet-OCR on Cityscapes fine, 19 classes.

    Source: NVIDIA/semantic-segmentation, scripts/train_cityscapes.yml (Tao et al., arXiv 2005.10821), 175 epochs of
    batches of 8. It starts from weights trained on Mapillary (`init_from`); half of the crops are drawn so that all
    classes are met equally.
    Command: segray train job.toml with recipe = "hmsa_w48_cityscapes"; fetches timm's ImageNet weights.
    Cost: about 4 days on 8 A100 (derived from 1912 GMAC per image and pair at 60 TFLOP/s sustained each).
    Result: published 84.7 mIoU on val with fine labels only, scales 0.5, 1, 2; 85.4 on test with auto-labels. Not ours.
    """
    return Recipe(
        model=change_spec(preset("hmsa_w48"), {"inner": PRETRAINED}),
        optimizer=OptimizerSpec(lr=5e-3, weight_decay=1e-4),
        schedule=ScheduleSpec(power=2.0, per="epoch"),
        augment=AugmentSpec(crop=(1024, 2048), **shared.NVIDIA_COLORS),
        sampling=CLASS_UNIFORM,
        loss=LossSpec(aux_weight=0.4),
        steps=65_078,
        global_batch=8,
    )


def hmsa_w48_cityscapes_autolabels() -> Recipe:
    """HMSA around HRNet-OCR on Cityscapes fine and on auto-labels of the coarsely labelled images, 19 classes.

    Source: NVIDIA/semantic-segmentation, scripts/train_cityscapes_sota.yml: 175 epochs of the 2 975 fine images in
    batches of 16. Auto-labels (a `[[data]]` table with `name = "autolabels"`) are met only in crops around centroids of
    rarer classes, and until epoch 150; then training goes on with fine labels alone. It starts from weights trained on
    Mapillary (`init_from`).
    Command: segray train jobs/examples/train_autolabels.toml; fetches timm's ImageNet weights.
    Cost: about 4 days on 8 A100 (derived from 1912 GMAC per image and pair at 60 TFLOP/s sustained each).
    Result: published 86.8 mIoU on val, scales 0.5, 1, 2; 85.4 on test. Not ours.
    """
    base, last_epoch = hmsa_w48_cityscapes(), 150 / 175
    sampling = CLASS_UNIFORM.model_copy(
        update={"parts": (PartRule(part="autolabels", centroids_of=BOOSTED, until=last_epoch),)}
    )
    optimizer = base.optimizer.model_copy(update={"lr": 1e-2})
    changes = {"optimizer": optimizer, "sampling": sampling, "steps": 32_539, "global_batch": 16}
    return base.model_copy(update=changes)


def hmsa_w48_mapillary() -> Recipe:
    """HMSA around HRNet-OCR on Mapillary Vistas, 65 classes.

    Source: NVIDIA/semantic-segmentation, scripts/train_mapillary.yml, 200 epochs of the 18 000 images in batches of 16,
    no losses of single scales. Images are brought to a long side of 2177 there; the short side of 1633 here is that of
    a picture of 4:3. The range of the blur is that of the same authors' Gated-SCNN.
    Command: segray train job.toml with recipe = "hmsa_w48_mapillary"; fetches timm's ImageNet weights.
    Cost: about 12 days on 8 A100 (derived from 965 GMAC per crop and pair at 60 TFLOP/s sustained each).
    Result: published 61.05 mIoU on val with scales 0.25, 0.5, 1, 2 and mirroring. Not ours.
    """
    return Recipe(
        model=change_spec(preset("hmsa_w48"), {"inner": PRETRAINED, "supervised_weight": 0.0}),
        optimizer=OptimizerSpec(lr=5e-3, weight_decay=1e-4),
        schedule=ScheduleSpec(power=1.0, per="epoch"),
        augment=AugmentSpec(crop=(1024, 1024), short_side=1633, **shared.NVIDIA_COLORS, blur=(0.15, 1.3)),
        sampling=CLASS_UNIFORM,
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
    hrnet_ocr_w48_ade20k,
    hmsa_w48_cityscapes,
    hmsa_w48_cityscapes_autolabels,
    hmsa_w48_mapillary,
    hrnet_ocr_w18_small_camvid,
    hmsa_pspnet_efficientnet_lite0_camvid,
)
