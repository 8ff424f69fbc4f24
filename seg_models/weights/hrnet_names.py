"""Names of published checkpoints with object context, most of them HRNets.

NVIDIA's belong to `hmsa_w48` (files such as cityscapes_ocrnet.HRNet_Mscale_outstanding-turtle.pth, whose tensors lie
under `state_dict` and begin with `module.`), mmsegmentation's to `hrnet_ocr_w48` with `conv_bias = false` and,
with a dilated ResNet (`ocrnet_r101-d8_*`), to `ocrnet_resnet101`, those of the HRNet-OCR repository to `hrnet_ocr_w48`,
with `backbone.align_corners` for the form they were trained in. ImageNet weights of HRNets need no map: they load by
name (`backbone.weights`).
"""

from __future__ import annotations

from seg_models.weights.mmseg import RESNET_V1C
from seg_models.weights.published import Layout

TRUNK = tuple(
    ["conv1", "bn1", "conv2", "bn2", "layer1"]
    + [f"transition{number}" for number in (1, 2, 3)]
    + [f"stage{number}" for number in (2, 3, 4)]
)
"""Modules of the backbone, which have the authors' names here too."""


def _official_head(head: str) -> dict[str, str]:
    """Object context as the authors and NVIDIA name it; batch norms lie beside their activation, one level deeper."""
    block = f"{head}ocr_distri_head.object_context_block"
    return {
        **_pair(f"{head}conv3x3_ocr", "neck"),
        **_pair(f"{head}aux_head", "regions.conv"),
        f"{head}aux_head.2": "regions.classifier",
        **_pair(f"{block}.f_pixel", "context.query.0"),
        **_pair(f"{block}.f_pixel", "context.query.1", first=2),
        **_pair(f"{block}.f_object", "context.key.0"),
        **_pair(f"{block}.f_object", "context.key.1", first=2),
        **_pair(f"{block}.f_down", "context.value"),
        **_pair(f"{block}.f_up", "context.up"),
        **_pair(f"{head}ocr_distri_head.conv_bn_dropout", "context.fuse"),
        f"{head}cls_head": "classifier",
    }


def _pair(theirs: str, ours: str, *, first: int = 0) -> dict[str, str]:
    return {f"{theirs}.{first}": f"{ours}.conv", f"{theirs}.{first + 1}.0": f"{ours}.norm"}


def _trunk(prefix: str) -> dict[str, str]:
    return {f"{prefix}{name}": f"backbone.network.{name}" for name in TRUNK}


def _blocks(theirs: str, ours: str) -> dict[str, str]:
    """mmsegmentation's convolution and norm."""
    return {f"{theirs}.conv": f"{ours}.conv", f"{theirs}.bn": f"{ours}.norm"}


_ATTENTION = {
    "scale_attn.conv0": "attention.conv0.conv",
    "scale_attn.bn0": "attention.conv0.norm",
    "scale_attn.conv1": "attention.conv1.conv",
    "scale_attn.bn1": "attention.conv1.norm",
    "scale_attn.conv2": "attention.weight",
}
_INNER = {**_trunk("backbone."), **_official_head("ocr.")}
_CONTEXT = "decode_head.1.object_context_block"

NVIDIA_HMSA = Layout(
    "NVIDIA's HMSA",
    {
        **{f"module.{theirs}": f"inner.{ours}" for theirs, ours in _INNER.items()},
        **{f"module.{theirs}": ours for theirs, ours in _ATTENTION.items()},
    },
    presets=("hmsa_w48",),
)
HRNET_OCR = Layout(
    "HRNet-OCR",
    {f"model.{theirs}": ours for theirs, ours in {**_trunk(""), **_official_head("")}.items()},
    presets=("hrnet_ocr_w48",),
)
_MMSEG_HEADS = {
    **_blocks("decode_head.0.convs.0", "regions.conv"),
    "decode_head.0.conv_seg": "regions.classifier",
    **_blocks("decode_head.1.bottleneck", "neck"),
    **_blocks(f"{_CONTEXT}.query_project.0", "context.query.0"),
    **_blocks(f"{_CONTEXT}.query_project.1", "context.query.1"),
    **_blocks(f"{_CONTEXT}.key_project.0", "context.key.0"),
    **_blocks(f"{_CONTEXT}.key_project.1", "context.key.1"),
    **_blocks(f"{_CONTEXT}.value_project", "context.value"),
    **_blocks(f"{_CONTEXT}.out_project", "context.up"),
    **_blocks(f"{_CONTEXT}.bottleneck", "context.fuse"),
    "decode_head.1.conv_seg": "classifier",
}
MMSEG_OCRNET = Layout("mmsegmentation's OCRNet", {**_trunk("backbone."), **_MMSEG_HEADS}, presets=("hrnet_ocr_w48",))
MMSEG_OCRNET_RESNET = Layout(
    "mmsegmentation's OCRNet with ResNet",
    {**RESNET_V1C, **_MMSEG_HEADS},
    presets=("ocrnet_resnet50", "ocrnet_resnet101"),
)
