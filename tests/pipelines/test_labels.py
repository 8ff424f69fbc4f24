"""LabelSpace and label images."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from pipelines.label_files import label_png, read_label_image
from pipelines.labels import LabelSpace, LabelValueError, with_background

patient = settings(deadline=None)  # the machine may be busy
SHAPES = st.tuples(st.integers(0, 12), st.integers(0, 12))


def test_void_is_255_up_to_255_classes_and_65535_above() -> None:
    assert (LabelSpace(names=tuple(f"c{i}" for i in range(255))).void) == 255
    large = LabelSpace(names=tuple(f"c{i}" for i in range(256)))
    assert large.void == 65535
    assert large.dtype == np.uint16


def test_pseudo_labels_of_imagenet_have_background_1000_and_void_65535() -> None:
    space = with_background([f"n{i}" for i in range(1000)])
    assert (space.background, space.num_classes, space.void, space.names[1000]) == (1000, 1001, 65535, "background")


def test_raw_values_are_mapped_and_void_values_become_void() -> None:
    space = LabelSpace(names=("road", "sky"), raw_values=(7, 23), void_values=(0, 255))
    assert space.to_index(np.array([[7, 23, 0, 255]])).tolist() == [[0, 1, 255, 255]]


@patient
@given(hnp.arrays(np.uint8, (6, 6), elements=st.integers(0, 9)))
def test_mapping_equals_the_obvious_loop_or_refuses(raw: np.ndarray) -> None:
    space = LabelSpace(names=("a", "b", "c"), raw_values=(4, 1, 6), void_values=(9, 2))
    wanted = {4: 0, 1: 1, 6: 2, 9: 255, 2: 255}
    if set(np.unique(raw).tolist()) <= set(wanted):
        slow = [[wanted[int(value)] for value in row] for row in raw]
        assert space.to_index(raw).tolist() == slow
    else:
        with pytest.raises(LabelValueError):
            space.to_index(raw)


def test_an_unknown_value_is_named_with_its_pixels_and_the_line_to_add() -> None:
    space = LabelSpace(names=("a", "b", "c"))
    with pytest.raises(LabelValueError, match=r"value 9 on 2 pixels.*void_values = \[9, 255\]"):
        space.to_index(np.array([[0, 9, 9, 1]]))


def test_a_0_255_mask_gets_its_own_hint() -> None:
    space = LabelSpace(names=("background", "thing"), void_values=())
    with pytest.raises(LabelValueError, match=r"raw_values = \[0, 255\]"):
        space.to_index(np.array([[0, 255]]))


def test_every_unknown_value_is_listed_and_the_line_to_add_is_whole() -> None:
    raw = np.repeat(np.arange(15), 2).reshape(2, 15)
    with pytest.raises(LabelValueError) as caught:
        LabelSpace(names=("a", "b", "c")).to_index(raw)
    assert all(f"value {value} on 2 pixels" in str(caught.value) for value in range(3, 15))
    assert f"add `void_values = {[*range(3, 15), 255]}`" in str(caught.value)
    mended = LabelSpace(names=("a", "b", "c"), void_values=(*range(3, 15), 255))
    assert set(np.unique(mended.to_index(raw))) == {0, 1, 2, 255}


def test_a_photograph_in_place_of_a_label_gets_no_endless_line() -> None:
    with pytest.raises(LabelValueError, match=r"and 77 more values .*is this the right class list"):
        LabelSpace(names=("a", "b", "c")).to_index(np.arange(100).reshape(10, 10))


@pytest.mark.parametrize(("raw_values", "void_values"), [((0, 5), (-1,)), ((-2, 7), (0, -1)), ((-1, 0), ())])
def test_negative_raw_ids_can_be_named(raw_values: tuple[int, ...], void_values: tuple[int, ...]) -> None:
    space = LabelSpace(names=("a", "b"), raw_values=raw_values, void_values=void_values)
    raw = np.array([[*raw_values, *void_values]], np.int16)
    assert space.to_index(raw).tolist() == [[0, 1, *(255 for _ in void_values)]]


def test_truth_values_count_as_zero_and_one() -> None:
    assert LabelSpace(names=("a", "b")).to_index(np.array([[True, False]])).tolist() == [[1, 0]]


def test_fractions_are_no_class_ids() -> None:
    with pytest.raises(LabelValueError, match="float32"):
        LabelSpace(names=("a", "b")).to_index(np.zeros((2, 2), np.float32))


def test_negative_values_are_refused() -> None:
    with pytest.raises(LabelValueError, match="value -1 on 1 pixels"):
        LabelSpace(names=("a", "b")).to_index(np.array([[0, -1]]))


def test_colour_labels_are_mapped_by_colour() -> None:
    space = LabelSpace(names=("a", "b"), colors=((255, 0, 0), (0, 255, 0)))
    rgb = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 0]]], np.uint8)
    assert space.from_rgb(rgb).tolist() == [[0, 1, 255]]
    with pytest.raises(LabelValueError, match=r"colour \(1, 2, 3\) on 2 pixels.*add \[1, 2, 3\] to `colors`"):
        space.from_rgb(np.array([[[1, 2, 3], [255, 0, 0], [1, 2, 3]]], np.uint8))


@patient
@given(hnp.arrays(np.uint8, SHAPES, elements=st.sampled_from([0, 1, 2, 255])))
def test_colours_lead_back_to_the_indices_that_were_painted(label: np.ndarray) -> None:
    space = LabelSpace(names=("a", "b", "c"))
    assert np.array_equal(space.from_rgb(space.colorize(label)), label)


def test_two_classes_of_one_colour_cannot_be_told_apart() -> None:
    with pytest.raises(LabelValueError, match="same colour"):
        LabelSpace(names=("a", "b"), colors=((1, 2, 3), (1, 2, 3))).from_rgb(np.zeros((1, 1, 3), np.uint8))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"colors": ((1, 2, 3),)}, "colors has 1 entries for 2 classes"),
        ({"raw_values": (3, 3)}, "names an id twice"),
        ({"void_values": (1,)}, "both a class and void"),
        ({"background": 2}, "is no class index"),
        ({"raw_values": (0, 1 << 24)}, "outside -32768..16777215"),
    ],
)
def test_a_space_that_contradicts_itself_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LabelSpace(names=("a", "b"), **changes)


def test_generated_colours_are_distinct() -> None:
    colors = LabelSpace(names=tuple(f"c{i}" for i in range(150))).colors
    assert len(set(colors)) == 150


@pytest.mark.parametrize("mode", ["L", "P", "I;16", "1"])
def test_label_images_keep_their_ids(mode: str) -> None:
    ids = np.array([[0, 1], [1, 0]], np.uint16 if mode == "I;16" else np.uint8)
    if mode == "1":
        image = Image.fromarray(ids * 255).convert("1")
    elif mode == "P":
        image = Image.fromarray(ids, mode="L").convert("P")
        image.putdata(ids.reshape(-1).tolist())
    else:
        image = Image.fromarray(ids)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    assert read_label_image(buffer.getvalue()).tolist() == ids.tolist()


@pytest.mark.parametrize("mode", ["CMYK", "F"])
def test_images_that_cannot_hold_ids_are_refused(mode: str) -> None:
    buffer = io.BytesIO()
    Image.new(mode, (3, 2)).save(buffer, "TIFF")
    with pytest.raises(ValueError, match=f"colour mode {mode} holds no class ids"):
        read_label_image(buffer.getvalue())


def test_text_is_no_label_image() -> None:
    with pytest.raises(ValueError, match="not an image"):
        read_label_image(b"hello")


@pytest.mark.parametrize("count", [3, 300])
def test_written_png_reads_back_as_the_same_indices(count: int) -> None:
    space = LabelSpace(names=tuple(f"c{i}" for i in range(count)))
    label = np.array([[0, count - 1], [space.void, 1]], space.dtype)
    assert read_label_image(label_png(label, space)).tolist() == label.tolist()


def test_void_is_black_in_pictures() -> None:
    space = LabelSpace(names=("a",), colors=((9, 8, 7),))
    assert space.colorize(np.array([[0, 255]], np.uint8)).tolist() == [[[9, 8, 7], [0, 0, 0]]]


@pytest.mark.parametrize("pairs", [((0, 3),), ((0, 1), (1, 2)), ((1, 1),), ((-1, 0),)])
def test_mirror_pairs_of_no_or_several_meanings_are_refused(pairs: tuple[tuple[int, int], ...]) -> None:
    with pytest.raises(ValueError, match=r"mirror_pairs .* must name class indices \(0..2\), each once"):
        LabelSpace(names=("a", "b", "c"), mirror_pairs=pairs)


@pytest.mark.parametrize(
    ("names", "pairs"),
    [
        (("Hat", "Left-arm", "Right-arm"), ((1, 2),)),
        (("right", "leftArm", "rightArm", "left"), ((0, 3), (1, 2))),
        (("upright", "upleft", "left hand", "right foot"), ()),
        (("left of right", "right of left"), ((0, 1),)),
    ],
)
def test_names_tell_which_classes_change_places_in_a_mirrored_image(
    names: tuple[str, ...], pairs: tuple[tuple[int, int], ...]
) -> None:
    assert LabelSpace(names=names).mirror_pairs == pairs
    assert LabelSpace(names=names, mirror_pairs=()).mirror_pairs == ()
    stored = LabelSpace(names=names).model_dump_json()
    assert LabelSpace.model_validate_json(stored).mirror_pairs == pairs


def test_a_class_called_background_is_black_and_no_other() -> None:
    colors = LabelSpace(names=("background", "horse", "cat")).colors
    assert colors[0] == (0, 0, 0)
    assert len(set(colors)) == 3
    assert LabelSpace(names=("background", "horse"), colors=((9, 9, 9), (1, 1, 1))).colors[0] == (9, 9, 9)
