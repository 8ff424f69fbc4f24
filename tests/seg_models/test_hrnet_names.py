"""Published HRNet checkpoints: every tensor of a literal list has its place, both ways."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from seg_models import create_model
from seg_models.outputs import SegModel
from seg_models.weights.hrnet_names import HRNET_OCR, MMSEG_OCRNET, NVIDIA_HMSA
from seg_models.weights.published import NameMap, compare_tensors, import_tensors

LISTS = Path(__file__).parents[1] / "names"
"""One line per layer of the published file: name, kind, shape. Written from specs: HMSA sections 1, 2, 3 and 10."""


def published(name: str, *, prefix: str = "") -> dict[str, Tensor]:
    """The tensors of a list, without contents."""
    tensors: dict[str, tuple[int, ...]] = {}
    for line in (LISTS / name).read_text(encoding="utf-8").splitlines():
        layer, kind, shape, *bias = line.split()
        sides = tuple(int(side) for side in shape.split("x"))
        tensors[f"{prefix}{layer}.weight"] = sides
        if kind == "norm":
            tensors.update({f"{prefix}{layer}.{part}": sides for part in ("bias", "running_mean", "running_var")})
            tensors[f"{prefix}{layer}.num_batches_tracked"] = ()
        elif bias:
            tensors[f"{prefix}{layer}.bias"] = sides[:1]
    return {key: torch.empty(size, device="meta") for key, size in tensors.items()}


def nvidia() -> dict[str, Tensor]:
    trunk = published("hrnet_w48_trunk.txt", prefix="module.backbone.")
    return {**trunk, **published("hmsa_nvidia_heads.txt", prefix="module.")}


def hrnet_ocr() -> dict[str, Tensor]:
    heads = published("hmsa_nvidia_heads.txt")
    own = {f"model.{name.removeprefix('ocr.')}": value for name, value in heads.items() if name.startswith("ocr.")}
    return {**published("hrnet_w48_trunk.txt", prefix="model."), **own}


def mmseg() -> dict[str, Tensor]:
    return {**published("hrnet_w48_trunk.txt", prefix="backbone."), **published("ocrnet_mmseg_heads.txt")}


def on_meta(name: str, **changes: object) -> SegModel:
    with torch.device("meta"):
        return create_model(name, num_classes=19, **changes)


CASES = {
    "nvidia": (NVIDIA_HMSA, nvidia(), on_meta("hmsa_w48")),
    "hrnet_ocr": (HRNET_OCR, hrnet_ocr(), on_meta("hrnet_ocr_w48")),
    "mmseg": (MMSEG_OCRNET, mmseg(), on_meta("hrnet_ocr_w48", conv_bias=False)),
}
every_layout = pytest.mark.parametrize(("names", "tensors", "model"), CASES.values(), ids=CASES.keys())


@every_layout
def test_every_published_tensor_has_a_place_and_every_place_a_tensor(
    names: NameMap, tensors: dict[str, Tensor], model: SegModel
) -> None:
    account = compare_tensors(model, tensors, names)
    assert account.complete, account.text()
    assert {theirs: names.theirs(ours) for theirs, ours in account.used} == {name: name for name in tensors}


@every_layout
def test_a_checkpoint_of_another_layout_is_refused_with_an_account(
    names: NameMap, tensors: dict[str, Tensor], model: SegModel
) -> None:
    wrong = {f"x.{name}": value for name, value in tensors.items()}
    with pytest.raises(ValueError, match=rf"does not fit .*{names.origin}: 0 tensors used; \d+ unused \(x\."):
        import_tensors(model, wrong, names)


def test_a_checkpoint_with_other_classes_names_the_layers_that_differ() -> None:
    account = compare_tensors(on_meta("hmsa_w48", inner={"conv_bias": True}), nvidia(), NVIDIA_HMSA)
    assert account.complete
    with torch.device("meta"):
        other = create_model("hmsa_w48", num_classes=65)
    differs = compare_tensors(other, nvidia(), NVIDIA_HMSA).misshapen
    assert [text.split()[0] for text in differs] == [
        "module.ocr.cls_head.weight",
        "module.ocr.cls_head.bias",
        "module.ocr.aux_head.2.weight",
        "module.ocr.aux_head.2.bias",
    ]
