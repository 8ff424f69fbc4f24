"""What the checkpoints of PaddleSeg have in common: names of norms, the ResNet-D, the way that linear layers lie."""

from __future__ import annotations

from torch import Tensor

DEPTHS = (3, 8, 36, 3)
"""Blocks of each stage of the deepest ResNet, that of 152 layers."""


def norm(theirs: str, ours: str) -> dict[str, str]:
    """A batch norm, whose running values have other names."""
    return {theirs: ours, f"{theirs}._mean": f"{ours}.running_mean", f"{theirs}._variance": f"{ours}.running_var"}


def conv_norm(theirs: str, ours: str, *, conv: str = "conv", norm_name: str = "norm") -> dict[str, str]:
    """A convolution and its batch norm."""
    return {f"{theirs}._conv": f"{ours}.{conv}", **norm(f"{theirs}._batch_norm", f"{ours}.{norm_name}")}


def _block(stage: int, number: int) -> dict[str, str]:
    theirs, ours = f"backbone.bb_{stage}_{number}", f"backbone.network.layer{stage + 1}.{number}"
    names = [conv_norm(f"{theirs}.conv{i}", ours, conv=f"conv{i + 1}", norm_name=f"bn{i + 1}") for i in range(3)]
    return {name: place for part in names for name, place in part.items()}


RESNET_VD: dict[str, str] = {
    **conv_norm("backbone.conv1_1", "backbone.network.conv1", conv="0", norm_name="1"),
    **conv_norm("backbone.conv1_2", "backbone.network.conv1", conv="3", norm_name="4"),
    **conv_norm("backbone.conv1_3", "backbone.network", conv="conv1.6", norm_name="bn1"),
    **{
        name: place
        for stage, depth in enumerate(DEPTHS)
        for number in range(depth)
        for name, place in _block(stage, number).items()
    },
    **{
        name: place
        for stage in range(len(DEPTHS))
        for name, place in conv_norm(
            f"backbone.bb_{stage}_0.short",
            f"backbone.network.layer{stage + 1}.0.downsample",
            conv="1",
            norm_name="2",
        ).items()
    },
}
"""Modules of its ResNet-vd of bottlenecks -> ours."""


def turned(name: str, value: Tensor) -> Tensor:
    """Linear layers are (in, out) in Paddle and (out, in) in torch; the way back is the same."""
    return value.t().contiguous() if value.ndim == 2 else value
