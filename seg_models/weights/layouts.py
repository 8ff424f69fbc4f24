"""The one table of published layouts: `<architecture>_<origin>[_<head>]` -> `Layout`."""

from __future__ import annotations

from seg_models.names import did_you_mean
from seg_models.weights import (
    ccnet_names,
    cft_names,
    danet_names,
    fastfcn_names,
    gscnn_names,
    hrnet_names,
    pspnet_names,
    segformer_names,
)
from seg_models.weights.published import Layout

LAYOUTS: dict[str, Layout] = {
    "ccnet_mmseg": ccnet_names.MMSEG,
    "ccnet_official": ccnet_names.OFFICIAL,
    "cft_mmseg": cft_names.CFT,
    "danet_mmseg": danet_names.MMSEG,
    "danet_official": danet_names.OFFICIAL,
    **{f"fastfcn_mmseg_{head}": layout for head, layout in fastfcn_names.MMSEG.items()},
    **{f"fastfcn_official_{head}": layout for head, layout in fastfcn_names.OFFICIAL.items()},
    "gated_scnn_official": gscnn_names.GSCNN,
    "hmsa_nvidia": hrnet_names.NVIDIA_HMSA,
    "hrnet_ocr_official": hrnet_names.HRNET_OCR,
    "ocrnet_mmseg": hrnet_names.MMSEG_OCRNET,
    "ocrnet_mmseg_resnet": hrnet_names.MMSEG_OCRNET_RESNET,
    "pspnet_mmseg": pspnet_names.MMSEG_PSPNET,
    "pspnet_paddleseg": pspnet_names.PADDLESEG_PSPNET,
    "segformer_official": segformer_names.OFFICIAL,
    "segformer_paddleseg": segformer_names.PADDLESEG,
    "segformer_transformers": segformer_names.TRANSFORMERS,
    "semfpn_mmseg": cft_names.SEMFPN,
}


def find_layout(name: str) -> Layout:
    """The layout of that name.

    Raises:
        ValueError: unknown name; the message holds the nearest one.
    """
    if name not in LAYOUTS:
        raise ValueError(f"unknown layout {name!r}{did_you_mean(name, LAYOUTS)}; known: {', '.join(LAYOUTS)}")
    return LAYOUTS[name]


def layouts_of(preset: str) -> list[str]:
    """Names of the layouts whose files fit a named model."""
    return [name for name, layout in LAYOUTS.items() if preset in layout.presets]
