"""Synthetic checkpoints from the literal lists of published keys and shapes in `tests/names`."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from seg_models import create_model
from seg_models.architectures.fastfcn_heads import EncodingHeadSpec
from seg_models.outputs import SegModel

LISTS = Path(__file__).resolve().parent / "names"


class Case(NamedTuple):
    """One published checkpoint and the network it belongs to."""

    layout: str
    """Name in LAYOUTS."""
    preset: str
    num_classes: int
    files: tuple[str, ...]
    """Lists that make up the checkpoint, without the ending."""
    changes: tuple[tuple[str, object], ...] = ()
    """Settings that differ from the preset."""

    def tensors(self) -> dict[str, Tensor]:
        """The checkpoint: in every tensor a number of its own, and no memory for its pixels."""
        if self.layout in _PREFIXED:
            return _PREFIXED[self.layout]()
        return from_lists(*self.files)

    def model(self) -> SegModel:
        """The network on the meta device, which is all that names and shapes need; shared, for nothing fills it."""
        return _network(self.preset, self.num_classes, self.changes)


@cache
def _network(preset: str, num_classes: int, changes: tuple[tuple[str, object], ...]) -> SegModel:
    with torch.device("meta"):
        return create_model(preset, num_classes=num_classes, **dict(changes))


def from_lists(*files: str) -> dict[str, Tensor]:
    """Lists with a key and a shape such as 64x3x7x7 on a line."""
    lines = [line for file in files for line in (LISTS / f"{file}.txt").read_text().splitlines()]
    shapes = {name: _sides(shape) for name, _, shape in (line.partition(" ") for line in lines)}
    return _numbered(shapes)


def from_layer_list(file: str, *, prefix: str = "") -> dict[str, Tensor]:
    """A list with a layer on a line: name, `conv` or `norm`, shape and, if it has one, `bias`."""
    shapes: dict[str, tuple[int, ...]] = {}
    for line in (LISTS / f"{file}.txt").read_text().splitlines():
        layer, kind, shape, *bias = line.split()
        sides = _sides(shape)
        shapes[f"{prefix}{layer}.weight"] = sides
        if kind == "norm":
            shapes.update({f"{prefix}{layer}.{part}": sides for part in ("bias", "running_mean", "running_var")})
            shapes[f"{prefix}{layer}.num_batches_tracked"] = ()
        elif bias:
            shapes[f"{prefix}{layer}.bias"] = sides[:1]
    return _numbered(shapes)


def _sides(shape: str) -> tuple[int, ...]:
    return tuple(int(side) for side in shape.split("x") if side)


def _numbered(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    return {name: torch.tensor(float(number)).expand(shape) for number, (name, shape) in enumerate(shapes.items())}


def _nvidia() -> dict[str, Tensor]:
    trunk = from_layer_list("hrnet_w48_trunk", prefix="module.backbone.")
    return {**trunk, **from_layer_list("hmsa_nvidia_heads", prefix="module.")}


def _hrnet_ocr() -> dict[str, Tensor]:
    heads = from_layer_list("hmsa_nvidia_heads")
    own = {f"model.{name.removeprefix('ocr.')}": value for name, value in heads.items() if name.startswith("ocr.")}
    return {**from_layer_list("hrnet_w48_trunk", prefix="model."), **own}


def _ocrnet() -> dict[str, Tensor]:
    return {**from_layer_list("hrnet_w48_trunk", prefix="backbone."), **from_layer_list("ocrnet_mmseg_heads")}


_PREFIXED = {"hmsa_nvidia": _nvidia, "hrnet_ocr_official": _hrnet_ocr, "ocrnet_mmseg": _ocrnet}
_LATERAL = (("head", EncodingHeadSpec(kernel_size=3, lateral=True)),)


def _fastfcn(origin: str, head: str, classes: int, *parts: str, ending: str = "") -> Case:
    files = tuple(f"fastfcn_{origin}_{part}" for part in ("resnet50", *parts, f"head_{head}"))
    return Case(f"fastfcn_{origin}_{head}", f"fastfcn_resnet50_{head}{ending}", classes, files)


CASES = (
    Case("ccnet_mmseg", "ccnet_resnet50", 19, ("ccnet_mmseg_resnet50",)),
    Case("ccnet_official", "ccnet_resnet101_official", 19, ("ccnet_official_resnet101",)),
    Case("cft_mmseg", "cft_resnet50", 150, ("cft_mmseg_resnet50",)),
    Case("danet_mmseg", "danet_resnet50", 19, ("danet_mmseg_resnet50",)),
    Case("danet_official", "danet_resnet101_official", 19, ("danet_official_resnet101",)),
    *(_fastfcn("mmseg", head, 19, ending="_mmseg") for head in ("enc", "aspp", "psp")),
    *(_fastfcn("official", head, 59, "jpu") for head in ("enc", "aspp", "psp", "fcn")),
    _fastfcn("official", "enc", 59, "jpux", ending="_jpux"),
    Case(
        "fastfcn_official_enc",
        "fastfcn_resnet50_enc_dilated",
        59,
        ("fastfcn_official_resnet50", "fastfcn_official_head_enc_lateral"),
        _LATERAL,
    ),
    Case("gated_scnn_official", "gated_scnn_wideresnet38_official", 19, ("gscnn_official_wideresnet38",)),
    Case("hmsa_nvidia", "hmsa_w48", 19, ("hrnet_w48_trunk", "hmsa_nvidia_heads")),
    Case("hrnet_ocr_official", "hrnet_ocr_w48", 19, ("hrnet_w48_trunk", "hmsa_nvidia_heads")),
    Case("ocrnet_mmseg", "hrnet_ocr_w48", 19, ("hrnet_w48_trunk", "ocrnet_mmseg_heads"), (("conv_bias", False),)),
    Case("ocrnet_mmseg_resnet", "ocrnet_resnet101", 19, ("ocrnet_mmseg_resnet101",)),
    Case("pspnet_paddleseg", "pspnet_resnet50_paddleseg", 19, ("pspnet_paddleseg_resnet50",)),
    Case(
        "pspnet_paddleseg",
        "pspnet_resnet101_paddleseg",
        19,
        ("pspnet_paddleseg_resnet101_more", "pspnet_paddleseg_resnet50"),
    ),
    Case("pspnet_mmseg", "pspnet_resnet50", 19, ("pspnet_mmseg_resnet50",)),
    Case("segformer_paddleseg", "segformer_mit_b0_paddleseg", 19, ("segformer_paddleseg_mit_b0",)),
    Case("segformer_official", "segformer_mit_b0", 150, ("segformer_official_mit_b0",)),
    Case("segformer_transformers", "segformer_mit_b0", 150, ("segformer_transformers_mit_b0",)),
    Case("semfpn_mmseg", "semfpn_resnet50", 150, ("semfpn_mmseg_resnet50",)),
)
