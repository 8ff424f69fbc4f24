"""The code of confidence maps: lossless on twentieths, small on real maps, refuses damage."""

from __future__ import annotations

import io
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from PIL import Image

from pipelines.codecs import encode_label
from pipelines.confidence import decode_confidence, decode_steps, encode_confidence, encode_steps


def smooth(height: int, width: int, *, seed: int = 0) -> NDArray[np.uint8]:
    """Twentieths of a smooth field, as a network's enlarged scores give."""
    cells = np.random.default_rng(seed).random((height // 16 + 2, width // 16 + 2)) * 255
    field = Image.fromarray(cells.astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC)
    return np.clip(np.asarray(field) / 255 * 20, 0, 20).astype(np.uint8)


@given(
    hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=70), elements=st.integers(0, 20))
)
@settings(max_examples=150, deadline=None)
def test_every_map_of_twentieths_comes_back(steps: NDArray[np.uint8]) -> None:
    assert np.array_equal(decode_steps(encode_steps(steps)), steps)


@pytest.mark.parametrize("shape", [(1, 1), (1, 97), (97, 1), (33, 65), (64, 64), (360, 481)])
def test_smooth_maps_of_any_size_come_back(shape: tuple[int, int]) -> None:
    steps = smooth(*shape)
    again = decode_steps(encode_steps(steps))
    assert np.array_equal(again, steps)
    assert again.dtype == np.uint8


def test_a_smooth_map_takes_half_the_bytes_of_a_run_length_code_and_of_a_png() -> None:
    steps = smooth(540, 960)
    buffer = io.BytesIO()
    Image.fromarray(steps).save(buffer, "PNG")
    code = len(encode_steps(steps))
    assert code < 0.55 * len(encode_label(steps))
    assert code < 0.55 * len(buffer.getvalue())


@pytest.mark.parametrize("between", [254, 255, 256, 511, 70_000])
def test_rare_surprises_far_apart_come_back(between: int) -> None:
    steps = np.full((300, 700), 20, np.uint8)
    steps.reshape(-1)[::between] = 7
    np.testing.assert_array_equal(decode_steps(encode_steps(steps)), steps)


def test_a_map_of_one_value_takes_a_few_hundred_bytes() -> None:
    assert len(encode_steps(np.full((1080, 1920), 20, np.uint8))) < 300


@given(st.lists(st.floats(0.0, 1.0, width=32), min_size=1, max_size=50))
def test_confidence_is_floored_to_twentieths(values: list[float]) -> None:
    confidence = np.array([values], np.float32)
    again = decode_confidence(encode_confidence(confidence))
    assert (again <= confidence + 1e-6).all()
    assert (confidence - again < 0.05 + 1e-6).all()


def test_a_confidence_of_a_whole_twentieth_keeps_its_step() -> None:
    exact = (np.arange(21) / 20).astype(np.float32)[None]
    assert decode_steps(encode_confidence(exact)).tolist() == [list(range(21))]


@pytest.mark.parametrize("cut", [0, 3, 27, 40, 200, -1])
def test_a_code_that_is_cut_short_is_refused(cut: int) -> None:
    code = encode_steps(smooth(100, 120))
    with pytest.raises(ValueError, match="damaged confidence code"):
        decode_steps(code[:cut])


@pytest.mark.parametrize("shape", [(1, 36), (3, 5), (40, 33)])
def test_a_flipped_bit_never_gives_another_map(shape: tuple[int, int]) -> None:
    code = encode_steps(smooth(*shape))
    for bit in range(8 * len(code)):
        damaged = bytearray(code)
        damaged[bit // 8] ^= 1 << (bit % 8)
        with pytest.raises(ValueError, match="damaged confidence code"):
            decode_steps(bytes(damaged))


def test_a_header_that_promises_a_huge_map_is_refused_before_it_is_reserved() -> None:
    code = bytearray(encode_steps(np.full((64, 64), 3, np.uint8)))
    code[4:12] = b"\xff\xff\xff\x7f\xff\xff\xff\x7f"
    code[-4:] = zlib.crc32(code[:-4]).to_bytes(4, "little")
    with pytest.raises(ValueError, match="damaged confidence code"):
        decode_steps(bytes(code))


@pytest.mark.parametrize("odd", [np.zeros((2, 2, 2), np.uint8), np.zeros((2, 2), np.int32)])
def test_other_arrays_are_refused(odd: NDArray[np.generic]) -> None:
    with pytest.raises(ValueError, match="uint8 array of twentieths"):
        encode_steps(odd)  # type: ignore[arg-type]  # what a caller may get wrong


def test_values_above_twenty_are_refused() -> None:
    with pytest.raises(ValueError, match="at most 20, found 21"):
        encode_steps(np.full((2, 2), 21, np.uint8))
