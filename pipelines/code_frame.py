"""The frame of a coded map: a header with its size and type, a checksum over everything, and a body.

Damage is seen before anything is unpacked, and a few damaged bytes reserve no memory.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import zstandard

from pipelines.contours import Label

MAX_PIXELS = 1 << 30  # no image is larger

_MAGIC = b"SGL2"
_HEADER = struct.Struct("<4sBBIII")  # magic, layout, bytes per value, height, width, CRC-32 of all but itself


@dataclass(frozen=True)
class Frame:
    """What a header says, and the body."""

    layout: int
    dtype: np.dtype[Any]
    height: int
    width: int
    body: bytes

    @property
    def num_pixels(self) -> int:
        """Pixels of the map."""
        return self.height * self.width


def checked_map(label: npt.NDArray[Any]) -> Label:
    """The map, contiguous.

    Raises:
        ValueError: not a two-dimensional uint8 or uint16 array, or a larger one than any image.
    """
    if label.ndim != 2 or label.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"a label is a (H, W) uint8 or uint16 array, found {label.shape} {label.dtype}")
    if label.size > MAX_PIXELS:
        raise ValueError(f"a label has at most {MAX_PIXELS} pixels, found {label.shape}")
    return np.ascontiguousarray(label)


def pack_frame(layout: int, label: Label, content: bytes, *, level: int | None) -> bytes:
    """Header and body of a code.

    Args:
        layout: how the content is to be read; the codec's own number.
        level: of zstd; None for what is compressed already.
    """
    body = content if level is None else zstandard.ZstdCompressor(level=level).compress(content)
    fields = (_MAGIC, layout, label.dtype.itemsize, *label.shape)
    checksum = zlib.crc32(body, zlib.crc32(_HEADER.pack(*fields, 0)))
    return _HEADER.pack(*fields, checksum) + body


def open_frame(data: bytes) -> Frame:
    """Header and body of a code whose checksum holds.

    Raises:
        ValueError: it does not, or the map is larger than any image.
        struct.error: the bytes are too few.
    """
    *fields, checksum = _HEADER.unpack_from(data)
    magic, layout, itemsize, height, width = fields
    if magic != _MAGIC or itemsize not in (1, 2):
        raise ValueError("no label code")
    body = data[_HEADER.size :]
    if zlib.crc32(body, zlib.crc32(_HEADER.pack(*fields, 0))) != checksum:
        raise ValueError("the checksum does not hold")
    if height * width > MAX_PIXELS:
        raise ValueError(f"{height}x{width} pixels")
    return Frame(layout, np.dtype(np.uint8 if itemsize == 1 else np.uint16), height, width, body)


def unzip(frame: Frame, *, most: int) -> bytes:
    """The content of a body, of at most `most` bytes.

    Raises:
        ValueError: it is larger.
        zstandard.ZstdError: it cannot be unpacked.
    """
    if zstandard.frame_content_size(frame.body) > most:  # would be reserved before it is read
        raise ValueError("more content than pixels")
    return zstandard.ZstdDecompressor().decompress(frame.body, max_output_size=most)
