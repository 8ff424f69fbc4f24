"""Models by name."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from seg_models.backbones.timm_backbone import without_weights
from seg_models.outputs import SegModel
from seg_models.spec import ModelSpec, did_you_mean, merge, presets, resolve_model_spec

DEFAULT_SIZE = (512, 512)


@dataclass(frozen=True)
class ModelInfo:
    """What a model costs."""

    name: str
    arch: str
    num_classes: int
    params: int
    """All parameters."""
    params_main: int
    """Parameters that prediction uses."""
    params_aux: int
    """Parameters of auxiliary heads, used in training only."""
    gmac: float
    """10⁹ multiply-adds of convolutions and matrix products for one image, auxiliary heads left out."""
    input_size: tuple[int, int]
    """Height and width that `gmac` is for."""


def create_model(name_or_spec: ModelSpec | str | Mapping[str, Any], *, num_classes: int, **changes: Any) -> SegModel:
    """Build a model; nothing is downloaded unless the settings ask for pretrained weights.

    Args:
        name_or_spec: a name of `list_models()`, settings, or a table of settings.
        num_classes: number of classes, void not counted.
        **changes: settings that differ, such as `bins=(1, 2)` or `backbone={"pretrained": True}`.

    Raises:
        ValueError: unknown name or setting, or weights that are missing.
    """
    if num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, found {num_classes}")
    return change_spec(resolve_model_spec(name_or_spec), changes).build(num_classes)


def change_spec(spec: ModelSpec, changes: Mapping[str, Any]) -> ModelSpec:
    """The settings with some of them replaced, table by table.

    Raises:
        ValueError: a setting that does not exist; the message holds the nearest one.
    """
    for key in changes:
        if key not in type(spec).model_fields:
            raise ValueError(f"{spec.arch} has no setting {key!r}{did_you_mean(key, type(spec).model_fields)}")
    return type(spec).model_validate(merge(spec.model_dump(), changes)) if changes else spec


def list_models(pattern: str | None = None) -> list[str]:
    """Names for `create_model`, in alphabetical order.

    Args:
        pattern: shell pattern such as `pspnet_resnet*`; default all.
    """
    return [name for name in presets() if pattern is None or fnmatch.fnmatchcase(name, pattern)]


def build_shapes(spec: ModelSpec, num_classes: int) -> SegModel:
    """A model whose weights have shapes and no values, on torch's meta device; it takes no memory.

    Args:
        num_classes: number of classes, void not counted.
    """
    with torch.device("meta"):
        return without_weights(spec).build(num_classes)


def describe_model(
    name_or_spec: ModelSpec | str | Mapping[str, Any], *, num_classes: int, size: tuple[int, int] | None = None
) -> ModelInfo:
    """Parameters and multiply-adds of a model, counted without allocating its weights.

    Args:
        name_or_spec: a name of `list_models()`, settings, or a table of settings.
        num_classes: number of classes, void not counted.
        size: height and width of the input; default 512×512.

    Raises:
        ValueError: unknown name or setting.
    """
    spec = without_weights(resolve_model_spec(name_or_spec))
    model = build_shapes(spec, num_classes).eval()
    height, width = size or DEFAULT_SIZE
    aux = sum(value.numel() for name, value in model.named_parameters() if ".aux" in f".{name}")
    total = sum(value.numel() for value in model.parameters())
    return ModelInfo(
        name=name_or_spec if isinstance(name_or_spec, str) else _preset_name(spec),
        arch=spec.arch,
        num_classes=num_classes,
        params=total,
        params_main=total - aux,
        params_aux=aux,
        gmac=_count_gmac(model, height=height, width=width),
        input_size=(height, width),
    )


def _preset_name(spec: ModelSpec) -> str:
    """The name of these settings, or the architecture's for settings of one's own."""
    return next((name for name, named in presets().items() if without_weights(named) == spec), spec.arch)


def _count_gmac(model: SegModel, *, height: int, width: int) -> float:
    images = torch.empty(1, 3, height, width, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(images)
    return float(counter.get_total_flops()) / 2e9
