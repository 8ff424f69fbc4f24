"""Codecs of what label tables hold: class maps and deciles; each code carries its own size and type.

Confidence has a module of its own, `pipelines.confidence`.

A table's metadata names the codec of each of its columns.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import zstandard

from pipelines.code_frame import Frame, checked_map, open_frame, pack_frame, unzip
from pipelines.contours import WIDEST_RUN_BYTES, Label, draw_runs, find_runs, pack_runs, sparse_true, unpack_runs
from seg_models.names import did_you_mean

Bytes = npt.NDArray[np.uint8]
D = TypeVar("D", bound=np.generic)

LABEL_CODEC, CONFIDENCE_CODEC, DECILE_CODEC, LOCO_CODEC = "contour-zstd", "pyramid-zstd", "nibble-zstd", "jpegls"
CODECS = {"label": (LABEL_CODEC,), "confidence": (CONFIDENCE_CODEC,), "deciles": (DECILE_CODEC, LOCO_CODEC)}
"""The codecs of every column that this version reads and writes."""
LABEL_CODECS = {"label": LABEL_CODEC, "confidence": CONFIDENCE_CODEC}
"""What a label set without deciles names in its metadata."""

NUM_DECILES = 10
MIN_PIXELS_PER_RUN = 48  # a busier map is smaller, and faster coded, as runs along its rows
FAST, SMALL = 1, 4  # levels of zstd; the second saves 2 % of contours for a twentieth of the time, 5 % of runs
MAX_INTERLEAVED = 0.2  # above it both ways are tried


class MissingPackageError(ValueError):
    """A codec's package is not installed here."""


def encode_label(label: npt.NDArray[Any]) -> bytes:
    """Lossless code of a (H, W) uint8 or uint16 class map: as contours, or as runs along the rows where that is less.

    Raises:
        ValueError: not a two-dimensional uint8 or uint16 array, or a larger one than any image.
    """
    flat = checked_map(label)
    runs = find_runs(flat, most=flat.size // MIN_PIXELS_PER_RUN)
    if runs is None:
        return pack_frame(_RUNS, flat, _row_runs(flat), level=SMALL)
    code = pack_frame(_CONTOURS, flat, pack_runs(runs), level=FAST)
    if runs.interleaved() <= MAX_INTERLEAVED:
        return code
    return min(code, pack_frame(_RUNS, flat, _row_runs(flat), level=SMALL), key=len)


def decode_label(data: bytes) -> Label:
    """The (H, W) map behind `encode_label`.

    Raises:
        ValueError: the bytes are no such code, or damaged.
    """
    return _decode(data, _LABEL_LAYOUTS)


def encode_deciles(deciles: Bytes, *, codec: str = DECILE_CODEC) -> bytes:
    """Lossless code of a (H, W) uint8 map of deciles 0..9.

    Args:
        codec: `nibble-zstd` (two pixels a byte) or, with the extra `archive`, `jpegls`, about a quarter smaller.

    Raises:
        ValueError: other values or another type, or the extra is not installed.
    """
    flat = checked_map(deciles).astype(np.uint8, copy=False)
    if deciles.dtype != np.uint8 or flat.max(initial=0) >= NUM_DECILES:
        raise ValueError(f"deciles are uint8 values 0..9, found {deciles.dtype} up to {deciles.max(initial=0)}")
    if codec == LOCO_CODEC and flat.size:  # JPEG-LS has no empty images
        return pack_frame(_JPEGLS, flat, bytes(imagecodecs().jpegls_encode(flat)), level=None)
    pixels = np.append(flat, np.zeros(flat.size % 2, np.uint8))
    return pack_frame(_NIBBLES, flat, (pixels[::2] << 4 | pixels[1::2]).tobytes(), level=SMALL)


def decode_deciles(data: bytes) -> Bytes:
    """The (H, W) map of deciles behind `encode_deciles`.

    Raises:
        ValueError: the bytes are no such code, or damaged, or need an extra that is not installed.
    """
    return _decode(data, _DECILE_LAYOUTS).astype(np.uint8, copy=False)


def best_decile_codec() -> str:
    """The smallest codec of deciles that this machine has."""
    return LOCO_CODEC if find_spec("imagecodecs") else DECILE_CODEC


def check_decile_codec(codec: str) -> None:
    """Make sure that this machine can write and read deciles in a codec.

    Raises:
        MissingPackageError: its package is not installed.
    """
    if codec == LOCO_CODEC:
        imagecodecs()


def check_codecs(named: Mapping[str, str] | None, *, where: str) -> None:
    """Make sure that this version reads the codecs that a table's metadata names.

    Raises:
        ValueError: it names none, or an unknown one; the message says what can be read.
    """
    if named is None:
        raise ValueError(f"{where}: its metadata names no codecs: another version of segray wrote it; make it again")
    for column, known in CODECS.items():
        found = named.get(column, known[0])
        if found not in known:
            raise ValueError(
                f"{where}: column {column!r} is coded with {found!r}{did_you_mean(found, known)}; "
                f"this version of segray reads {', '.join(known)}"
            )


def imagecodecs() -> Any:
    """The library of JPEG-LS and JPEG XL.

    Raises:
        ValueError: it is not installed.
    """
    try:
        return import_module("imagecodecs")
    except ImportError as error:
        raise MissingPackageError("JPEG-LS and JPEG XL need imagecodecs: install the extra `archive`") from error


def value_runs(flat: npt.NDArray[D]) -> tuple[npt.NDArray[D], npt.NDArray[np.int64]]:
    """Value and length of every run of equal values in a flat array."""
    fresh = np.zeros(-(-flat.size // 8) * 8, bool)
    fresh[:1] = flat.size > 0
    np.not_equal(flat[1:], flat[:-1], out=fresh[1 : flat.size])
    starts = sparse_true(fresh)
    return flat[starts], np.diff(starts, append=flat.size)


def _decode(data: bytes, layouts: Mapping[int, Callable[[Frame], Label]]) -> Label:
    """The map of a code in one of the layouts.

    Raises:
        ValueError: the bytes are no such code, or damaged.
    """
    try:
        frame = open_frame(data)
        if frame.layout not in layouts:
            raise ValueError(f"layout {frame.layout} is unknown")
        label = layouts[frame.layout](frame)
    except MissingPackageError:
        raise  # nothing is wrong with the code
    except (struct.error, zstandard.ZstdError, ValueError, OverflowError) as error:
        raise ValueError(f"damaged label code of {len(data)} bytes: {error}") from error
    return label


def _row_runs(label: Label) -> bytes:
    """Values and lengths of the runs of equal pixels along the rows; lengths as byte planes, high ones nearly zero."""
    values, lengths = value_runs(label.reshape(-1))
    planes = np.ascontiguousarray(lengths.astype("<u4").view(np.uint8).reshape(-1, 4).T)
    return values.astype(values.dtype.newbyteorder("<")).tobytes() + planes.tobytes()


def _from_row_runs(frame: Frame) -> Label:
    itemsize = frame.dtype.itemsize
    content = unzip(frame, most=frame.num_pixels * (itemsize + 4))
    num_runs = len(content) // (itemsize + 4)
    values = np.frombuffer(content, frame.dtype.newbyteorder("<"), num_runs)
    planes = np.frombuffer(content, np.uint8, offset=num_runs * itemsize).reshape(4, num_runs)
    lengths = np.ascontiguousarray(planes.T).view("<u4").reshape(-1)
    total = int(lengths.sum(dtype=np.int64))
    if total != frame.num_pixels:
        raise ValueError(f"runs cover {total} of {frame.num_pixels} pixels")
    label: Label = np.repeat(values.astype(frame.dtype), lengths).reshape(frame.height, frame.width)
    return label


def _from_contours(frame: Frame) -> Label:
    content = unzip(frame, most=64 + frame.num_pixels * WIDEST_RUN_BYTES // MIN_PIXELS_PER_RUN)
    return draw_runs(unpack_runs(content, dtype=frame.dtype), height=frame.height, width=frame.width)


def _from_nibbles(frame: Frame) -> Label:
    content = unzip(frame, most=(frame.num_pixels + 1) // 2)
    pairs = np.frombuffer(content, np.uint8)
    if len(pairs) != (frame.num_pixels + 1) // 2:
        raise ValueError(f"{len(pairs)} bytes for {frame.num_pixels} pixels")
    pixels = np.stack((pairs >> 4, pairs & 15), axis=1).reshape(-1)
    return pixels[: frame.num_pixels].reshape(frame.height, frame.width)


def _from_jpegls(frame: Frame) -> Label:
    pixels = np.empty((frame.height, frame.width), np.uint8)
    try:
        found: Label = imagecodecs().jpegls_decode(frame.body, out=pixels)
    except RuntimeError as error:  # the library's own errors
        raise ValueError(str(error)) from error
    return found


_RUNS, _CONTOURS, _NIBBLES, _JPEGLS = range(4)
_LABEL_LAYOUTS: Mapping[int, Callable[[Frame], Label]] = {_RUNS: _from_row_runs, _CONTOURS: _from_contours}
_DECILE_LAYOUTS: Mapping[int, Callable[[Frame], Label]] = {_NIBBLES: _from_nibbles, _JPEGLS: _from_jpegls}
