"""Published SegFormer checkpoints under our names, and back.

Official: NVlabs/SegFormer, `segformer.b*.pth`, whose backbone has our names; they hold a classifier that is never used
(`conv_seg`), which is left behind.
transformers: the files of the hub's `nvidia/segformer-*` models, which have two layers where ours has one for keys
and values.
PaddleSeg: its `segformer_b*` files (`model.pdparams`), whose backbone has our names too, for presets
`segformer_mit_b*_paddleseg`. Trap: its linear layers are (in, out), which fits square ones the wrong way as well.
All have linear layers in the head where ours has 1×1 convolutions: weights get or lose two axes.
"""

from __future__ import annotations

from torch import Tensor

from seg_models.weights.paddleseg import conv_norm, turned
from seg_models.weights.published import Layout

MAX_DEPTH = 40
"""Blocks of the deepest stage of all, that of MiT-B5."""

_OFFICIAL: dict[str, str] = {
    "backbone": "backbone.network",
    **{f"decode_head.linear_c{i + 1}.proj": f"head.linears.{i}" for i in range(4)},
    "decode_head.linear_fuse.conv": "head.fuse.conv",
    "decode_head.linear_fuse.bn": "head.fuse.norm",
    "decode_head.linear_pred": "classifier.conv",
}
_PADDLESEG: dict[str, str] = {
    "backbone": "backbone.network",
    **{f"linear_c{i + 1}.proj": f"head.linears.{i}" for i in range(4)},
    **conv_norm("linear_fuse", "head.fuse"),
    "linear_pred": "classifier.conv",
}
_BLOCK: dict[str, str] = {
    "layer_norm_1": "norm1",
    "attention.self.query": "attn.q",
    "attention.self.key": "attn.keys",
    "attention.self.value": "attn.values",
    "attention.self.sr": "attn.sr",
    "attention.self.layer_norm": "attn.norm",
    "attention.output.dense": "attn.proj",
    "layer_norm_2": "norm2",
    "mlp.dense1": "mlp.fc1",
    "mlp.dwconv": "mlp.dwconv",
    "mlp.dense2": "mlp.fc2",
}
_ENCODER, _NETWORK = "segformer.encoder.", "backbone.network."
_TRANSFORMERS: dict[str, str] = {
    **{
        f"{_ENCODER}block.{i}.{depth}.{theirs}": f"{_NETWORK}block{i + 1}.{depth}.{ours}"
        for i in range(4)
        for depth in range(MAX_DEPTH)
        for theirs, ours in _BLOCK.items()
    },
    **{f"{_ENCODER}patch_embeddings.{i}.proj": f"{_NETWORK}patch_embed{i + 1}.proj" for i in range(4)},
    **{f"{_ENCODER}patch_embeddings.{i}.layer_norm": f"{_NETWORK}patch_embed{i + 1}.norm" for i in range(4)},
    **{f"{_ENCODER}layer_norm.{i}": f"{_NETWORK}norm{i + 1}" for i in range(4)},
    **{f"decode_head.linear_c.{i}.proj": f"head.linears.{i}" for i in range(4)},
    "decode_head.linear_fuse": "head.fuse.conv",
    "decode_head.batch_norm": "head.fuse.norm",
    "decode_head.classifier": "classifier.conv",
}


def _with_kernel(name: str, value: Tensor) -> Tensor:
    """Linear layers of the head as 1×1 convolutions."""
    return value[:, :, None, None] if name.startswith("head.linears.") and value.ndim == 2 else value


def _without_kernel(name: str, value: Tensor) -> Tensor:
    return value.flatten(1) if name.startswith("head.linears.") and value.ndim == 4 else value


def _from_paddle(name: str, value: Tensor) -> Tensor:
    return _with_kernel(name, turned(name, value))


def _to_paddle(name: str, value: Tensor) -> Tensor:
    return turned(name, _without_kernel(name, value))


_PRESETS = tuple(f"segformer_mit_b{size}" for size in range(6))
OFFICIAL = Layout(
    "the authors' SegFormer",
    _OFFICIAL,
    presets=_PRESETS,
    never_used=("decode_head.conv_seg",),
    adapt=_with_kernel,
    restore=_without_kernel,
)
TRANSFORMERS = Layout(
    "transformers' SegFormer",
    _TRANSFORMERS,
    presets=_PRESETS,
    stacked={"attn.kv": ("attn.keys", "attn.values")},
    adapt=_with_kernel,
    restore=_without_kernel,
)
PADDLESEG = Layout(
    "PaddleSeg's SegFormer",
    _PADDLESEG,
    presets=tuple(f"{name}_paddleseg" for name in _PRESETS),
    adapt=_from_paddle,
    restore=_to_paddle,
    counters=False,
)
