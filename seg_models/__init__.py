"""What a segmentation model is: settings, networks, losses, prediction, metrics, export.

Needs torch, torchvision, timm, numpy, pydantic and safetensors, and nothing of the pipeline around it. Captum
attributions and ONNX files need the packages that their error messages name.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from seg_models.version import __version__

if TYPE_CHECKING:
    from seg_models.checkpoints import LoadedModel, load_model, save_model
    from seg_models.models import ModelInfo, create_model, describe_model, list_models
    from seg_models.outputs import SegModel, SemanticOutput, SemanticTarget
    from seg_models.spec import ModelSpec, Spec

__all__ = [
    "LoadedModel",
    "ModelInfo",
    "ModelSpec",
    "SegModel",
    "SemanticOutput",
    "SemanticTarget",
    "Spec",
    "__version__",
    "create_model",
    "describe_model",
    "list_models",
    "load_model",
    "save_model",
]

_HOMES = {
    "checkpoints": ("LoadedModel", "load_model", "save_model"),
    "models": ("ModelInfo", "create_model", "describe_model", "list_models"),
    "outputs": ("SegModel", "SemanticOutput", "SemanticTarget"),
    "spec": ("ModelSpec", "Spec"),
}


def __getattr__(name: str) -> Any:
    """Import on first use: the command line shows its help without waiting for torch."""
    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"seg_models.{module}"), name)
    raise AttributeError(f"module 'seg_models' has no attribute {name!r}")
