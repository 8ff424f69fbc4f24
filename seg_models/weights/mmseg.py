"""What mmsegmentation's checkpoints have in common: ResNet with a deep stem, auxiliary head, factors without axis."""

from __future__ import annotations

from torch import Tensor

RESNET_V1C: dict[str, str] = {
    "backbone": "backbone.network",
    **{f"backbone.stem.{number}": f"backbone.network.conv1.{number}" for number in (0, 1, 3, 4, 6)},
    "backbone.stem.7": "backbone.network.bn1",
}
"""Modules of its ResNet v1c -> ours."""

AUXILIARY_HEAD: dict[str, str] = {
    "auxiliary_head.convs.0.conv": "aux_head.conv.conv",
    "auxiliary_head.convs.0.bn": "aux_head.conv.norm",
    "auxiliary_head.conv_seg": "aux_head.classifier",
}
"""Modules of its FCN head on the stage before the last -> ours."""


def with_axis(name: str, value: Tensor) -> Tensor:
    """mmsegmentation's factors γ have no axis, ours have one."""
    return value.reshape(1) if name.endswith(".gamma") and value.ndim == 0 else value


def without_axis(name: str, value: Tensor) -> Tensor:
    """The way back of `with_axis`."""
    return value.reshape(()) if name.endswith(".gamma") and value.shape == (1,) else value
