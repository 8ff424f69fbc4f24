"""Settings: one family of frozen pydantic models, and the table of built-in architectures."""

from __future__ import annotations

import abc
import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, SerializeAsAny

from seg_models.names import did_you_mean as did_you_mean

if TYPE_CHECKING:  # what only reads settings, such as the workers of ingest, starts without torch
    from seg_models.outputs import SegModel


class Spec(BaseModel):
    """Base of every setting: frozen, unknown keys refused, field docstrings are the help texts.

    Numbers are finite: JSON, in which every job is kept beside its result, has no others.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=(), allow_inf_nan=False
    )


class ModelSpec(Spec, abc.ABC):
    """Settings of one architecture."""

    arch: str
    """Built-in architecture name, or `package.module:Class` of a ModelSpec of your own."""

    @abc.abstractmethod
    def build(self, num_classes: int) -> SegModel:
        """Wire the parts of the network for `num_classes` classes (void not counted)."""


# The one table of built-in architectures: name -> where its settings live.
ARCHITECTURES: dict[str, str] = {
    "alignseg": "seg_models.architectures.alignseg:AlignSegSpec",
    "ccnet": "seg_models.architectures.ccnet:CCNetSpec",
    "cft": "seg_models.architectures.cft:CFTSpec",
    "condnet": "seg_models.architectures.condnet:CondNetSpec",
    "danet": "seg_models.architectures.danet:DANetSpec",
    "deeplabv3": "seg_models.architectures.deeplabv3:DeepLabV3Spec",
    "deeplabv3plus": "seg_models.architectures.deeplabv3plus:DeepLabV3PlusSpec",
    "fapn": "seg_models.architectures.fapn:FaPNSpec",
    "fastfcn": "seg_models.architectures.fastfcn:FastFCNSpec",
    "fcn": "seg_models.architectures.fcn:FCNSpec",
    "gated_scnn": "seg_models.architectures.gated_scnn:GatedSCNNSpec",
    "hmsa": "seg_models.architectures.hmsa:HMSASpec",
    "hmsa_average": "seg_models.architectures.scale_baselines:AverageScalesSpec",
    "hmsa_explicit": "seg_models.architectures.scale_baselines:ExplicitScalesSpec",
    "hrnet_ocr": "seg_models.architectures.hrnet_ocr:HRNetOCRSpec",
    "ocrnet": "seg_models.architectures.ocrnet:OCRNetSpec",
    "pspnet": "seg_models.architectures.pspnet:PSPNetSpec",
    "segformer": "seg_models.architectures.segformer:SegFormerSpec",
    "semfpn": "seg_models.architectures.semfpn:SemFPNSpec",
    "vtfpn": "seg_models.architectures.vtfpn:VTFPNSpec",
}


def import_object(path: str) -> Any:
    """Import `package.module:name`.

    Raises:
        ValueError: the text has no colon, or nothing of that name can be imported.
    """
    module_name, _, name = path.partition(":")
    if not name:
        raise ValueError(f"{path!r} is not of the form 'package.module:Name'")
    try:
        return getattr(importlib.import_module(module_name), name)
    except ModuleNotFoundError as error:
        hint = "; install it, or name its folder in PYTHONPATH" if module_name.startswith(str(error.name)) else ""
        raise ValueError(f"{path!r} cannot be imported: {error}{hint}") from error
    except ImportError as error:
        raise ValueError(f"{path!r} cannot be imported: {error}") from error
    except AttributeError as error:
        raise ValueError(f"module {module_name!r} has no {name!r}") from error


def spec_class(arch: str) -> type[ModelSpec]:
    """The settings class behind an architecture name or a `package.module:Class` path.

    Raises:
        ValueError: unknown name, or the object named is not a ModelSpec.
    """
    if arch not in ARCHITECTURES and ":" not in arch:
        known = ", ".join(sorted(ARCHITECTURES))
        raise ValueError(f"unknown architecture {arch!r}{did_you_mean(arch, ARCHITECTURES)}; known: {known}")
    found = import_object(ARCHITECTURES.get(arch, arch))
    if not (isinstance(found, type) and issubclass(found, ModelSpec)):
        raise ValueError(f"{arch!r} is not a ModelSpec class")
    return found


def resolve_model_spec(value: ModelSpec | str | Mapping[str, Any]) -> ModelSpec:
    """Turn a preset name, a table with `arch` or `preset`, or a finished spec into a ModelSpec.

    A table may hold `preset = "pspnet_resnet50"` plus the keys that differ from it.

    Raises:
        ValueError: unknown preset, architecture or key.
    """
    if isinstance(value, ModelSpec):
        return value
    if isinstance(value, str):
        return preset(value)
    if not isinstance(value, Mapping):
        raise ValueError(f"a model is a preset's name or a table with `arch` or `preset`, found {value!r}")
    table = dict(value)
    if "preset" in table:
        base = preset(str(table.pop("preset")))
        return type(base).model_validate(merge(base.model_dump(), table))
    if "arch" not in table:
        raise ValueError("a model needs `arch` or `preset`")
    return spec_class(str(table["arch"])).model_validate(table)


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of `base` with `changes` laid over it, table by table; one with `preset` or `arch` replaces another."""
    merged = dict(base)
    for key, value in changes.items():
        nested = (
            isinstance(value, Mapping) and isinstance(merged.get(key), Mapping) and not {"preset", "arch"} & set(value)
        )
        merged[key] = merge(merged[key], value) if nested else value
    return merged


def presets() -> dict[str, ModelSpec]:
    """Every named model, `<architecture>_<backbone>[_<variant>]`, in alphabetical order."""
    named: dict[str, ModelSpec] = {}
    for path in ARCHITECTURES.values():
        module = importlib.import_module(path.partition(":")[0])
        named.update(module.PRESETS)
    return dict(sorted(named.items()))


def preset(name: str) -> ModelSpec:
    """The settings of a named model.

    Raises:
        ValueError: no preset of that name; the message holds the nearest one.
    """
    named = presets()
    if name not in named:
        raise ValueError(f"unknown model {name!r}{did_you_mean(name, named)}; `segray models` lists all {len(named)}")
    return named[name]


AnyModelSpec = Annotated[SerializeAsAny[ModelSpec], BeforeValidator(resolve_model_spec)]
"""Field type for a model inside another setting: keeps the keys of the concrete architecture."""
