"""Any timm network as a pyramid of features.

Shapes: N batch, C channels, H W pixels; level i has strides[i] pixels per cell.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from typing import Any, Literal, Self, TypeVar

import timm
from pydantic import Field, field_validator, model_validator
from timm.layers import PatchEmbed
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from seg_models.backbones.mit import MIT
from seg_models.backbones.pretrained import load_backbone
from seg_models.backbones.wide_resnet38 import WideResNet38
from seg_models.parts.layers import IMAGENET_MEAN, IMAGENET_STD, Normalize
from seg_models.spec import Spec, did_you_mean
from seg_models.weights.files import SHA256, TIMM, load_tensors, resolve_weights

log = logging.getLogger(__name__)
SpecT = TypeVar("SpecT", bound=Spec)

OWN_NETWORKS: dict[str, Callable[..., nn.Module]] = {**MIT, "wideresnet38": WideResNet38}
"""Networks that timm lacks; each has timm's `feature_info`."""


class BackboneSpec(Spec):
    """A timm network without its classifier, or one that timm lacks."""

    name: str
    """timm model name, such as resnet50, resnet50d (deep stem, pooled shortcuts), mobilenetv2_100; or one that timm
    lacks: mit_b0 … mit_b5, wideresnet38."""
    output_stride: Literal[4, 8, 16, 32] = 32
    """Pixels per cell of the last level; below the network's own stride its last stages are dilated instead."""
    pretrained: bool = False
    """Fetch timm's published ImageNet weights."""
    weights: str | None = None
    """A classifier's weights: a path, `package:module/file`, an https URL or, in a job, an `s3://` address."""
    weights_sha256: str | None = Field(None, pattern=SHA256)
    """What the weights file must hash to, or how that begins."""
    match: Literal["name", "order"] = "name"
    """How tensors of `weights` find their place: by name, or in order with shapes checked."""
    mean: tuple[float, float, float] | None = None
    """Channel means of the input, of 1; default: what timm's weights were trained with."""
    std: tuple[float, float, float] | None = None
    """Channel deviations of the input, of 1; default: what timm's weights were trained with."""
    frozen_norm: bool = False
    """Keep batch norms on their running statistics in training; needed by weights whose norms were folded away."""
    model_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of the network's constructor, such as pad_type = "same"."""

    @field_validator("model_kwargs")
    @classmethod
    def _as_json(cls, value: dict[str, Any]) -> dict[str, Any]:
        """The arguments as a file would hold them: settings compare equal before and after JSON."""
        try:
            arguments: dict[str, Any] = json.loads(json.dumps(value))
        except TypeError as error:
            raise ValueError(f"model_kwargs must hold plain values: {error}") from error
        return arguments

    @model_validator(mode="after")
    def _check_weights(self) -> Self:
        if self.pretrained and self.weights is not None:
            raise ValueError("set either `pretrained` or `weights`, not both")
        if self.weights is None and (self.weights_sha256 is not None or self.match != "name"):
            raise ValueError("`weights_sha256` and `match` have no effect without `weights`")
        return self

    @property
    def weights_ref(self) -> str | None:
        """Where the weights come from, in the form `resolve_weights` reads; None for random ones."""
        return f"{TIMM}{self.name}" if self.pretrained else self.weights

    def build(self) -> Backbone:
        """The network, with weights if the settings name any.

        Raises:
            ValueError: unknown name, a stride the network cannot have, weights that are missing or do not fit.
        """
        network = _feature_network(self)
        config: dict[str, Any] = network.pretrained_cfg or {}
        if self.weights is not None:
            _load(network, self)
        return Backbone(
            network,
            channels=tuple(network.feature_info.channels()),
            strides=tuple(network.feature_info.reduction()),
            mean=self.mean or tuple(config.get("mean", IMAGENET_MEAN)),
            std=self.std or tuple(config.get("std", IMAGENET_STD)),
            frozen_norm=self.frozen_norm,
            channels_last=getattr(network, "output_fmt", None) == "NHWC",
        )


class Backbone(nn.Module):
    """A network whose stages are its outputs.

    Attributes:
        channels: channels of each level, fine to coarse.
        strides: pixels per cell of each level.
        channels_last: whether the network gives its levels as (N, h, w, C), as Swin does.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        channels: tuple[int, ...],
        strides: tuple[int, ...],
        mean: tuple[float, ...],
        std: tuple[float, ...],
        frozen_norm: bool = False,
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        self.normalize = Normalize(mean=mean, std=std)
        self.network = network
        self.channels = channels
        self.strides = strides
        self.frozen_norm = frozen_norm
        self.channels_last = channels_last

    def forward(self, images: Tensor) -> list[Tensor]:
        """(N, 3, H, W) images, uint8 or float in 0..255, to one (N, C, h, w) per level."""
        features: list[Tensor] = self.network(self.normalize(images))
        return [level.permute(0, 3, 1, 2) for level in features] if self.channels_last else features

    def train(self, mode: bool = True) -> Self:
        """Training mode, but for batch norms that the settings froze."""
        super().train(mode)
        if self.frozen_norm:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self


def _feature_network(spec: BackboneSpec) -> Any:
    if spec.name not in OWN_NETWORKS and not timm.is_model(spec.name):
        known = [*OWN_NETWORKS, *timm.list_models()]
        raise ValueError(f"backbone.name: unknown timm model {spec.name!r}{did_you_mean(spec.name, known)}")
    stride = {} if spec.output_stride == 32 else {"output_stride": spec.output_stride}
    try:
        network = _create(spec, **stride)
    except (TypeError, AssertionError, NotImplementedError) as error:
        network = _create_with_own_stride(spec, error) if stride else _refuse(spec, str(error))
    found = network.feature_info.reduction()[-1]
    if found != spec.output_stride:
        _refuse(spec, f"its stride is {found}")
    return network


def _create_with_own_stride(spec: BackboneSpec, error: Exception) -> Any:
    """A network that cannot be dilated is fine where its own stride is the wanted one."""
    try:
        return _create(spec)
    except (TypeError, AssertionError, NotImplementedError):
        return _refuse(spec, str(error) or type(error).__name__)


def _create(spec: BackboneSpec, **stride: int) -> Any:
    arguments = {**spec.model_kwargs, **stride}
    if spec.name in OWN_NETWORKS:
        return _create_own(spec, arguments)
    try:
        network = timm.create_model(spec.name, pretrained=spec.pretrained, features_only=True, **arguments)
    except (OSError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        fix = " (fetching weights needs the network; or set `weights` to a local file)" if spec.pretrained else ""
        raise ValueError(f"backbone {spec.name!r} cannot be made: {reason}{fix}") from error
    _pad_to_patches(network)
    return network


def _create_own(spec: BackboneSpec, arguments: dict[str, Any]) -> Any:
    if spec.pretrained:
        raise ValueError(f"timm has no published weights for {spec.name!r}: give the path of a file as `weights`")
    return OWN_NETWORKS[spec.name](**arguments)


def _pad_to_patches(network: nn.Module) -> None:
    """Networks that take images of any size pad them to whole patches; timm can, but has no argument for it."""
    for module in network.modules():
        if isinstance(module, PatchEmbed) and not module.strict_img_size:
            module.dynamic_img_pad = True


def _refuse(spec: BackboneSpec, reason: str) -> Any:
    raise ValueError(
        f"timm model {spec.name!r} cannot be a backbone with output_stride {spec.output_stride}: {reason}; "
        "choose another output_stride or backbone"
    )


def _load(network: nn.Module, spec: BackboneSpec) -> None:
    assert spec.weights is not None
    path = resolve_weights(spec.weights, sha256=spec.weights_sha256)
    unused = load_backbone(network, load_tensors(path), match=spec.match, origin=path.name)
    log.info("backbone %s: weights from %s, not used: %s", spec.name, path.name, ", ".join(unused) or "none")


def find_weights(spec: Spec, *, fetch: bool = True) -> None:
    """Make sure that the weights that the settings name for any backbone are on this machine.

    Args:
        spec: settings of a model, with backbones anywhere inside.
        fetch: fetch published ones into the local cache; else only files and packages are looked for.

    Raises:
        ValueError: weights are missing or cannot be fetched; the message says where to put them.
    """
    for backbone in backbones_of(spec):
        ref = backbone.weights_ref
        if ref is not None and (fetch or not ref.startswith((TIMM, "https://"))):
            resolve_weights(ref, sha256=backbone.weights_sha256)


def backbones_of(spec: Spec) -> Iterator[BackboneSpec]:
    """The settings of every backbone inside the settings of a model."""
    for _, value in spec:
        if isinstance(value, Spec):
            yield from backbones_of(value)
    if isinstance(spec, BackboneSpec):
        yield spec


def without_weights(spec: SpecT) -> SpecT:
    """The same settings with every backbone untrained: to count parameters, or to fill from a checkpoint."""
    untrained = {"pretrained": False, "weights": None, "weights_sha256": None, "match": "name"}
    return change_backbones(spec, lambda _: untrained)


def move_weights(spec: SpecT, locate: Callable[[str], str]) -> SpecT:
    """The same settings with the weights of every backbone taken from where `locate` says they are."""
    return change_backbones(spec, lambda backbone: {"weights": backbone.weights and locate(backbone.weights)})


def change_backbones(spec: SpecT, change: Callable[[BackboneSpec], dict[str, Any]]) -> SpecT:
    """The same settings with some of every backbone's changed, wherever it stands."""
    changes: dict[str, Any] = {name: change_backbones(value, change) for name, value in spec if isinstance(value, Spec)}
    if isinstance(spec, BackboneSpec):
        changes.update(change(spec))
    return spec.model_copy(update=changes)
