"""Image files -> upright RGB pixels, whatever people put into image folders."""

from __future__ import annotations

import io
import warnings

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


class ImageError(ValueError):
    """An image that cannot be used; the text is the reason shown to people."""


def decode_image(data: bytes, *, max_pixels: int = MAX_PIXELS) -> npt.NDArray[np.uint8]:
    """Pixels (H, W, 3) of an image file, RGB, upright by its EXIF orientation.

    16-bit samples are scaled to 8 bits, transparency is laid on white, CMYK and palettes become RGB.

    Raises:
        ImageError: empty, truncated, no image, or larger than `max_pixels` (judged before decoding).
    """
    image = _open(data, max_pixels=max_pixels)
    orientation = _orientation(image)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image.load()
            rgb = _to_rgb(image)
    except (OSError, SyntaxError, ValueError, EOFError, IndexError) as error:
        raise ImageError(_decode_reason(image, error)) from error
    if orientation in _TRANSPOSE:
        rgb = rgb.transpose(_TRANSPOSE[orientation])
    return np.asarray(rgb)


def image_size(data: bytes, *, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Height and width of the upright image, from its header alone.

    Raises:
        ImageError: empty, no image, or larger than `max_pixels`.
    """
    image = _open(data, max_pixels=max_pixels)
    width, height = image.size
    return (width, height) if _orientation(image) in _SWAPPED else (height, width)


def _open(data: bytes, *, max_pixels: int) -> Image.Image:
    if not data:
        raise ImageError("empty file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data))
    except Image.DecompressionBombError as error:
        raise ImageError(f"declares more pixels than allowed ({error})") from error
    except UnidentifiedImageError as error:
        raise ImageError(_foreign(data)) from error
    except (OSError, SyntaxError, ValueError) as error:
        raise ImageError(f"cannot be opened as an image ({error})") from error
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError(
            f"declares {width}x{height} px, more than the limit of {max_pixels / 1e6:.0f} million; not decoded"
        )
    return image


def _foreign(data: bytes) -> str:
    head = data[:512]
    if head[:2] == b"\xff\xd8":
        return "damaged JPEG header"
    if head[:8] == b"\x89PNG\r\n\x1a\n":
        return "damaged PNG header"
    printable = sum(32 <= byte < 127 or byte in (9, 10, 13) for byte in head)
    return "not an image (text)" if printable > 0.9 * len(head) else "not an image"


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except (OSError, SyntaxError, ValueError, TypeError, KeyError):
        return 1  # a damaged EXIF block says nothing about the pixels


def _decode_reason(image: Image.Image, error: Exception) -> str:
    kind = image.format or "image"
    text = str(error)
    if "truncated" in text or isinstance(error, EOFError):
        return f"truncated {kind}"
    return f"damaged {kind} ({text})"


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode.startswith(("I", "F")):
        return _from_deep_grey(image)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


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
