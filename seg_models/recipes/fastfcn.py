"""Training settings of FastFCN and of the dilated networks it is compared with.

Results quoted here are published by others and were not reproduced here unless a line says so. Costs are derived from
the multiply-adds of forward and backward pass at 100 TFLOP/s sustained.
"""

from __future__ import annotations

from collections.abc import Callable

from seg_models.recipes import shared
from seg_models.recipes.recipe import AugmentSpec, LossSpec, OptimizerSpec, Recipe

PCONTEXT_STEPS = 80 * (4_998 // 16)
"""80 epochs of Pascal-Context's 4 998 training images in batches of 16, the rest of an epoch dropped."""
ADE20K_STEPS = 120 * (20_210 // 16)
"""120 epochs of ADE20K's 20 210 training images in batches of 16, the rest of an epoch dropped."""


def fastfcn_resnet50_enc_pcontext() -> Recipe:
    """FastFCN with ResNet-50 and context encoding on Pascal-Context, 59 classes.

    Source: the authors' encnet_res50_pcontext.sh and its defaults (arXiv 1903.11816).
    Command: segray train job.toml with recipe = "fastfcn_resnet50_enc_pcontext"; fetches timm's ImageNet weights.
    Cost: about half a GPU-hour (derived from 56 GMAC per image).
    Result: published 51.05 mIoU on val, single scale; others found 47.9 to 49.0 with the same code. Not ours.
    """
    return _pcontext("fastfcn_resnet50_enc", aux_weight=0.2)


def fastfcn_resnet50_enc_dilated_pcontext() -> Recipe:
    """The dilated EncNet that FastFCN with ResNet-50 is compared with, on Pascal-Context, 59 classes.

    Source: as `fastfcn_resnet50_enc_pcontext`, without JPU and with a dilated backbone.
    Command: segray train job.toml with recipe = "fastfcn_resnet50_enc_dilated_pcontext"; fetches ImageNet weights.
    Cost: about 1 GPU-hour (derived from 129 GMAC per image).
    Result: published 49.91 mIoU on val, single scale. Not ours.
    """
    return _pcontext("fastfcn_resnet50_enc_dilated", aux_weight=0.2)


def fastfcn_resnet50_psp_pcontext() -> Recipe:
    """FastFCN with ResNet-50 and pyramid pooling on Pascal-Context, 59 classes.

    Source: the authors' psp_res50_pcontext.sh.
    Command: segray train job.toml with recipe = "fastfcn_resnet50_psp_pcontext"; fetches timm's ImageNet weights.
    Cost: about 1 GPU-hour (derived from 120 GMAC per image).
    Result: published 50.89 mIoU on val, single scale (dilated: 50.58). Not ours.
    """
    return _pcontext("fastfcn_resnet50_psp", aux_weight=0.4)


def fastfcn_resnet50_aspp_pcontext() -> Recipe:
    """FastFCN with ResNet-50 and ASPP on Pascal-Context, 59 classes.

    Source: the authors' deeplab_res50_pcontext.sh.
    Command: segray train job.toml with recipe = "fastfcn_resnet50_aspp_pcontext"; fetches timm's ImageNet weights.
    Cost: about 1 GPU-hour (derived from 108 GMAC per image).
    Result: published 50.07 mIoU on val, single scale (dilated: 49.19). Not ours.
    """
    return _pcontext("fastfcn_resnet50_aspp", aux_weight=0.4)


def fastfcn_resnet101_enc_pcontext() -> Recipe:
    """FastFCN with ResNet-101 and context encoding on Pascal-Context, 59 classes.

    Source: the authors' encnet_res101_pcontext.sh.
    Command: segray train job.toml with recipe = "fastfcn_resnet101_enc_pcontext"; fetches timm's ImageNet weights.
    Cost: about 1 GPU-hour (derived from 73 GMAC per image).
    Result: published 54.03 mIoU on val with scales and flip (dilated: 52.60). Not ours.
    """
    return _pcontext("fastfcn_resnet101_enc", aux_weight=0.2)


def fastfcn_resnet50_enc_ade20k() -> Recipe:
    """FastFCN with ResNet-50 and context encoding on ADE20K, 150 classes.

    Source: the authors' encnet_res50_ade20k_train.sh.
    Command: segray train job.toml with recipe = "fastfcn_resnet50_enc_ade20k"; fetches timm's ImageNet weights.
    Cost: about 3 GPU-hours (derived from 56 GMAC per image).
    Result: published 42.75 mIoU on val with scales and flip (dilated: 41.11). Not ours.
    """
    return _ade20k("fastfcn_resnet50_enc")


def fastfcn_resnet101_enc_ade20k() -> Recipe:
    """FastFCN with ResNet-101 and context encoding on ADE20K, 150 classes.

    Source: the authors' encnet_res101_ade20k_train.sh.
    Command: segray train job.toml with recipe = "fastfcn_resnet101_enc_ade20k"; fetches timm's ImageNet weights.
    Cost: about 3 GPU-hours (derived from 73 GMAC per image).
    Result: published 44.34 mIoU on val with scales and flip (dilated, crop 576: 44.65). Not ours.
    """
    return _ade20k("fastfcn_resnet101_enc")


def fastfcn_resnet50_enc_cityscapes() -> Recipe:
    """FastFCN with ResNet-50 and context encoding in mmsegmentation's form on Cityscapes, 19 classes.

    Source: mmsegmentation, fastfcn_r50-d32_jpu_enc_4xb2-80k_cityscapes-512x1024.
    Command: segray train job.toml with recipe = "fastfcn_resnet50_enc_cityscapes"; fetches timm's ImageNet weights.
    Cost: about 2 GPU-hours (derived from 185 GMAC per image).
    Result: published 77.97 mIoU on val, whole image, single scale; 79.92 with scales and flip. Not ours.
    """
    return shared.mmseg("fastfcn_resnet50_enc_mmseg", crop=(512, 1024), steps=80_000, global_batch=8)


def fastfcn_resnet50_psp_cityscapes() -> Recipe:
    """FastFCN with ResNet-50 and pyramid pooling in mmsegmentation's form on Cityscapes, 19 classes.

    Source: mmsegmentation, fastfcn_r50-d32_jpu_psp_4xb2-80k_cityscapes-512x1024.
    Command: segray train job.toml with recipe = "fastfcn_resnet50_psp_cityscapes"; fetches timm's ImageNet weights.
    Cost: about 3 GPU-hours (derived from 260 GMAC per image).
    Result: published 79.26 mIoU on val, whole image, single scale; 80.86 with scales and flip. Not ours.
    """
    return shared.mmseg("fastfcn_resnet50_psp_mmseg", crop=(512, 1024), steps=80_000, global_batch=8)


def fastfcn_resnet50_aspp_cityscapes() -> Recipe:
    """FastFCN with ResNet-50 and ASPP in mmsegmentation's form on Cityscapes, 19 classes.

    Source: mmsegmentation, fastfcn_r50-d32_jpu_aspp_4xb2-80k_cityscapes-512x1024.
    Command: segray train job.toml with recipe = "fastfcn_resnet50_aspp_cityscapes"; fetches timm's ImageNet weights.
    Cost: about 5 GPU-hours (derived from 442 GMAC per image).
    Result: published 79.12 mIoU on val, whole image, single scale; 80.58 with scales and flip. Not ours.
    """
    return shared.mmseg("fastfcn_resnet50_aspp_mmseg", crop=(512, 1024), steps=80_000, global_batch=8)


def fastfcn_resnet50_enc_mmseg_ade20k() -> Recipe:
    """FastFCN with ResNet-50 and context encoding in mmsegmentation's form on ADE20K, 150 classes.

    Source: mmsegmentation, fastfcn_r50-d32_jpu_enc_4xb4-160k_ade20k-512x512.
    Command: segray train job.toml with recipe = "fastfcn_resnet50_enc_mmseg_ade20k"; fetches ImageNet weights.
    Cost: about 4 GPU-hours (derived from 93 GMAC per image).
    Result: published 42.50 mIoU on val, whole image, single scale; 44.21 with scales and flip. Not ours.
    """
    return shared.mmseg("fastfcn_resnet50_enc_mmseg", crop=(512, 512), short_side=512, steps=160_000, global_batch=16)


def fastfcn_efficientnet_lite0_enc_camvid() -> Recipe:
    """A small FastFCN with EfficientNet-Lite0 on CamVid, 11 classes, for a machine without a GPU.

    Source: settings of our own; real ImageNet weights from the extra `samples`, nothing is fetched.
    Command: segray train job.toml with recipe = "fastfcn_efficientnet_lite0_enc_camvid".
    Cost: about an hour on 2 CPU cores. Result: none published.
    """
    return shared.camvid(shared.from_package("fastfcn_efficientnet_lite0_enc"))


def _pcontext(name: str, *, aux_weight: float) -> Recipe:
    return _authors(name, lr=0.001, steps=PCONTEXT_STEPS, aux_weight=aux_weight)


def _ade20k(name: str) -> Recipe:
    return _authors(name, lr=0.01, steps=ADE20K_STEPS, aux_weight=0.2)


def _authors(name: str, *, lr: float, steps: int, aux_weight: float) -> Recipe:
    """The authors' settings: crops of 480 of short sides from 260 to 1040; all but the backbone learns ×10."""
    return Recipe(
        model=shared.pretrained(name),
        optimizer=OptimizerSpec(lr=lr, head_lr_factor=10.0, weight_decay=1e-4),
        augment=AugmentSpec(crop=(480, 480), short_side=520, blur=(0.0, 1.0), blur_share=0.5),
        loss=LossSpec(aux_weight=aux_weight),
        steps=steps,
        global_batch=16,
    )


RECIPES: tuple[Callable[[], Recipe], ...] = (
    fastfcn_resnet50_enc_pcontext,
    fastfcn_resnet50_enc_dilated_pcontext,
    fastfcn_resnet50_psp_pcontext,
    fastfcn_resnet50_aspp_pcontext,
    fastfcn_resnet101_enc_pcontext,
    fastfcn_resnet50_enc_ade20k,
    fastfcn_resnet101_enc_ade20k,
    fastfcn_resnet50_enc_cityscapes,
    fastfcn_resnet50_psp_cityscapes,
    fastfcn_resnet50_aspp_cityscapes,
    fastfcn_resnet50_enc_mmseg_ade20k,
    fastfcn_efficientnet_lite0_enc_camvid,
)
