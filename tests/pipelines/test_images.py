"""What people put into image folders."""

from __future__ import annotations

import io
import random
import struct
import threading
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from pipelines.images import ImageError, decode_image, image_size, quiet_pillow


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def corner_image() -> Image.Image:
    pixels = np.zeros((4, 6, 3), np.uint8)
    pixels[0, 0] = (255, 0, 0)  # red marks the upper left corner of the upright image
    return Image.fromarray(pixels)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_come_upright_for_every_exif_orientation(orientation: int, kind: str) -> None:
    upright = corner_image()
    inverse = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_90",
               7: "TRANSVERSE", 8: "ROTATE_270"}  # fmt: skip
    stored = upright.transpose(Image.Transpose[inverse[orientation]]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(stored, kind, exif=exif, **({"lossless": True, "exact": True} if kind == "WEBP" else {}))
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
    for read in (decode_image, image_size):
        with pytest.raises(ImageError, match=r"declares more pixels than allowed \(2,500 million, limit 179 million"):
            read(data)


def test_the_pixel_limit_can_be_set() -> None:
    with pytest.raises(ImageError, match="declares 6x4 px"):
        decode_image(encoded(corner_image()), max_pixels=10)


def test_ycck_is_told_from_cmyk_by_its_adobe_marker() -> None:
    # Adobe stores planes inverted: 55, 128, 128, 255. As YCCK that is luma 55 without chroma: cyan, magenta and yellow
    # of 255 - 55 stored, 55 upright, no black, so a grey of 200. As CMYK it would be (55, 128, 128).
    data = bytearray(encoded(Image.new("CMYK", (16, 16), (200, 127, 127, 0)), "JPEG", quality=95))
    transform = data.index(b"Adobe") + 11
    assert data[transform] == 0
    data[transform] = 2
    assert np.abs(decode_image(bytes(data)).astype(int) - 200).max() <= 3


def png(width: int, height: int, depth: int, color: int, samples: bytes) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(samples)) + chunk(b"IEND", b"")


def test_sixteen_bit_colours_are_scaled_and_not_clipped() -> None:
    samples = b"\0" + struct.pack(">6H", 0, 257 * 100, 65535, 257 * 7, 257 * 200, 257)
    assert decode_image(png(2, 1, 16, 2, samples))[0].tolist() == [[0, 100, 255], [7, 200, 1]]


def test_a_colour_named_transparent_is_laid_on_white() -> None:
    image = Image.fromarray(np.array([[[10, 20, 30], [9, 9, 9]]], np.uint8))
    data = encoded(image, transparency=(10, 20, 30))
    assert decode_image(data)[0].tolist() == [[255, 255, 255], [9, 9, 9]]


def test_damaged_files_of_every_format_give_pixels_or_a_reason_and_no_warning() -> None:
    source = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "hello"
    with_exif = {"PNG", "JPEG", "TIFF", "WEBP", "AVIF"}
    dice = random.Random(0)
    refused = 0
    for kind in (*sorted(with_exif), "GIF", "BMP", "JPEG2000", "ICO", "PPM"):
        data = encoded(source, kind, **({"exif": exif} if kind in with_exif else {}))
        for _ in range(25):
            damaged = bytearray(data[: dice.choice((len(data), dice.randrange(len(data))))])
            for _ in range(min(len(damaged), 4)):
                damaged[dice.randrange(min(len(damaged), 400))] = dice.randrange(256)
            for read in (decode_image, image_size):
                try:
                    read(bytes(damaged))
                except ImageError:  # anything else, a warning too, fails the test
                    refused += 1
    assert refused > 100


def test_a_full_memory_is_not_blamed_on_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", full)
    with pytest.raises(MemoryError):
        decode_image(encoded(corner_image()))


def test_warning_filters_survive_threads_that_decode_at_the_same_time() -> None:
    before = list(warnings.filters)
    inside, leave = threading.Event(), threading.Event()

    def first() -> None:
        with quiet_pillow():
            inside.set()
            assert leave.wait(10)

    thread = threading.Thread(target=first)
    thread.start()
    assert inside.wait(10)
    with quiet_pillow():
        leave.set()
        thread.join()
        warnings.warn("not heard", UserWarning, stacklevel=1)
    assert list(warnings.filters) == before
