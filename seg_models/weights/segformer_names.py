"""Published SegFormer checkpoints under our names, and back.

Official: NVlabs/SegFormer, `segformer.b*.pth`, whose backbone has our names; they hold a classifier that is never used
(`conv_seg`), which is left behind.
transformers: the files of the hub's `nvidia/segformer-*` models, which have two layers where ours has one for keys
and values.
Both have linear layers in the head where ours has 1×1 convolutions: weights get or lose two axes.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from seg_models.weights.prefixes import inverse, rename

UNUSED = "decode_head.conv_seg."
MAX_DEPTH = 40
"""Blocks of the deepest stage of all, that of MiT-B5."""

OFFICIAL: dict[str, str] = {
    "backbone.": "backbone.network.",
    **{f"decode_head.linear_c{i + 1}.proj.": f"head.linears.{i}." for i in range(4)},
    "decode_head.linear_fuse.conv.": "head.fuse.conv.",
    "decode_head.linear_fuse.bn.": "head.fuse.norm.",
    "decode_head.linear_pred.": "classifier.conv.",
}
_BLOCK: dict[str, str] = {
    "layer_norm_1.": "norm1.",
    "attention.self.query.": "attn.q.",
    "attention.self.key.": "attn.keys.",
    "attention.self.value.": "attn.values.",
    "attention.self.sr.": "attn.sr.",
    "attention.self.layer_norm.": "attn.norm.",
    "attention.output.dense.": "attn.proj.",
    "layer_norm_2.": "norm2.",
    "mlp.dense1.": "mlp.fc1.",
    "mlp.dwconv.": "mlp.dwconv.",
    "mlp.dense2.": "mlp.fc2.",
}
_ENCODER, _NETWORK = "segformer.encoder.", "backbone.network."
TRANSFORMERS: dict[str, str] = {
    **{
        f"{_ENCODER}block.{i}.{depth}.{theirs}": f"{_NETWORK}block{i + 1}.{depth}.{ours}"
        for i in range(4)
        for depth in range(MAX_DEPTH)
        for theirs, ours in _BLOCK.items()
    },
    **{f"{_ENCODER}patch_embeddings.{i}.proj.": f"{_NETWORK}patch_embed{i + 1}.proj." for i in range(4)},
    **{f"{_ENCODER}patch_embeddings.{i}.layer_norm.": f"{_NETWORK}patch_embed{i + 1}.norm." for i in range(4)},
    **{f"{_ENCODER}layer_norm.{i}.": f"{_NETWORK}norm{i + 1}." for i in range(4)},
    **{f"decode_head.linear_c.{i}.proj.": f"head.linears.{i}." for i in range(4)},
    "decode_head.linear_fuse.": "head.fuse.conv.",
    "decode_head.batch_norm.": "head.fuse.norm.",
    "decode_head.classifier.": "classifier.conv.",
}


def from_official(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of an official checkpoint under our names."""
    used = {name: value for name, value in tensors.items() if not name.startswith(UNUSED)}
    return _with_kernels(rename(used, OFFICIAL))


def to_official(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors under official names, without the classifier that is never used."""
    return rename(_without_kernels(tensors), inverse(OFFICIAL))


def from_transformers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a transformers checkpoint under our names."""
    ours = _with_kernels(rename(tensors, TRANSFORMERS))
    for name in [name for name in ours if ".attn.keys." in name]:
        values = ours.pop(name.replace(".keys.", ".values."))
        ours[name.replace(".keys.", ".kv.")] = torch.cat([ours.pop(name), values])
    return ours


def to_transformers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors under the names of transformers."""
    ours = _without_kernels(tensors)
    for name in [name for name in ours if ".attn.kv." in name]:
        keys, values = ours.pop(name).chunk(2)
        ours |= {name.replace(".kv.", ".keys."): keys, name.replace(".kv.", ".values."): values}
    return rename(ours, inverse(TRANSFORMERS))


def _with_kernels(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Linear layers of the head as 1×1 convolutions."""
    return {
        name: value[:, :, None, None] if name.startswith("head.linears.") and value.ndim == 2 else value
        for name, value in tensors.items()
    }


def _without_kernels(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: value.flatten(1) if name.startswith("head.linears.") and value.ndim == 4 else value
        for name, value in tensors.items()
    }
