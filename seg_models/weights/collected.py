"""Eleven small ImageNet classifiers collected from public repositories (MobileNet V1/V2/EdgeTPU, SqueezeNet).

The files are named below and lie in one folder. The weights come from TF-slim, Keras, PyTorch and Caffe, so inputs
differ in size, range and padding; batch norm may be folded into the convolutions.
"""

from __future__ import annotations

from typing import Any

from seg_models.weights.classifiers import ClassifierSpec

_TF: dict[str, Any] = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
_CAFFE: dict[str, Any] = {"input_scale": 1.0, "mean": (122.68, 116.67, 104.01), "std": (1.0, 1.0, 1.0)}
_SAME: dict[str, Any] = {"model_kwargs": {"pad_type": "same"}}


def _mobilenet_v1(width: float) -> dict[str, Any]:
    """MobileNet V1 narrower than timm's named ones."""
    arguments = {"variant": "mobilenetv1_100", "channel_multiplier": width, "pad_type": "same"}
    return {"name": "timm.models.efficientnet:_gen_mobilenet_v1", "model_kwargs": arguments, **_TF}


# File name without suffix -> (SHA-256, settings).
_FILES: dict[str, tuple[str, dict[str, Any]]] = {
    "mobilenetv1_025_128": (
        "c85ec346e7be62f194425907fc9ed9d350a500fe4c7ab70e95da278ffe6677f1",
        {**_mobilenet_v1(0.25), "size": 128},
    ),
    "mobilenetv1_050_160": (
        "e36514ac73e366041d05efc860a7b1a07b005dda21f1a960496ace55346f0d21",
        {**_mobilenet_v1(0.5), "size": 160},
    ),
    "mobilenetv1_075_192": (
        "9e3b3471a9fde69b76741e2f69fd12f65865b3f12c3a510949e3f22d4e7b781e",
        {**_mobilenet_v1(0.75), "size": 192},
    ),
    "mobilenetv1_100_224": (
        "002260b94b4b904e024757bb61d25311e1d7766b121d7e4b4734d486ae8434df",
        {"name": "mobilenetv1_100", **_SAME, **_TF},
    ),
    "mobilenetv1_025_224": (
        "55536e0d5df88a306c29c52694bc9d993b080abaead3223be5e281f2c1d52b32",
        _mobilenet_v1(0.25),
    ),
    "mobilenetv2_100_224_slim": (
        "b52ac37899f923a11721a761254ae9095788adbcbf93eaee6679db2bda86b0c0",
        {"name": "mobilenetv2_100", **_SAME, **_TF},
    ),
    "mobilenetv2_100_224_tf2": (
        "4d41a4515275a87b55356d8212ca419d47b71c23ebde84de4d1b3d1da2542158",
        {"name": "mobilenetv2_100", **_SAME, **_TF},
    ),
    "mobilenetv2_100_224_tv": (
        "ccc2ab850c0b38d2e4c7c4c4a3d964ef89bc379a8cccca0bf764c3c4929413c1",
        {"name": "mobilenetv2_100"},
    ),
    "mobilenet_edgetpu_100_224": (
        "a1209d2eb12a7bdb32f24df7fd7cdc97802f5e7b5fe8b6271c92ccb6c959dbac",
        # The source has no activation there; with it top-1 on the sample images is 77.8 instead of 87.6.
        {"name": "mobilenet_edgetpu_100", "identity": ("blocks.0.0.bn1.act",), **_SAME, **_TF},
    ),
    "squeezenet1_0_deepcompressed": (
        "0c40c59499d08b0341b912b2a4b205b0021b2d6f0bc8de729fc16ee853a98798",
        {"name": "torchvision.models:squeezenet1_0", "size": 227, **_CAFFE},
    ),
    "squeezenet1_1_caffe": (
        "31cdb706bbb1f369fa3c56ee3cf3c445b2bd540921552aa6a1f4e90511a1e5de",
        {"name": "torchvision.models:squeezenet1_1", "size": 227, **_CAFFE},
    ),
}


def collected_ensemble(folder: str) -> tuple[ClassifierSpec, ...]:
    """The eleven collected classifiers, with weights in `folder`, a path or an address."""
    return tuple(
        ClassifierSpec(
            title=stem, weights=f"{folder.rstrip('/')}/{stem}.safetensors", weights_sha256=sha256, **settings
        )
        for stem, (sha256, settings) in _FILES.items()
    )
