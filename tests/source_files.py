"""Image and label files for tests of sources and ingest: small, exact, and hostile on purpose."""

from __future__ import annotations

import io
import os
import struct
import tarfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from pipelines.sources.base import printable

CLASSES = ("ground", "red", "green")
HEIGHT, WIDTH = 24, 32
ORIENTATION_TAG = 0x0112


def scene(seed: int, *, height: int = HEIGHT, width: int = WIDTH) -> Image.Image:
    """A picture that differs with its seed."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def encoded(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    """The bytes of an image file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def mask(value: int = 1, *, height: int = HEIGHT, width: int = WIDTH) -> bytes:
    """A label PNG: ground, with `value` in a block of 4 x 5 pixels."""
    label = np.zeros((height, width), np.uint8)
    label[2:6, 3:8] = value
    return encoded(Image.fromarray(label), "PNG")


def put(path: Path, data: bytes) -> Path:
    """Write a file and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def pairs(root: Path, names: Mapping[str, int], *, suffix: str = "") -> Path:
    """`images/<name>.jpg` and `labels/<name><suffix>.png` for every name; the number is the label's value."""
    for seed, (name, value) in enumerate(names.items()):
        put(root / "images" / f"{name}.jpg", encoded(scene(seed)))
        put(root / "labels" / f"{name}{suffix}.png", mask(value))
    return root


def png_header_only(width: int, height: int) -> bytes:
    """A PNG that declares a size and holds no pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")


def hostile_folder(root: Path) -> dict[str, str | None]:
    """20 good pairs and 12 files as people really have them; returns id -> reason without details, None where good."""
    pairs(root, {f"good_{number:02d}": 1 + number % 2 for number in range(20)})
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = 6
    deep = Image.fromarray(np.linspace(0, 65535, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH).astype(np.uint16))
    odd = os.fsdecode(b"caf\xe9")
    files = {
        "truncated.jpg": encoded(scene(100))[:900],
        "empty.jpg": b"",
        "png_named.jpg": encoded(scene(101), "PNG"),
        "cmyk.jpg": encoded(scene(102).convert("CMYK")),
        "rotated.jpg": encoded(scene(103, height=WIDTH, width=HEIGHT), exif=exif),
        "deep.png": encoded(deep, "PNG"),
        "one_pixel.png": encoded(scene(104, height=1, width=1), "PNG"),
        "huge.png": png_header_only(60_000, 60_000),
        "other_size.jpg": encoded(scene(105)),
        "out_of_range.jpg": encoded(scene(106)),
        f"{odd}.jpg": encoded(scene(107)),
        "notes.txt": b"these are the images of the spring survey\n",
    }
    for name, data in files.items():
        put(root / "images" / name, data)
        put(root / "labels" / f"{name.rpartition('.')[0]}.png", mask())
    put(root / "labels" / "other_size.png", mask(height=HEIGHT // 2, width=WIDTH))
    put(root / "labels" / "out_of_range.png", mask(7))
    put(root / "images" / ".DS_Store", b"\0")
    put(root / "images" / "Thumbs.db", b"\0")
    (root / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    reasons = {
        "truncated": "unreadable image: truncated JPEG",
        "empty": "unreadable image: empty file",
        "one_pixel": "image too small",
        "notes": "unreadable image: not an image",
        "other_size": "label size differs",
        "out_of_range": "label value outside the class list",
        "huge": "unreadable image: declares more pixels than allowed",
    }
    ids = [f"good_{number:02d}" for number in range(20)] + [printable(name.rpartition(".")[0]) for name in files]
    return {sample_id: reasons.get(sample_id) for sample_id in ids}


def write_tar(path: Path, members: Mapping[str, bytes]) -> Path:
    """A tar of files, in order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path
