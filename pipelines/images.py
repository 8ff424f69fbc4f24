"""Image files -> upright RGB pixels, whatever people put into image folders."""

from __future__ import annotations

import io
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

MAX_PIXELS = 178_956_970  # Pillow's own limit: 0.5 GB of RGB
_SWAPPED = {5, 6, 7, 8}  # EXIF orientations that exchange height and width
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


_TURNED_BY_PILLOW = {"TIFF"}  # Pillow applies the orientation of these itself, to pixels and declared size
_ALPHA_MODES = {"RGBA", "LA", "PA", "RGBa", "La"}


class ImageError(ValueError):
    """An image that cannot be used; the text is the reason shown to people."""


class _Quiet:
    """How many threads are inside `quiet_pillow`, and the filters that the first of them found."""

    lock = threading.Lock()
    depth = 0
    saved: warnings.catch_warnings[None] | None = None


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """Let no warning of Pillow out: what it warns of is either harmless or raised as an error with a reason.

    The filters belong to the whole process, so of several threads the first sets and the last restores them.
    """
    with _Quiet.lock:
        if _Quiet.depth == 0:
            _Quiet.saved = warnings.catch_warnings()
            _Quiet.saved.__enter__()
            warnings.simplefilter("ignore")
        _Quiet.depth += 1
    try:
        yield
    finally:
        with _Quiet.lock:
            _Quiet.depth -= 1
            if _Quiet.depth == 0 and _Quiet.saved is not None:
                _Quiet.saved.__exit__(None, None, None)


def decode_image(data: bytes, *, max_pixels: int = MAX_PIXELS) -> npt.NDArray[np.uint8]:
    """Pixels (H, W, 3) of an image file, RGB, upright by its EXIF orientation.

    16-bit samples are scaled to 8 bits, transparency is laid on white, CMYK and palettes become RGB.

    Raises:
        ImageError: empty, truncated, no image, or larger than `max_pixels` (judged before decoding).
    """
    with quiet_pillow():
        image = _open(data, max_pixels=max_pixels)
        orientation = _orientation(image)
        try:
            image.load()
            rgb = _to_rgb(image)
        except MemoryError:
            raise  # says something about the machine, not about the image
        except Exception as error:  # on hostile bytes decoders raise anything
            raise ImageError(_decode_reason(image, error)) from error
    if orientation in _TRANSPOSE:
        rgb = rgb.transpose(_TRANSPOSE[orientation])
    return np.asarray(rgb)


def image_size(data: bytes, *, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Height and width of the upright image, from its header alone.

    Raises:
        ImageError: empty, no image, or larger than `max_pixels`.
    """
    with quiet_pillow():
        image = _open(data, max_pixels=max_pixels)
        width, height = image.size
        return (width, height) if _orientation(image) in _SWAPPED else (height, width)


def _open(data: bytes, *, max_pixels: int) -> Image.Image:
    if not data:
        raise ImageError("empty file")
    try:
        image = Image.open(io.BytesIO(data))
    except Image.DecompressionBombError as error:
        raise ImageError(bomb_reason(error)) from error
    except UnidentifiedImageError as error:
        raise ImageError(_foreign(data)) from error
    except MemoryError:
        raise
    except Exception as error:
        raise ImageError(f"cannot be opened as an image ({error})") from error
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError(f"declares {width}x{height} px, more than the limit of {max_pixels:,} px; not decoded")
    return image


def bomb_reason(error: Image.DecompressionBombError) -> str:
    """Pillow's refusal of a declared size, in plain words."""
    declared = re.search(r"\d+", str(error))
    found = f"{int(declared.group()) / 1e6:,.0f} million, " if declared else ""
    return f"declares more pixels than allowed ({found}limit {MAX_PIXELS / 1e6:.0f} million; not decoded)"


def _foreign(data: bytes) -> str:
    head = data[:512]
    if head[:2] == b"\xff\xd8":
        return "damaged JPEG header"
    if head[:8] == b"\x89PNG\r\n\x1a\n":
        return "damaged PNG header"
    printable = sum(32 <= byte < 127 or byte in (9, 10, 13) for byte in head)
    return "not an image (text)" if printable > 0.9 * len(head) else "not an image"


def _orientation(image: Image.Image) -> int:
    if image.format in _TURNED_BY_PILLOW:
        return 1
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except MemoryError:
        raise
    except Exception:
        return 1  # a damaged EXIF block says nothing about the pixels


def _decode_reason(image: Image.Image, error: Exception) -> str:
    if isinstance(error, Image.DecompressionBombError):
        return bomb_reason(error)
    kind = image.format or "image"
    text = str(error)
    if "truncated" in text or isinstance(error, EOFError):
        return f"truncated {kind}"
    return f"damaged {kind} ({text})"


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        return _from_deep_grey(image)
    if image.mode in _ALPHA_MODES or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _from_deep_grey(image: Image.Image) -> Image.Image:
    """16-bit, 32-bit and float grey: 16-bit samples over their full range, anything wider over its own range."""
    values = np.asarray(image).astype(np.float64)
    if image.mode.startswith("I;16") or (image.mode == "I" and values.min() >= 0 and values.max() <= 65535):
        grey = values / 257.0
    else:
        low, high = float(values.min()), float(values.max())
        grey = (values - low) * (255.0 / (high - low) if high > low else 0.0)
    return Image.fromarray(np.round(grey).clip(0, 255).astype(np.uint8)).convert("RGB")


ImageFile.LOAD_TRUNCATED_IMAGES = False  # a half image is a rejected row, never grey pixels
