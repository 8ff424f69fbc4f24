"""Labels as files for people and other tools: PNG and JPEG XL of class indices, label images of any source."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from pipelines.codecs import imagecodecs
from pipelines.images import bomb_reason, quiet_pillow
from pipelines.labels import MAX_BYTE_CLASSES, LabelSpace

JXL_EFFORT = 7  # libjxl's own default


def read_label_image(data: bytes) -> npt.NDArray[Any]:
    """Raw content of a label image: (H, W) ids of an index, palette, 1-bit or 16-bit image, or (H, W, 3) uint8 RGB.

    Raises:
        ValueError: the bytes are no readable image, or of a kind that cannot hold ids (CMYK, float).
    """
    try:
        with quiet_pillow(), Image.open(io.BytesIO(data)) as image:
            return _raw_values(image)
    except UnidentifiedImageError as error:
        raise ValueError("label is not an image") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"label {bomb_reason(error)}") from error
    except MemoryError:
        raise  # says something about the machine, not about the label
    except Exception as error:  # on hostile bytes decoders raise anything
        raise ValueError(f"label cannot be read: {error}") from error


def _raw_values(image: Image.Image) -> npt.NDArray[Any]:
    if image.mode in ("RGB", "RGBA"):
        return np.asarray(image.convert("RGB"))
    if image.mode == "1":
        return np.asarray(image, dtype=np.uint8)
    if image.mode in ("LA", "PA"):
        return np.asarray(image.getchannel(0))
    if image.mode in ("L", "P", "I") or image.mode.startswith("I;16"):
        return np.asarray(image)
    raise ValueError(f"colour mode {image.mode} holds no class ids; save it as an index, palette or RGB PNG")


def file_name(image_id: str, *, suffix: str = ".png") -> str:
    """Path of an image's label below its folder: the id, which can lead nowhere else."""
    parts = [part for part in image_id.split("/") if part not in ("", ".", "..")]
    return "/".join(parts or ["_"]) + suffix


def map_jxl(label: npt.NDArray[Any]) -> bytes:
    """Lossless grey JPEG XL of a (H, W) uint8 or uint16 map.

    Raises:
        ValueError: the extra `archive` is not installed.
    """
    return bytes(imagecodecs().jpegxl_encode(label, lossless=True, effort=JXL_EFFORT))


def decile_png(deciles: npt.NDArray[np.uint8]) -> bytes:
    """Grey PNG of the deciles 0..9 themselves."""
    buffer = io.BytesIO()
    Image.fromarray(deciles).save(buffer, "PNG")
    return buffer.getvalue()


def label_png(label: npt.NDArray[Any], space: LabelSpace) -> bytes:
    """PNG of class indices: with the colours as palette for at most 255 classes, else 16-bit."""
    if space.num_classes <= MAX_BYTE_CLASSES:
        image = Image.fromarray(label.astype(np.uint8), mode="P")
        palette = np.zeros((256, 3), np.uint8)
        palette[: space.num_classes] = space.colors
        image.putpalette(palette.tobytes())
    else:
        image = Image.fromarray(label.astype(np.uint16))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
