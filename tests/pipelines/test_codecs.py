"""The codecs of label tables: lossless, small, and safe with damaged bytes."""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from PIL import Image

from pipelines import codecs
from pipelines.code_frame import MAX_PIXELS
from pipelines.codecs import (
    CODECS,
    DECILE_CODEC,
    LOCO_CODEC,
    check_codecs,
    decode_deciles,
    decode_label,
    encode_deciles,
    encode_label,
)
from pipelines.contours import MIN_WIDTH, Runs, draw_runs, find_runs, pack_runs, unpack_runs

patient = settings(deadline=None)  # the machine may be busy
Map = NDArray[Any]
SHAPES = st.tuples(st.integers(0, 12), st.integers(0, 12))
DTYPES = st.sampled_from([np.uint8, np.uint16])
RNG = np.random.default_rng


@st.composite
def regions(draw: st.DrawFn) -> Map:
    """A map of rectangles over each other, of odd sizes, thin ones among them."""
    height, width = draw(st.integers(1, 80)), draw(st.integers(1, 150))
    dtype, most = draw(st.sampled_from([("uint8", 255), ("uint16", 65535)]))
    label: Map = np.full((height, width), draw(st.integers(0, most))).astype(dtype)
    for _ in range(draw(st.integers(0, 6))):
        top, left = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
        bottom, right = draw(st.integers(top, height)), draw(st.integers(left, width))
        label[top:bottom, left:right] = draw(st.integers(0, most))
    return label


def street(height: int = 270, width: int = 480, classes: int = 19, grid: tuple[int, int] = (14, 24)) -> Map:
    """Smooth regions: the arg-max of enlarged noise."""
    coarse = RNG(0).normal(size=(classes, *grid)).astype(np.float32)
    large = [np.asarray(Image.fromarray(one).resize((width, height), Image.Resampling.BICUBIC)) for one in coarse]
    label: Map = np.argmax(large, axis=0).astype(np.uint8)
    return label


def same(again: Map, label: Map) -> bool:
    return again.dtype == label.dtype and again.shape == label.shape and bool((again == label).all())


@patient
@given(hnp.arrays(DTYPES, SHAPES, elements=st.integers(0, 3)))
def test_small_labels_survive_the_codec(label: Map) -> None:
    assert same(decode_label(encode_label(label)), label)


@patient
@given(regions())
def test_regions_survive_the_codec(label: Map) -> None:
    assert same(decode_label(encode_label(label)), label)


@patient
@given(regions())
def test_regions_survive_as_contours_however_busy_they_are(label: Map) -> None:
    runs = find_runs(label, most=label.size)
    if label.shape[1] < MIN_WIDTH:
        assert runs is None
        return
    assert runs is not None
    unpacked = unpack_runs(pack_runs(runs), dtype=label.dtype)
    assert same(draw_runs(unpacked, height=label.shape[0], width=label.shape[1]), label)


@pytest.mark.parametrize(
    "label",
    [
        np.zeros((1, 1), np.uint8),
        np.full((1, 1), 65535, np.uint16),
        np.arange(1000, dtype=np.uint16)[None] // 100,
        np.arange(1000, dtype=np.uint16)[:, None] // 100,
        np.full((1080, 1920), 255, np.uint8),
        np.repeat(np.arange(300, dtype=np.uint16), 7)[:, None].repeat(65, axis=1),
        RNG(0).integers(0, 256, (300, 301)).astype(np.uint8),
        RNG(0).integers(0, 65536, (65, 63)).astype(np.uint16),
        street()[:, ::-1],
        np.asfortranarray(street()),
        np.zeros((0, 5), np.uint8),
        np.zeros((5, 0), np.uint16),
    ],
    ids=lambda label: f"{label.shape} {label.dtype}",
)
def test_every_shape_and_content_survives_the_codec(label: Map) -> None:
    again = decode_label(encode_label(label))
    assert same(again, label)
    assert again.flags.c_contiguous


def test_a_map_wider_than_two_bytes_count_survives_as_contours() -> None:
    label = np.zeros((3, 70_000), np.uint8)
    label[1:, 66_000:] = 1
    label[2, :100] = 2
    assert same(decode_label(encode_label(label)), label)


def test_a_map_of_one_class_is_a_few_bytes() -> None:
    assert len(encode_label(np.zeros((2000, 2000), np.uint8))) < 64


def test_a_map_of_regions_is_far_smaller_than_its_png(tmp_path: Any) -> None:
    label = street(1080, 1920)
    Image.fromarray(label).save(tmp_path / "label.png", compress_level=6)
    assert (tmp_path / "label.png").stat().st_size > 2 * len(encode_label(label))


@pytest.mark.real
def test_real_labels_are_smaller_than_their_png_and_survive(shared_data: Any, tmp_path: Any) -> None:
    paths = sorted((shared_data / "datasets" / "voc-6" / "labels").glob("*.png"))
    paths += sorted((shared_data / "datasets" / "camvid-11" / "test" / "labels").glob("*"))[::40]
    for path in paths:
        label = np.asarray(Image.open(path))
        Image.fromarray(label).save(tmp_path / "label.png", compress_level=6)
        code = encode_label(label)
        assert same(decode_label(code), label)
        assert (tmp_path / "label.png").stat().st_size > 1.3 * len(code), path.name


def test_many_alike_contours_are_coded_no_larger_than_as_runs_along_the_rows() -> None:
    discs = street(375, 500, 2, (18, 24)).astype(np.uint16) * 1000
    runs = find_runs(discs, most=discs.size)
    assert runs is not None
    assert runs.interleaved() > 0.5
    assert encode_label(discs)[4] == encode_label(RNG(0).integers(0, 2, (9, 9)).astype(np.uint8))[4] == 0


@pytest.mark.parametrize("label", [np.zeros((2, 2), np.int32), np.zeros((2, 2, 3), np.uint8)])
def test_only_byte_maps_are_encoded(label: Map) -> None:
    with pytest.raises(ValueError, match="uint8 or uint16"):
        encode_label(label)


def test_a_map_larger_than_any_image_is_refused() -> None:
    with pytest.raises(ValueError, match=f"at most {MAX_PIXELS} pixels"):
        encode_label(np.broadcast_to(np.uint8(0), (1 << 16, 1 << 15)))


@pytest.mark.parametrize("codec", CODECS["deciles"])
@patient
@given(label=hnp.arrays(np.uint8, SHAPES, elements=st.integers(0, 9)))
def test_deciles_survive_both_codecs(codec: str, label: Map) -> None:
    assert same(decode_deciles(encode_deciles(label, codec=codec)), label)


def smooth_deciles() -> Map:
    noise = Image.fromarray(RNG(0).random((12, 16)).astype(np.float32))
    scores = np.asarray(noise.resize((500, 375), Image.Resampling.BICUBIC))
    return (10 * scores.argsort(axis=None).argsort() // scores.size).astype(np.uint8).reshape(scores.shape)


def test_jpeg_ls_is_the_smaller_code_of_deciles() -> None:
    deciles = smooth_deciles()
    sizes = {codec: len(encode_deciles(deciles, codec=codec)) for codec in CODECS["deciles"]}
    assert sizes[LOCO_CODEC] < sizes[DECILE_CODEC] < deciles.size // 2


@pytest.mark.parametrize("deciles", [np.full((2, 2), 10, np.uint8), np.zeros((2, 2), np.uint16)])
def test_only_deciles_are_coded_as_deciles(deciles: Map) -> None:
    with pytest.raises(ValueError, match=r"deciles are uint8 values 0\.\.9"):
        encode_deciles(deciles)


def test_without_the_extra_deciles_are_packed_and_a_jpeg_ls_code_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    code = encode_deciles(smooth_deciles(), codec=LOCO_CODEC)
    assert codecs.best_decile_codec() == LOCO_CODEC
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    monkeypatch.setattr(codecs, "find_spec", lambda _: None)
    assert codecs.best_decile_codec() == DECILE_CODEC
    with pytest.raises(ValueError, match="install the extra `archive`"):
        decode_deciles(code)


CODED: dict[str, tuple[Callable[[bytes], Map], bytes]] = {
    "contours": (decode_label, encode_label(street(90, 160, 5, (3, 4)))),
    "runs": (decode_label, encode_label(RNG(0).integers(0, 5, (16, 16)).astype(np.uint8))),
    "wide": (decode_label, encode_label(np.zeros((300, 300), np.uint16))),
    "nibbles": (decode_deciles, encode_deciles(smooth_deciles()[:20, :20])),
    "jpegls": (decode_deciles, encode_deciles(smooth_deciles()[:20, :20], codec=LOCO_CODEC)),
}


@pytest.mark.parametrize("name", CODED)
def test_every_flipped_bit_is_noticed(name: str) -> None:
    decode, data = CODED[name]
    for bit in range(8 * min(len(data), 600)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << (bit % 8)
        with pytest.raises(ValueError, match="damaged label code"):
            decode(bytes(damaged))


@pytest.mark.parametrize("name", CODED)
@pytest.mark.parametrize("cut", [0, 3, 12, 20, -1])
def test_a_truncated_code_is_refused(name: str, cut: int) -> None:
    decode, data = CODED[name]
    with pytest.raises(ValueError, match="damaged label code"):
        decode(data[:cut])


def sealed(data: bytes) -> bytes:
    """The code with a checksum that holds, as nobody's accident would have it."""
    checksum = zlib.crc32(data[18:], zlib.crc32(data[:14] + bytes(4)))
    return data[:14] + checksum.to_bytes(4, "little") + data[18:]


@pytest.mark.parametrize("name", CODED)
@patient
@given(data=st.data())
def test_damage_under_a_right_checksum_is_an_error_or_a_map_of_the_stated_size(name: str, data: st.DataObject) -> None:
    decode, code = CODED[name]
    damaged = bytearray(code)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, 5) | st.sampled_from([6, 7, 10, 11]) | st.integers(18, len(code) - 1))
        damaged[place] = data.draw(st.integers(0, 255))
    try:
        again = decode(sealed(bytes(damaged)))
    except ValueError:
        return
    stated = int.from_bytes(damaged[6:10], "little"), int.from_bytes(damaged[10:14], "little")
    assert again.shape == stated


@patient
@given(st.binary(max_size=80))
def test_any_bytes_are_refused(data: bytes) -> None:
    for decode in (decode_label, decode_deciles):
        with pytest.raises(ValueError, match="damaged label code"):
            decode(data)


def test_a_code_that_claims_a_map_larger_than_any_image_is_refused_before_it_is_unpacked() -> None:
    code = bytearray(encode_label(np.zeros((2, 2), np.uint8)))
    code[6:14] = b"\xff\xff\xff\x00\xff\xff\xff\x00"
    with pytest.raises(ValueError, match="16777215x16777215 pixels"):
        decode_label(sealed(bytes(code)))


@pytest.mark.parametrize("name", ["contours", "runs", "nibbles"])
def test_a_code_with_more_content_than_pixels_is_refused_before_it_is_unpacked(name: str) -> None:
    decode, data = CODED[name]
    code = bytearray(data)
    code[6:14] = b"\x02\x00\x00\x00\x02\x00\x00\x00"
    with pytest.raises(ValueError, match="more content than pixels"):
        decode(sealed(bytes(code)))


@pytest.mark.parametrize(
    ("row", "column", "length"), [(5, 0, 1), (-1, 0, 1), (0, 40, 1), (0, 39, 2), (0, -1, 2), (0, 0, 0), (1 << 30, 0, 1)]
)
def test_a_run_that_leaves_the_map_is_refused(row: int, column: int, length: int) -> None:
    runs = Runs(np.ones(1, np.uint8), *(np.array([one], np.int32) for one in (row, column, length)))
    with pytest.raises(ValueError, match="leave the map of 5x40"):
        draw_runs(runs, height=5, width=40)


def test_deciles_are_no_label_and_a_label_is_no_deciles() -> None:
    with pytest.raises(ValueError, match="layout 2 is unknown"):
        decode_label(CODED["nibbles"][1])
    with pytest.raises(ValueError, match="layout 1 is unknown"):
        decode_deciles(CODED["contours"][1])


def test_an_unknown_codec_is_named_with_those_that_are_known() -> None:
    check_codecs({"label": "contour-zstd"}, where="here")
    message = r"here: column 'deciles' is coded with 'jpegsl' \(did you mean 'jpegls'\?\); .* reads nibble-zstd, jpegls"
    with pytest.raises(ValueError, match=message):
        check_codecs({"label": "contour-zstd", "deciles": "jpegsl"}, where="here")
    with pytest.raises(ValueError, match="here: its metadata names no codecs"):
        check_codecs(None, where="here")
