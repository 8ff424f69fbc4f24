"""Tensors of classifiers that torchvision published, under the names timm gives the same networks."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

_DENSE = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")  # DenseNet's files: names torch no longer allows
# VGG: timm writes the first two linear layers as convolutions.
_VGG: dict[str, tuple[str, tuple[int, ...]]] = {
    "classifier.0.weight": ("pre_logits.fc1.weight", (-1, 512, 7, 7)),
    "classifier.0.bias": ("pre_logits.fc1.bias", (-1,)),
    "classifier.3.weight": ("pre_logits.fc2.weight", (-1, 4096, 1, 1)),
    "classifier.3.bias": ("pre_logits.fc2.bias", (-1,)),
    "classifier.6.weight": ("head.fc.weight", (-1, 4096)),
    "classifier.6.bias": ("head.fc.bias", (-1,)),
}


def timm_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of a DenseNet or VGG; what has timm's names already passes unchanged."""
    return dict(_renamed(name, tensor) for name, tensor in tensors.items())


def _renamed(name: str, tensor: Tensor) -> tuple[str, Tensor]:
    if name in _VGG:
        ours, shape = _VGG[name]
        return ours, tensor.reshape(shape)
    return _DENSE.sub(r"\1\2", name), tensor
