"""Label maps as the contours of their regions: runs of pixels that differ from the pixel above, and little else.

In a row most pixels are of the class above them. What is left is a run of changes where a contour moves sideways, one
per contour and row at most. Runs are ordered by (class above, class below), so that those of one contour follow each
other from row to row, and each is told by the step from the run before: rows down, columns from its end, length. Such
steps are small and alike, and zstd makes little of them. Everything is array arithmetic, forwards and back.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Ints: TypeAlias = npt.NDArray[np.int32]
Label: TypeAlias = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]

WORD_BYTES = 8
MIN_WIDTH = 32  # pixels; what fills a row up to whole lines must not outgrow the map
LINE_BYTES = 64  # rows are filled up to whole lines of words
WIDEST_RUN_BYTES = 32  # of a packed run, its share of the groups included
_COUNTS = struct.Struct("<II4B")  # runs, groups of equal change, bytes per entry of the four columns


@dataclass(frozen=True)
class Runs:
    """Runs of pixels that differ from those above in the same way, ordered by (class above, class below)."""

    change: Label
    """Exclusive or of the classes above and below."""
    row: Ints
    column: Ints
    length: Ints

    def interleaved(self) -> float:
        """Share of the runs that follow one of their own row: contours between the same classes get mixed up there."""
        return np.count_nonzero(self.row[1:] == self.row[:-1]) / max(1, len(self.row))


def find_runs(label: Label, *, most: int) -> Runs | None:
    """The runs of a label map (H, W), or None where there are more than `most`, or the map is too narrow."""
    if label.shape[1] < MIN_WIDTH:
        return None
    lines = _lines(label)
    word, changes = _changed_words(lines)
    entries, per_word = changes.view(lines.dtype), WORD_BYTES // lines.itemsize
    pixels = np.flatnonzero(entries != 0)
    fresh = _fresh(entries.reshape(-1, per_word), word, row_words=lines.shape[1] // per_word)
    starts = np.flatnonzero(fresh.take(pixels))
    if len(starts) > most:
        return None
    first = pixels.take(starts).astype(np.int32)
    length, change = _lengths(starts.astype(np.int32), total=len(pixels)), entries.take(first)
    place = _place(word, first, num=per_word)
    order = np.argsort(_pair(change, lines.reshape(-1).take(place)), kind="stable")
    place = place.take(order)
    row = place // np.int32(lines.shape[1])
    return Runs(change.take(order), row, place - row * np.int32(lines.shape[1]), length.take(order))


def _blank(height: int, width: int, dtype: np.dtype[Any]) -> Label:
    """Zeros of at least (H, W), their rows whole lines long."""
    per_line = LINE_BYTES // dtype.itemsize
    blank: Label = np.zeros((height, -(-width // per_line) * per_line), dtype)
    return blank


def _lines(label: Label) -> Label:
    """The map with rows of whole lines: itself where they are."""
    height, width = label.shape
    if width * label.dtype.itemsize % LINE_BYTES == 0:
        return label
    lines = _blank(height, width, label.dtype)
    lines[:, :width] = label
    return lines


def _changed_words(lines: Label) -> tuple[Ints, npt.NDArray[np.uint64]]:
    """Index and change of the words of pixels that differ from those above; above the first row all is zero."""
    words = lines.view(np.uint64)
    differs = np.empty(words.shape, bool)
    np.not_equal(words[:1], 0, out=differs[:1])
    np.not_equal(words[1:], words[:-1], out=differs[1:])
    found, flat = sparse_true(differs.reshape(-1)), words.reshape(-1)
    above = flat.take(found - np.int32(words.shape[1]), mode="wrap")
    above[: np.searchsorted(found, words.shape[1])] = 0
    return found, flat.take(found) ^ above


def _fresh(entries: Label, word: Ints, *, row_words: int) -> npt.NDArray[np.bool_]:
    """Which entries of the changed words differ from the one to the left, zero where that is not among them."""
    left = np.empty_like(entries)
    left.reshape(-1)[1:] = entries.reshape(-1)[:-1]
    row = word // np.int32(row_words)
    left[:1, :1] = 0
    left[1:, 0] *= (word[1:] == word[:-1] + 1) & (row[1:] == row[:-1])
    fresh: npt.NDArray[np.bool_] = (entries != left).reshape(-1)
    return fresh


def sparse_true(mask: npt.NDArray[np.bool_]) -> Ints:
    """Index of the true entries of a mask whose length is a multiple of 8; groups without any are passed over."""
    words = mask.view(np.uint64)
    group = np.flatnonzero(words != 0).astype(np.int32)
    inside = np.flatnonzero(words.take(group).view(np.bool_)).astype(np.int32)
    return _place(group, inside, num=WORD_BYTES)


def _place(group: Ints, inside: Ints, *, num: int) -> Ints:
    """Flat index of what lies at `inside` in a gathering of groups of `num` entries each."""
    which = inside // np.int32(num)
    shift = group - np.arange(len(group)).astype(np.int32)
    shift *= np.int32(num)
    return inside + shift.take(which)


def _pair(change: Label, below: Label) -> npt.NDArray[np.uint16]:
    """A 16-bit key of the classes above and below: exact for byte labels, scattered for wider ones."""
    above = (change ^ below).astype(np.uint16)
    return above * np.uint16(256 if change.dtype == np.uint8 else 0x9E3B) + below


def pack_runs(runs: Runs) -> bytes:
    """Runs as columns of bytes: low bytes of all entries, then the next, so that like stands beside like."""
    starts = np.flatnonzero(np.diff(runs.change, prepend=~runs.change[:1])).astype(np.int32)
    end = runs.column + runs.length
    down, aside = runs.row.copy(), runs.column.copy()
    down[1:] -= runs.row[:-1]
    aside[1:] -= end[:-1]
    columns = (_lengths(starts, total=len(runs.change)), _fold(down), _fold(aside), runs.length)
    widths = [_width(column) for column in columns]
    values = runs.change[starts]
    groups = values.astype(values.dtype.newbyteorder("<"))
    planes = [_planes(column, width) for column, width in zip(columns, widths, strict=True)]
    return b"".join([_COUNTS.pack(len(runs.change), len(starts), *widths), groups.tobytes(), *planes])


def _planes(column: npt.NDArray[Any], width: int) -> bytes:
    return column.astype("<u4", copy=False).view(np.uint8).reshape(-1, 4)[:, :width].T.tobytes()


def unpack_runs(data: bytes, *, dtype: np.dtype[Any]) -> Runs:
    """The runs behind `pack_runs`.

    Raises:
        ValueError: the bytes are too few, too many or no such columns.
    """
    if len(data) < _COUNTS.size:
        raise ValueError("no columns")
    num_runs, num_groups, *widths = _COUNTS.unpack_from(data)
    sizes = [num_groups, num_runs, num_runs, num_runs]
    needed = num_groups * dtype.itemsize + sum(n * width for n, width in zip(sizes, widths, strict=True))
    if max(widths) > np.dtype(np.int32).itemsize or len(data) != _COUNTS.size + needed:
        raise ValueError(f"{num_runs} runs do not fill {len(data)} bytes")
    values = np.frombuffer(data, dtype.newbyteorder("<"), num_groups, _COUNTS.size).astype(dtype)
    place, columns = _COUNTS.size + values.nbytes, []
    for size, width in zip(sizes, widths, strict=True):
        columns.append(_join(np.frombuffer(data, np.uint8, size * width, place).reshape(width, size)))
        place += size * width
    counts, down, aside, length = columns
    if counts.min(initial=0) < 0 or counts.sum(dtype=np.int64) != num_runs:
        raise ValueError(f"groups do not hold {num_runs} runs")
    end = np.cumsum(_unfold(aside) + length, dtype=np.int32)
    return Runs(np.repeat(values, counts), np.cumsum(_unfold(down), dtype=np.int32), end - length, length)


def draw_runs(runs: Runs, *, height: int, width: int) -> Label:
    """The label map (H, W) behind `find_runs`.

    Raises:
        ValueError: a run leaves the map, or the map is narrower than any that is told by its contours.
    """
    if width < MIN_WIDTH:
        raise ValueError(f"contours of a map of {height}x{width}")
    row, column, length = runs.row, runs.column, runs.length
    inside = (row >= 0) & (row < height) & (column >= 0) & (length > 0) & (length <= width) & (column <= width - length)
    if not inside.all() or length.sum(dtype=np.int64) > height * width:
        raise ValueError(f"runs leave the map of {height}x{width}")
    delta = _blank(height, width, runs.change.dtype)
    ahead = np.cumsum(length, dtype=np.int32)
    place = np.arange(length.sum(), dtype=np.int32)
    place += np.repeat(row * np.int32(delta.shape[1]) + column - (ahead - length), length)
    delta.reshape(-1)[place] = np.repeat(runs.change, length)
    words = delta.view(np.uint64)
    np.bitwise_xor.accumulate(words, axis=0, out=words)
    return delta[:, :width].copy() if delta.shape[1] > width else delta


def _lengths(starts: Ints, *, total: int) -> Ints:
    """Lengths of what begins at `starts` and ends where the next begins, the last at `total`."""
    lengths = np.empty_like(starts)
    lengths[:-1] = starts[1:] - starts[:-1]
    lengths[-1:] = total - starts[-1:]
    return lengths


def _fold(steps: Ints) -> npt.NDArray[np.uint32]:
    """Small steps either way as small numbers: 0, -1, 1, -2 … become 0, 1, 2, 3 …"""
    return ((steps << 1) ^ (steps >> 31)).view(np.uint32)


def _unfold(folded: Ints) -> Ints:
    return (folded.view(np.uint32) >> 1).view(np.int32) ^ -(folded & 1)


def _width(column: npt.NDArray[Any]) -> int:
    """Bytes that the largest entry needs."""
    return -(-int(column.max(initial=0)).bit_length() // 8)


def _join(planes: npt.NDArray[np.uint8]) -> Ints:
    column = np.zeros(planes.shape[1], np.uint32)
    for k, plane in enumerate(planes):
        column |= plane.astype(np.uint32) << np.uint32(8 * k)
    return column.view(np.int32)
