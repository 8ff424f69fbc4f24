"""What people put into image folders."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from pipelines.images import ImageError, decode_image, image_size


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def corner_image() -> Image.Image:
    pixels = np.zeros((4, 6, 3), np.uint8)
    pixels[0, 0] = (255, 0, 0)  # red marks the upper left corner of the upright image
    return Image.fromarray(pixels)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_come_upright_for_every_exif_orientation(orientation: int) -> None:
    upright = corner_image()
    inverse = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_90",
               7: "TRANSVERSE", 8: "ROTATE_270"}  # fmt: skip
    stored = upright.transpose(Image.Transpose[inverse[orientation]]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(stored, exif=exif)
    assert (decode_image(data) == np.asarray(upright)).all()
    assert image_size(data) == (4, 6)


def test_cmyk_becomes_rgb() -> None:
    data = encoded(Image.new("CMYK", (5, 3), (0, 255, 255, 0)), "JPEG", quality=95)
    pixels = decode_image(data)
    assert pixels.shape == (3, 5, 3)
    assert pixels[1, 2, 0] > 200
    assert pixels[1, 2, 1] < 60


def test_sixteen_bits_are_scaled_and_not_clipped() -> None:
    values = np.array([[0, 257 * 100, 65535]], np.uint16)
    assert decode_image(encoded(Image.fromarray(values)))[0, :, 0].tolist() == [0, 100, 255]


def test_transparency_is_laid_on_white() -> None:
    pixels = decode_image(encoded(Image.new("RGBA", (2, 2), (10, 20, 30, 0))))
    assert pixels[0, 0].tolist() == [255, 255, 255]


def test_palette_images_become_their_colours() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    assert decode_image(encoded(image))[0].tolist() == [[10, 20, 30], [200, 100, 50]]


@pytest.mark.parametrize("mode", ["L", "LA", "1", "RGB", "RGBA", "P"])
def test_every_mode_gives_three_channels(mode: str) -> None:
    pixels = decode_image(encoded(Image.new("RGB", (7, 5), (80, 80, 80)).convert(mode)))
    assert pixels.shape == (5, 7, 3)
    assert pixels.dtype == np.uint8


def test_a_truncated_jpeg_is_refused_with_its_reason() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), "JPEG")
    with pytest.raises(ImageError, match="truncated JPEG"):
        decode_image(data[: len(data) // 2])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"just some words about pictures", r"not an image \(text\)"),
        (bytes(range(256)), "not an image"),
        (b"\xff\xd8 and nothing more", "damaged JPEG header"),
    ],
)
def test_files_that_are_no_images_say_what_they_are(data: bytes, reason: str) -> None:
    with pytest.raises(ImageError, match=reason):
        decode_image(data)


def test_a_huge_declared_size_is_refused_before_decoding() -> None:
    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    data = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    data += struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
    with pytest.raises(ImageError, match=r"declares .*(50000x50000|pixels)"):
        decode_image(data)


def test_the_pixel_limit_can_be_set() -> None:
    with pytest.raises(ImageError, match="declares 6x4 px"):
        decode_image(encoded(corner_image()), max_pixels=10)
