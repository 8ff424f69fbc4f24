"""Names of the released Gated-SCNN checkpoint (nv-tlabs/GSCNN, `best_cityscapes_checkpoint.pth`).

It belongs to `gated_scnn_wideresnet38_official`, whose spare convolution takes the released `dsn1`. The file is a table
with the tensors under `state_dict`; its licence is non-commercial.
"""

from __future__ import annotations

from seg_models.weights.published import Layout


def _shape_stage(number: int, side: int) -> dict[str, str]:
    """Residual block, reduction, side map and gate; numbers count from 1 there, from 0 here."""
    ours = f"shape.stages.{number - 1}"
    return {
        f"res{number}.conv1": f"{ours}.block.conv1.conv",
        f"res{number}.bn1": f"{ours}.block.conv1.norm",
        f"res{number}.conv2": f"{ours}.block.conv2.conv",
        f"res{number}.bn2": f"{ours}.block.conv2.norm",
        f"d{number}": f"{ours}.reduce",
        f"dsn{side}": f"{ours}.side.conv",
        f"gate{number}": f"{ours}.gate.conv",
        f"gate{number}._gate_conv.0": f"{ours}.gate.norm",
        f"gate{number}._gate_conv.1": f"{ours}.gate.hidden",
        f"gate{number}._gate_conv.3": f"{ours}.gate.gate.conv",
        f"gate{number}._gate_conv.4": f"{ours}.gate.gate.norm",
    }


def _conv_norm(theirs: str, ours: str, *, first: int = 0) -> dict[str, str]:
    """A convolution and its norm, which have running numbers there."""
    return {f"{theirs}.{first}": f"{ours}.conv", f"{theirs}.{first + 1}": f"{ours}.norm"}


_MODULES: dict[str, str] = {
    **{f"mod{number}": f"backbone.network.mod{number}" for number in range(1, 8)},
    "dsn1": "unused_side.conv",
    **_shape_stage(1, side=3),
    **_shape_stage(2, side=4),
    **_shape_stage(3, side=7),
    "fuse": "shape.fuse",
    "cw": "boundary.mix",
    **_conv_norm("aspp.img_conv", "pyramid.image"),
    **_conv_norm("aspp.edge_conv", "pyramid.edge"),
    **_conv_norm("aspp.features.0", "pyramid.local"),
    **_conv_norm("aspp.features.1", "pyramid.dilated.0"),
    **_conv_norm("aspp.features.2", "pyramid.dilated.1"),
    **_conv_norm("aspp.features.3", "pyramid.dilated.2"),
    "bot_aspp": "decoder.context",
    "bot_fine": "decoder.fine",
    **_conv_norm("final_seg", "decoder.conv1"),
    **_conv_norm("final_seg", "decoder.conv2", first=3),
    "final_seg.6": "decoder.classifier",
}

GSCNN = Layout(
    "GSCNN",
    {f"module.{theirs}": ours for theirs, ours in _MODULES.items()},
    presets=("gated_scnn_wideresnet38_official",),
)
