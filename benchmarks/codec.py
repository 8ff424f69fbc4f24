"""Label codec against Pillow's PNG of level 6: bytes, encoding, decoding, on 1920x1080 with 19 classes.

python -m benchmarks.codec
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from benchmarks.measure import Effort, Entries, Measured, command, cpu_pairs
from pipelines.codecs import decode_label, encode_label


def entries(effort: Effort) -> Entries:
    """Size of the code, time to encode, time to decode."""
    label = street_label(54, 96) if effort.tiny else street_label(1080, 1920)
    code, png = encode_label(label), encode_png(label)
    return {
        "label_codec_bytes": Measured(len(code), len(png), "bytes"),
        "label_codec_encode": cpu_pairs(lambda: encode_label(label), lambda: encode_png(label), effort=effort),
        "label_codec_decode": cpu_pairs(lambda: decode_label(code), lambda: decode_png(png), effort=effort, repeat=4),
    }


def street_label(height: int, width: int, *, num_classes: int = 19) -> NDArray[np.uint8]:
    """A label map (height, width) with smooth regions: arg-max of enlarged noise."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(1, num_classes, 14, 24, generator=generator)
    label = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic").argmax(1)[0]
    return label.numpy().astype(np.uint8)


def encode_png(label: NDArray[np.uint8]) -> bytes:
    """PNG of level 6."""
    buffer = io.BytesIO()
    Image.fromarray(label).save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()


def decode_png(data: bytes) -> NDArray[Any]:
    """The label behind a PNG."""
    return np.asarray(Image.open(io.BytesIO(data)))


if __name__ == "__main__":
    command(__doc__, entries)
