"""Training settings of Gated-SCNN.

Results quoted here are published by others and were not reproduced here unless a line says so.
"""

from __future__ import annotations

from collections.abc import Callable

from seg_models.recipes import shared
from seg_models.recipes.recipe import AugmentSpec, OptimizerSpec, Recipe, ScheduleSpec
from seg_models.spec import preset


def gated_scnn_wideresnet38_cityscapes() -> Recipe:
    """Gated-SCNN with WideResNet-38 on Cityscapes, 19 classes, fine labels only.

    Source: Takikawa et al., ICCV 2019, and the released code: batch 8, 175 epochs (65 078 steps), learning rate falling
    linearly, once an epoch; crops of the paper (800). The code blurs every picture.
    Command: segray train job.toml with recipe = "gated_scnn_wideresnet38_cityscapes" and ImageNet weights of your own:
    recipe.model.backbone.weights = "…", match = "order". Without them the published figure is out of reach.
    Cost: about 16 GPU-hours at 100 TFLOP/s sustained (derived from 1 844 GMAC per image).
    Result: published 80.8 mIoU on val, 73.6 boundary F at 3 px. Not ours.
    """
    return Recipe(
        model=preset("gated_scnn_wideresnet38"),
        optimizer=OptimizerSpec(lr=0.01, weight_decay=1e-4),
        schedule=ScheduleSpec(power=1.0, per="epoch"),
        augment=AugmentSpec(crop=(800, 800), **shared.NVIDIA_COLORS, blur=(0.15, 1.3)),
        steps=65_078,
        global_batch=8,
    )


def gated_scnn_wideresnet38_cityscapes_official() -> Recipe:
    """The same as the released code computes it: its losses and its crops of 720 pixels.

    Source: nv-tlabs/GSCNN (specs: Gated-SCNN sections 3 and 4), with the differences of the recipe above.
    Command: segray train job.toml with recipe = "gated_scnn_wideresnet38_cityscapes_official"; weights as above. Losses
    are summed over the images of a micro-batch; the released runs had 8 workers with 1 each.
    Cost: about 13 GPU-hours at 100 TFLOP/s sustained (derived from 1 493 GMAC per image).
    Result: none published for exactly this state of the code. Not ours.
    """
    base = gated_scnn_wideresnet38_cityscapes()
    augment = base.augment.model_copy(update={"crop": (720, 720)})
    return base.model_copy(update={"model": preset("gated_scnn_wideresnet38_official"), "augment": augment})


def gated_scnn_resnet50_cityscapes() -> Recipe:
    """Gated-SCNN with a dilated ResNet-50 on Cityscapes, 19 classes.

    Source: PaddleSeg, gscnn_resnet50_os8_cityscapes_1024x512_80k (specs: Gated-SCNN section 4), whose layout differs:
    ResNet-50-vd, rates (1, 12, 24, 36), a bottleneck with dropout.
    Command: segray train job.toml with recipe = "gated_scnn_resnet50_cityscapes"; fetches timm's ImageNet weights.
    Cost: about 5 GPU-hours at 100 TFLOP/s sustained (derived from 419 GMAC per image).
    Result: published 80.67 mIoU on val, single scale; 80.88 with flip. Not ours.
    """
    return Recipe(
        model=shared.pretrained("gated_scnn_resnet50"),
        optimizer=OptimizerSpec(lr=0.01, weight_decay=5e-4),
        augment=AugmentSpec(crop=(512, 1024), brightness=0.4, contrast=0.4, saturation=0.4),
        steps=80_000,
        global_batch=8,
    )


RECIPES: tuple[Callable[[], Recipe], ...] = (
    gated_scnn_wideresnet38_cityscapes,
    gated_scnn_wideresnet38_cityscapes_official,
    gated_scnn_resnet50_cityscapes,
)
