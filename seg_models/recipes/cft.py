"""Training settings of CFT and of the networks it is compared with, SemFPN and SegFormer.

Results quoted here are published by others and were not reproduced here. Costs are derived: three times the
multiply-adds of prediction per image, at 100 TFLOP/s sustained.
"""

from __future__ import annotations

from collections.abc import Callable

from seg_models.models import change_spec
from seg_models.recipes import shared
from seg_models.recipes.recipe import AugmentSpec, OptimizerSpec, Recipe, ScheduleSpec
from seg_models.spec import ModelSpec, preset

HUB = "https://huggingface.co/smp-hub/{name}.imagenet/resolve/{revision}/model.safetensors"
REVISIONS = {
    "mit_b0": "9ce53d104d92d75aabb00aae70677aaab67e7c84",
    "mit_b1": "a04bf4f13a549bce677cf79b04852e7510782817",
    "mit_b2": "868ab6f13871dcf8c3d9f90ee4519403475b65ef",
    "mit_b3": "32558d12a65f1daa0ebcf4f4053c4285e2c1cbda",
    "mit_b4": "3a3454e900a4b4f11dd60eeb59101a9a1a36b017",
    "mit_b5": "ced04d96c586b6297fd59a7a1e244fc78fdb6531",
}
"""Where segmentation_models.pytorch publishes the ImageNet weights of MiT, with the authors' names."""

WARM_UP = ScheduleSpec(power=1.0, warmup_steps=1500, warmup_factor=1e-6)
TRANSFORMER = OptimizerSpec(kind="adamw", lr=6e-5, weight_decay=0.01, head_lr_factor=10.0, decay_norms_and_biases=False)
"""AdamW of SegFormer and Swin: 6e-5 for the backbone, ten times that for the head; norms do not decay."""


def cft_resnet101_ade20k() -> Recipe:
    """CFT with ResNet-101 on ADE20K, 150 classes.

    Source: code of CFT's head with its ADE20K configuration (specs: CFT section 3); batch of 16 assumed. AdamW, 6e-5
    for the backbone and ten times that for the head, decay 2e-5 and 0.01.
    Command: segray train job.toml with recipe = "cft_resnet101_ade20k"; fetches timm's ImageNet weights.
    Cost: about 5 GPU-hours (113 GMAC per image).
    Result: none published for this setting. Not ours.
    """
    return _ade20k(shared.pretrained("cft_resnet101"), optimizer=_resnet_optimizer())


def cft_resnet50_ade20k() -> Recipe:
    """CFT with ResNet-50 on ADE20K, 150 classes (CFT's table 1).

    Source: the settings of `cft_resnet101_ade20k`.
    Command: segray train job.toml with recipe = "cft_resnet50_ade20k"; fetches timm's ImageNet weights.
    Cost: about 4 GPU-hours (93 GMAC per image).
    Result: the published figure is not in our source. Not ours.
    """
    return _ade20k(shared.pretrained("cft_resnet50"), optimizer=_resnet_optimizer())


def cft_mit_b2_ade20k() -> Recipe:
    """CFT with MiT-B2 on ADE20K, 150 classes (CFT's table 2); `model.preset` makes its ablations of it.

    Source: SegFormer's settings, CFT's own for MiT being unknown (specs: CFT section 3).
    Command: segray train job.toml with recipe = "cft_mit_b2_ade20k"; fetches ImageNet weights.
    Cost: about 4 GPU-hours (89 GMAC per image).
    Result: published 48.80 mIoU on val (arXiv 2308.05581, table 2; the backbone is inferred); 47.79 without FFN, 47.45
    with pooled keys. Not ours.
    """
    return _ade20k(_mit("cft_mit_b2", "mit_b2"))


def semfpn_mit_b2_ade20k() -> Recipe:
    """SemFPN with MiT-B2 on ADE20K, 150 classes: the baseline of CFT's table 2.

    Source: the settings of `cft_mit_b2_ade20k`.
    Command: segray train job.toml with recipe = "semfpn_mit_b2_ade20k"; fetches ImageNet weights.
    Cost: about 2 GPU-hours (42 GMAC per image).
    Result: the published figure is not in our source. Not ours.
    """
    return _ade20k(_mit("semfpn_mit_b2", "mit_b2"))


def segformer_mit_b0_ade20k() -> Recipe:
    """SegFormer-B0 on ADE20K, 150 classes.

    Source: Xie et al., NeurIPS 2021, section 4.1 and released configuration; biases do not decay here.
    Command: segray train job.toml with recipe = "segformer_mit_b0_ade20k"; fetches ImageNet weights.
    Cost: under half a GPU-hour (8 GMAC per image).
    Result: published 37.41 mIoU on val, single scale; 38.34 with scales and flip (mmsegmentation's run). Not ours.
    """
    return _ade20k(_mit("segformer_mit_b0", "mit_b0"))


def segformer_mit_b2_ade20k() -> Recipe:
    """SegFormer-B2 on ADE20K, 150 classes.

    Source: Xie et al., NeurIPS 2021, section 4.1 and released configuration; biases do not decay here.
    Command: segray train job.toml with recipe = "segformer_mit_b2_ade20k"; fetches ImageNet weights.
    Cost: about 3 GPU-hours (62 GMAC per image).
    Result: published 45.58 mIoU on val, single scale; 47.03 with scales and flip (mmsegmentation's run). Not ours.
    """
    return _ade20k(_mit("segformer_mit_b2", "mit_b2"))


def cft_swin_large_ade20k() -> Recipe:
    """CFT with Swin-L (window 12, trained at 384 on ImageNet-22k) on ADE20K, 150 classes, crops of 640.

    Source: Swin's settings for ADE20K, CFT's own being unknown (specs: CFT section 3); drop path 0.3.
    Command: segray train job.toml with recipe = "cft_swin_large_ade20k"; fetches timm's weights.
    Cost: about 19 GPU-hours (436 GMAC per image).
    Result: published 55.1 mIoU on val as the best of all (arXiv 2308.05581, abstract). Not ours.
    """
    model = change_spec(shared.pretrained("cft_swin_large"), {"backbone": {"model_kwargs": {"drop_path_rate": 0.3}}})
    return _ade20k(model, crop=640)


def cft_swin_large_cityscapes() -> Recipe:
    """CFT with Swin-L on Cityscapes, 19 classes.

    Source: the Cityscapes configuration of a later head (specs: CFT section 3, V2); its image pool and its memory of
    category features are left out, biases do not decay.
    Command: segray train job.toml with recipe = "cft_swin_large_cityscapes"; fetches timm's weights.
    Cost: about 46 GPU-hours (1069 GMAC per image).
    Result: none published. Not ours.
    """
    return Recipe(
        model=change_spec(shared.pretrained("cft_swin_large"), {"backbone": {"model_kwargs": {"drop_path_rate": 0.3}}}),
        optimizer=TRANSFORMER.model_copy(update={"lr": 4e-4, "weight_decay": 0.03}),
        schedule=WARM_UP,
        augment=_augment(crop=1024, short_side=1024),
        steps=160_000,
        global_batch=16,
    )


def cft_resnet101_pascal_context() -> Recipe:
    """CFT with ResNet-101 on Pascal-Context, 59 classes.

    Source: code of CFT's head with its Pascal-Context configuration (specs: CFT section 3); batch of 16 assumed. One
    rate for backbone and head: the configuration means ten times the rate for the head, but nests the key where it
    takes no effect.
    Command: segray train job.toml with recipe = "cft_resnet101_pascal_context"; fetches timm's ImageNet weights.
    Cost: about 2 GPU-hours (98 GMAC per image).
    Result: none published for this setting. Not ours.
    """
    return Recipe(
        model=shared.pretrained("cft_resnet101"),
        optimizer=OptimizerSpec(kind="adamw", lr=1e-5, weight_decay=1e-5),
        schedule=WARM_UP,
        augment=_augment(crop=480, short_side=520),
        steps=80_000,
        global_batch=16,
    )


def cft_resnet101_coco_stuff10k() -> Recipe:
    """CFT with ResNet-101 on COCO-Stuff 10k, 171 classes.

    Source: the COCO-Stuff configuration of a later head (specs: CFT section 3, V2); its image pool and its memory of
    category features are left out.
    Command: segray train job.toml with recipe = "cft_resnet101_coco_stuff10k"; fetches timm's ImageNet weights.
    Cost: about 2.5 GPU-hours (113 GMAC per image).
    Result: none published. Not ours.
    """
    return Recipe(
        model=shared.pretrained("cft_resnet101"),
        optimizer=OptimizerSpec(lr=0.01, weight_decay=5e-4),
        schedule=shared.MMSEG_SCHEDULE,
        augment=_augment(crop=512, short_side=512),
        steps=80_000,
        global_batch=16,
    )


def cft_efficientnet_lite0_camvid() -> Recipe:
    """A small CFT with EfficientNet-Lite0 on CamVid, 11 classes, for a machine without a GPU.

    Source: settings of our own; real ImageNet weights from the extra `samples`, nothing is fetched.
    Command: segray train job.toml with recipe = "cft_efficientnet_lite0_camvid".
    Cost: not measured. Result: none published.
    """
    return _camvid("cft_efficientnet_lite0")


def semfpn_efficientnet_lite0_camvid() -> Recipe:
    """A small SemFPN with EfficientNet-Lite0 on CamVid, 11 classes, for a machine without a GPU.

    Source: settings of our own; real ImageNet weights from the extra `samples`, nothing is fetched.
    Command: segray train job.toml with recipe = "semfpn_efficientnet_lite0_camvid".
    Cost: not measured. Result: none published.
    """
    return _camvid("semfpn_efficientnet_lite0")


def segformer_efficientnet_lite0_camvid() -> Recipe:
    """SegFormer's head on EfficientNet-Lite0 on CamVid, 11 classes, for a machine without a GPU.

    Source: settings of our own; real ImageNet weights from the extra `samples`, nothing is fetched.
    Command: segray train job.toml with recipe = "segformer_efficientnet_lite0_camvid".
    Cost: not measured. Result: none published.
    """
    return _camvid("segformer_efficientnet_lite0")


def _ade20k(model: ModelSpec, *, optimizer: OptimizerSpec = TRANSFORMER, crop: int = 512) -> Recipe:
    return Recipe(
        model=model,
        optimizer=optimizer,
        schedule=WARM_UP,
        augment=_augment(crop=crop, short_side=crop),
        steps=160_000,
        global_batch=16,
    )


def _camvid(name: str) -> Recipe:
    return Recipe(
        model=shared.from_package(name),
        optimizer=OptimizerSpec(kind="adamw", lr=1e-3, weight_decay=0.01, backbone_lr_factor=0.1),
        augment=shared.CAMVID,
        steps=2_000,
        global_batch=8,
    )


def _augment(*, crop: int, short_side: int) -> AugmentSpec:
    """Scales of 0.5 to 2, mmsegmentation's photometric distortion and its limit on the largest class of a crop."""
    return AugmentSpec(crop=(crop, crop), short_side=short_side, **shared.MMSEG_AUGMENT)


def _resnet_optimizer() -> OptimizerSpec:
    return OptimizerSpec(kind="adamw", lr=6e-5, weight_decay=2e-5, head_lr_factor=10.0, head_decay_factor=500.0)


def _mit(name: str, backbone: str) -> ModelSpec:
    weights = HUB.format(name=backbone, revision=REVISIONS[backbone])
    return change_spec(preset(name), {"backbone": {"weights": weights}})


RECIPES: tuple[Callable[[], Recipe], ...] = (
    cft_resnet50_ade20k,
    cft_resnet101_ade20k,
    cft_resnet101_pascal_context,
    cft_resnet101_coco_stuff10k,
    cft_mit_b2_ade20k,
    cft_swin_large_ade20k,
    cft_swin_large_cityscapes,
    cft_efficientnet_lite0_camvid,
    semfpn_mit_b2_ade20k,
    semfpn_efficientnet_lite0_camvid,
    segformer_mit_b0_ade20k,
    segformer_mit_b2_ade20k,
    segformer_efficientnet_lite0_camvid,
)
