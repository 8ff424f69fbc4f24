"""WideResNet-38, variant A2: backbone of Gated-SCNN and of DeepLabV3+ at NVIDIA.

Wu, Shen, van den Hengel: Wider or Deeper: Revisiting the ResNet Model for Visual Recognition, arXiv 1611.10080; A2 is
the form of Rota Bulò, Porzi, Kontschieder: In-Place Activated BatchNorm, CVPR 2018, arXiv 1712.02616.

A 3×3 convolution at full resolution and six modules of blocks that norm and activate before each convolution. The first
two modules are preceded by max pooling; later ones stride, or dilate where the output stride is smaller. The last norm
of the classifier is not part of it: the last level is raw, as Gated-SCNN takes it (specs: Gated-SCNN section 1.1).

Modules are named as in the published checkpoints, so `weights` takes an ImageNet file with `match = "order"`.

Shapes: N batch, C channels, H W pixels, h w cells.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence

from timm.models import FeatureInfo
from torch import Tensor, nn

STEM_CHANNELS = 64
CHANNELS = ((128, 128), (256, 256), (512, 512), (512, 1024), (512, 1024, 2048), (1024, 2048, 4096))
"""Output channels of the convolutions of a block, for modules 2 to 7: two 3×3, or 1×1, 3×3, 1×1."""
PLAN: dict[int, tuple[tuple[int, int], ...]] = {
    8: ((1, 1), (1, 1), (2, 1), (1, 2), (1, 4), (1, 4)),
    16: ((1, 1), (1, 1), (2, 1), (2, 1), (1, 2), (1, 2)),
    32: ((1, 1), (1, 1), (2, 1), (2, 1), (2, 1), (1, 1)),
}
"""Output stride -> stride of the first block and dilation of all blocks, for modules 2 to 7."""
TAPS = (1, 2, 3, 4, 7)
"""The modules that are levels of the pyramid."""


class WideResNet38(nn.Module):
    """Images to the maps of modules 1, 2, 3, 4 and 7: strides 1, 2, 4, 8 and the output stride.

    Args:
        output_stride: 8, 16 or 32 pixels per cell of the last level.
        width: factor of all channels; 1 is the published network.
        depths: blocks of modules 2 to 7.
        dropout: probability that a channel is zeroed before the last convolution of modules 6 and 7.

    Raises:
        ValueError: an output stride that the network cannot have, or not six depths.
    """

    def __init__(
        self,
        *,
        output_stride: int = 32,
        width: float = 1.0,
        depths: Sequence[int] = (3, 3, 6, 3, 1, 1),
        dropout: Sequence[float] = (0.3, 0.5),
    ) -> None:
        super().__init__()
        if output_stride not in PLAN:
            raise ValueError(
                f"WideResNet-38 has no output_stride {output_stride}: allowed are {', '.join(map(str, PLAN))}"
            )
        if len(depths) != len(CHANNELS):
            raise ValueError(f"depths {list(depths)}: WideResNet-38 has six modules of blocks")
        in_channels = round(width * STEM_CHANNELS)
        self.mod1 = nn.Sequential(OrderedDict(conv1=nn.Conv2d(3, in_channels, 3, padding=1, bias=False)))
        self.pool2 = nn.MaxPool2d(3, stride=2, padding=1)
        self.pool3 = nn.MaxPool2d(3, stride=2, padding=1)
        plan = zip(CHANNELS, depths, PLAN[output_stride], (0, 0, 0, 0, *dropout), strict=True)
        for number, (channels, depth, (stride, dilation), drop) in enumerate(plan, start=2):
            scaled = tuple(round(width * channel) for channel in channels)
            blocks = OrderedDict[str, nn.Module]()
            for index in range(1, depth + 1):
                blocks[f"block{index}"] = PreActivationBlock(
                    in_channels, scaled, stride=stride if index == 1 else 1, dilation=dilation, dropout=drop
                )
                in_channels = scaled[-1]
            self.add_module(f"mod{number}", nn.Sequential(blocks))
        self.feature_info = _feature_info(width, output_stride)
        self.pretrained_cfg: Mapping[str, object] = {}  # ImageNet's mean and deviation

    def forward(self, images: Tensor) -> list[Tensor]:
        """(N, 3, H, W) normalised images to five maps (N, C, h, w), fine to coarse."""
        features, x = [], images
        for number in range(1, 8):
            if number in (2, 3):
                x = self.get_submodule(f"pool{number}")(x)
            x = self.get_submodule(f"mod{number}")(x)
            if number in TAPS:
                features.append(x)
        return features


class PreActivationBlock(nn.Module):
    """Norm, ReLU and convolution, twice or three times, added to the input.

    The shortcut is the input itself, or a 1×1 convolution of the activated input where channels or stride change.

    Args:
        in_channels: channels of the input.
        channels: output channels of two 3×3 convolutions, or of a 1×1, a 3×3 and a 1×1 convolution.
        stride: of the first convolution.
        dilation: of the 3×3 convolutions.
        dropout: probability that a channel before the last convolution is zeroed in training.
    """

    def __init__(
        self, in_channels: int, channels: Sequence[int], *, stride: int = 1, dilation: int = 1, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.bn1 = _norm_act(in_channels)
        kernels = (3, 3) if len(channels) == 2 else (1, 3, 1)
        convs = OrderedDict[str, nn.Module]()
        source = in_channels
        for index, (target, kernel) in enumerate(zip(channels, kernels, strict=True), start=1):
            if index > 1:
                convs[f"bn{index}"] = _norm_act(source)
            if dropout and index == len(channels):
                convs["dropout"] = nn.Dropout2d(dropout)
            convs[f"conv{index}"] = _conv(
                source, target, kernel=kernel, stride=stride if index == 1 else 1, dilation=dilation
            )
            source = target
        self.convs = nn.Sequential(convs)
        changes = stride != 1 or in_channels != source
        self.proj_conv = nn.Conv2d(in_channels, source, 1, stride=stride, bias=False) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) to (N, C', h', w')."""
        activated = self.bn1(x)
        shortcut = x if self.proj_conv is None else self.proj_conv(activated)
        out: Tensor = self.convs(activated) + shortcut
        return out


def _norm_act(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU(inplace=True))


def _conv(in_channels: int, out_channels: int, *, kernel: int, stride: int, dilation: int) -> nn.Conv2d:
    """A convolution that keeps the size at stride 1; a 1×1 kernel has nothing to dilate."""
    spread = dilation if kernel > 1 else 1
    padding = spread * (kernel // 2)
    return nn.Conv2d(in_channels, out_channels, kernel, stride=stride, padding=padding, dilation=spread, bias=False)


def _feature_info(width: float, output_stride: int) -> FeatureInfo:
    """Channels and strides of the levels, as timm's feature networks tell them."""
    channels = (STEM_CHANNELS, *(CHANNELS[number - 2][-1] for number in TAPS[1:]))
    strides = (1, 2, 4, 8, output_stride)
    levels = [
        {"num_chs": round(width * channel), "reduction": stride, "module": f"mod{number}"}
        for number, channel, stride in zip(TAPS, channels, strides, strict=True)
    ]
    return FeatureInfo(levels, out_indices=tuple(range(len(levels))))
