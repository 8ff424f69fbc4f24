"""The code of confidence maps: how sure a teacher is of every pixel, in twentieths, lossless.

Such a map is smooth, and its contour lines cost the bits. It is written from coarse to fine: every second column, then
every second row is predicted from the pixels around it (four points along the axis, three across), and what differs is
kept as a few streams of bits. Bits of equally hard pixels lie together, so that zstd finds them skewed; among easy
pixels errors are rarer than zstd's shortest word, so the pixels between them are counted. Half the bytes of a
run-length code; every step works on whole arrays.

Shapes: H W pixels; a level is the (r, c) grid of pixels that one step of the ladder adds.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import zstandard

CONFIDENCE_STEPS = 20  # confidence is kept in twentieths
TOP = 32  # the first grid holds every 32nd pixel of every 32nd row

_MAGIC = b"SGC2"
_HEADER = struct.Struct("<4sII5I")  # magic, height, width, bytes of the first five of the six frames
_CHECKSUM = struct.Struct("<I")  # CRC-32 of all before it
_LEVEL = 9  # of zstd
LONG_GAP = 255  # the largest byte
Steps = npt.NDArray[np.uint8]


def encode_confidence(confidence: npt.NDArray[np.floating[Any]]) -> bytes:
    """Code of a (H, W) confidence map in 0..1, floored to twentieths."""
    return encode_steps(np.floor(np.clip(confidence, 0.0, 1.0) * CONFIDENCE_STEPS + 1e-6).astype(np.uint8))


def decode_confidence(data: bytes) -> npt.NDArray[np.float32]:
    """The (H, W) confidence map behind `encode_confidence`, multiples of 1/20.

    Raises:
        ValueError: the bytes are not such a code, or damaged.
    """
    return decode_steps(data).astype(np.float32) / np.float32(CONFIDENCE_STEPS)


def encode_steps(steps: Steps) -> bytes:
    """Lossless code of a (H, W) map of twentieths, 0..20.

    Raises:
        ValueError: not a two-dimensional uint8 array, or a value above 20.
    """
    if steps.ndim != 2 or steps.dtype != np.uint8:
        raise ValueError(f"confidence is a (H, W) uint8 array of twentieths, found {steps.shape} {steps.dtype}")
    if steps.size and steps.max() > CONFIDENCE_STEPS:
        raise ValueError(f"confidence in twentieths is at most {CONFIDENCE_STEPS}, found {steps.max()}")
    writer = _Writer()
    for level in _levels(steps.shape):
        guess = _guess(steps, level)
        writer.add(level.pixels(steps).astype(np.int16).reshape(-1)[guess.order] - guess.values, guess)
    frames = [_compress(part) for part in (steps[::TOP, ::TOP].tobytes(), *writer.streams())]
    header = _HEADER.pack(_MAGIC, *steps.shape, *(len(frame) for frame in frames[:-1]))
    code = header + b"".join(frames)
    return code + _CHECKSUM.pack(zlib.crc32(code))


def decode_steps(data: bytes) -> Steps:
    """The (H, W) map of twentieths behind a code.

    Raises:
        ValueError: the bytes are not such a code, or damaged.
    """
    try:
        return _decode(data)
    except (struct.error, zstandard.ZstdError, ValueError, IndexError) as error:
        raise ValueError(f"damaged confidence code of {len(data)} bytes: {error}") from error


def _decode(coded: bytes) -> Steps:
    data, checksum = coded[: -_CHECKSUM.size], coded[-_CHECKSUM.size :]
    if _CHECKSUM.unpack(checksum)[0] != zlib.crc32(data):
        raise ValueError("its checksum differs")
    magic, height, width, *lengths = _HEADER.unpack_from(data)
    if magic != _MAGIC:
        raise ValueError("no confidence code")
    ends = np.cumsum([_HEADER.size, *lengths]).tolist()
    pieces = [data[start:end] for start, end in zip(ends, [*ends[1:], len(data)], strict=True)]
    grid = (-(-height // TOP), -(-width // TOP))
    most = height * width + TOP  # a level has one more gap than pixels, and there are fewer than TOP
    first, *streams = (_decompress(piece, at_most=most) for piece in pieces)
    coarse = np.frombuffer(first, np.uint8).reshape(grid)  # checks the size before it is reserved
    steps = np.zeros((height, width), np.uint8)
    steps[::TOP, ::TOP] = coarse
    reader = _Reader(streams)
    for level in _levels(steps.shape):
        guess = _guess(steps, level)
        values = np.empty(len(guess.order), np.int16)
        values[guess.order] = guess.values + reader.take(guess)
        level.pixels(steps)[:] = values.reshape(level.pixels(steps).shape)
    reader.finish()
    if steps.size and steps.max() > CONFIDENCE_STEPS:
        raise ValueError(f"value {steps.max()}")
    return steps


@dataclass(frozen=True)
class _Level:
    """One step of the ladder: pixels between known ones, along one axis."""

    rows: slice
    columns: slice
    axis: int
    """Along which the pixels lie between known ones."""
    half: int
    """Their distance from them."""

    def pixels(self, steps: Steps) -> Steps:
        """The (r, c) pixels of this level, as a view."""
        return steps[self.rows, self.columns]

    def known(self, steps: Steps) -> Steps:
        """The grid they lie in, along the axis: known pixels only."""
        stride = 2 * self.half
        return steps[self.rows, ::stride] if self.axis == 1 else steps[::stride, self.columns]


def _levels(shape: tuple[int, ...]) -> Iterator[_Level]:
    """From coarse to fine; columns first, then the rows between. Empty ones are left out."""
    stride = TOP
    while stride > 1:
        half = stride // 2
        if shape[0] and shape[1] > half:
            yield _Level(slice(None, None, stride), slice(half, None, stride), axis=1, half=half)
        if shape[0] > half and shape[1]:
            yield _Level(slice(half, None, stride), slice(None, None, half), axis=0, half=half)
        stride = half


@dataclass(frozen=True)
class _Guess:
    """What a level's pixels are expected to be, the surest first."""

    order: npt.NDArray[np.intp]
    num_easy: int
    """Pixels at its beginning that are hardly ever guessed wrong."""
    values: npt.NDArray[np.int16]
    """In that order."""
    up: npt.NDArray[np.bool_]
    """Whether a wrong guess is rather too low."""


def _guess(steps: Steps, level: _Level) -> _Guess:
    """Expect what the known pixels around say (a cubic along the axis); their differences tell how sure that is."""
    known = level.known(steps) if level.axis == 1 else level.known(steps).T
    count = level.pixels(steps).shape[level.axis]
    beyond = np.pad(known.astype(np.int16), ((1, 1), (1, 2)), mode="edge")
    low2, low, high, high2 = (beyond[1:-1, start : start + count] for start in range(4))
    sums = beyond[:, 1 : 1 + count] + beyond[:, 2 : 2 + count]
    across = sums[:-2] + sums[2:] - 2 * (low + high)
    scaled = 2 * (9 * (low + high) - low2 - high2) + across + 16  # in 32nds, rounded
    values, rest = np.clip(scaled >> 5, 0, CONFIDENCE_STEPS), scaled & 31
    edge = np.minimum(np.abs(high - low), 3)
    unrest = np.minimum(np.abs(low2 - low) + np.abs(high2 - high) + _steps_across(beyond, count), 7)
    near_half = np.minimum(np.abs(rest - 16) >> 1, 7)  # 7: the guess was nearly rounded the other way
    hard = (edge & 1 == 1) | (near_half > 1)
    kind = ((hard * 4 + edge) * 8 + unrest) * 8 + near_half
    parts = (values, rest >= 16, kind) if level.axis == 1 else (values.T, (rest >= 16).T, kind.T)
    order = np.argsort(parts[2].reshape(-1).astype(np.uint16), kind="stable")
    num_easy = hard.size - np.count_nonzero(hard)
    return _Guess(order, num_easy, parts[0].reshape(-1)[order], parts[1].reshape(-1)[order])


def _steps_across(beyond: npt.NDArray[np.int16], count: int) -> npt.NDArray[np.int16]:
    """How much the two nearest known pixels differ from those on either side of them."""
    total = np.zeros((beyond.shape[0] - 2, count), np.int16)
    for start in (1, 2):
        part = beyond[:, start : start + count]
        total += np.abs(part[:-2] - part[1:-1]) + np.abs(part[2:] - part[1:-1])
    return total


class _Writer:
    """Splits differences from the guess: is there any (easy, hard), the other way, more than one, and how many more."""

    def __init__(self) -> None:
        self._parts: tuple[list[bytes], ...] = ([], [], [], [], [])

    def add(self, differences: npt.NDArray[np.int16], guess: _Guess) -> None:
        """Append a level."""
        some = differences != 0
        easy, hard = np.split(some, [guess.num_easy])
        found = differences[some]
        many = np.abs(found) > 1
        more = (np.abs(found[many]) - 2).astype(np.uint8)
        bits = (np.packbits(part) for part in (hard, (found > 0) != guess.up[some], many))
        for stream, part in zip(self._parts, (_gaps(easy), *bits, more), strict=True):
            stream.append(part.tobytes())

    def streams(self) -> list[bytes]:
        """All levels."""
        return [b"".join(stream) for stream in self._parts]


class _Reader:
    """Puts the differences together again."""

    def __init__(self, streams: list[bytes]) -> None:
        self._streams = [np.frombuffer(stream, np.uint8) for stream in streams]

    def take(self, guess: _Guess) -> npt.NDArray[np.int16]:
        """The differences of the next level."""
        some = np.concatenate((self._rare(0, guess.num_easy), self._bits(1, len(guess.order) - guess.num_easy)))
        count = int(np.count_nonzero(some))
        is_up = self._bits(2, count) != guess.up[some]
        many = self._bits(3, count)
        size = np.ones(count, np.int16)
        size[many] = 2 + self._bytes(4, int(np.count_nonzero(many))).astype(np.int16)
        differences = np.zeros(len(some), np.int16)
        differences[some] = np.where(is_up, size, -size)
        return differences

    def finish(self) -> None:
        """Make sure that nothing is left.

        Raises:
            ValueError: something is.
        """
        if any(len(stream) for stream in self._streams):
            raise ValueError("bytes left over")

    def _rare(self, stream: int, count: int) -> npt.NDArray[np.bool_]:
        """The bits behind `_gaps`."""
        gaps = self._streams[stream][: count + 1]
        ends = np.cumsum(gaps + (gaps < LONG_GAP), dtype=np.int64)
        used = int(np.searchsorted(ends, count + 1)) + 1
        is_bit = self._bytes(stream, used) < LONG_GAP
        bits = np.zeros(count + 1, bool)
        bits[ends[:used][is_bit] - 1] = True
        if not bits[count]:
            raise ValueError("gaps and pixels do not end together")
        return bits[:count]

    def _bits(self, stream: int, count: int) -> npt.NDArray[np.bool_]:
        return np.unpackbits(self._bytes(stream, -(-count // 8)), count=count).astype(bool)

    def _bytes(self, stream: int, count: int) -> Steps:
        found, self._streams[stream] = self._streams[stream][:count], self._streams[stream][count:]
        if len(found) < count:
            raise ValueError("bytes are missing")
        return found


def _gaps(bits: npt.NDArray[np.bool_]) -> Steps:
    """Zeros before every one, and after the last; 255 of them are a byte of their own that no one follows."""
    ones = np.flatnonzero(bits)
    gaps = np.diff(ones, prepend=-1, append=len(bits)) - 1
    long = gaps // LONG_GAP
    coded = np.full(len(gaps) + int(long.sum()), LONG_GAP, np.uint8)
    coded[np.arange(len(gaps)) + np.cumsum(long)] = gaps % LONG_GAP
    return coded


def _compress(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True).compress(data)


def _decompress(data: bytes, *, at_most: int) -> bytes:
    if zstandard.frame_content_size(data) > at_most:  # would be reserved before it is read
        raise ValueError("more bytes than pixels")
    return zstandard.ZstdDecompressor().decompress(data, max_output_size=at_most)
