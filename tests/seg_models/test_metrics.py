"""The confusion matrix against a slow loop, and figures worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from seg_models.metrics import ConfusionMatrix

K, VOID = 5, 255

label_maps = st.tuples(st.integers(1, 7), st.integers(1, 7)).flatmap(
    lambda shape: st.tuples(
        hnp.arrays(np.uint16, shape, elements=st.integers(0, K - 1)),
        hnp.arrays(np.uint8, shape, elements=st.sampled_from([*range(K), VOID])),
    )
)


def slow_counts(predicted: NDArray[np.uint16], target: NDArray[np.uint8]) -> NDArray[np.int64]:
    counts = np.zeros((K, K), dtype=np.int64)
    for guess, truth in zip(predicted.ravel(), target.ravel(), strict=True):
        if truth != VOID:
            counts[truth, guess] += 1
    return counts


@settings(max_examples=60, deadline=None)
@given(maps=st.lists(label_maps, min_size=1, max_size=3))
def test_counts_and_figures_equal_a_slow_loop(maps: list[tuple[NDArray[np.uint16], NDArray[np.uint8]]]) -> None:
    matrix = ConfusionMatrix(K, VOID)
    for predicted, target in maps:
        matrix.update(predicted, target)
    expected = np.sum([slow_counts(*pair) for pair in maps], axis=0)
    assert np.array_equal(matrix.matrix, expected)
    ious = []
    for k in range(K):
        union = expected[k].sum() + expected[:, k].sum() - expected[k, k]
        if union:
            ious.append(expected[k, k] / union)
            assert matrix.iou()[k] == pytest.approx(ious[-1])
        else:
            assert np.isnan(matrix.iou()[k])
    assert matrix.miou() == pytest.approx(np.mean(ious) if ious else np.nan, nan_ok=True)


def test_figures_of_a_small_example() -> None:
    matrix = ConfusionMatrix(3, VOID)
    matrix.update(np.array([[0, 0, 1, 1]]), np.array([[0, 1, 1, VOID]]))
    assert matrix.matrix.tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 0]]
    assert matrix.iou()[:2].tolist() == [0.5, 0.5]
    assert matrix.pixel_accuracy() == pytest.approx(2 / 3)
    assert matrix.accuracy()[:2].tolist() == [1.0, 0.5]
    assert matrix.precision()[:2].tolist() == [0.5, 1.0]
    assert matrix.miou() == 0.5, "a class that is nowhere takes no part in the mean"


def test_a_class_that_is_only_predicted_counts_as_zero() -> None:
    matrix = ConfusionMatrix(2, VOID)
    matrix.update(np.array([0, 1]), np.array([0, 0]))
    assert matrix.iou().tolist() == [0.5, 0.0]
    assert matrix.miou() == 0.25


def test_an_empty_matrix_has_no_figures() -> None:
    matrix = ConfusionMatrix(2, VOID)
    matrix.update(np.full((3, 3), 1), np.full((3, 3), VOID))
    assert np.isnan(matrix.miou())
    assert np.isnan(matrix.pixel_accuracy())


def test_parts_merged_in_any_order_equal_the_whole() -> None:
    rng = np.random.default_rng(0)
    predicted, target = rng.integers(0, K, (4, 50)), rng.integers(0, K, (4, 50))
    whole, merged = ConfusionMatrix(K, VOID), ConfusionMatrix(K, VOID)
    whole.update(predicted, target)
    for row in (2, 0, 3, 1):
        part = ConfusionMatrix(K, VOID)
        part.update(torch.from_numpy(predicted[row]), torch.from_numpy(target[row]))
        merged.merge(part if row % 2 else part.matrix)
    assert np.array_equal(merged.matrix, whole.matrix)


def test_counts_beyond_float32_stay_exact() -> None:
    matrix = ConfusionMatrix(2, VOID)
    matrix.merge(np.array([[2**24, 0], [0, 0]]))
    matrix.update(np.zeros(1, np.uint8), np.zeros(1, np.uint8))
    assert matrix.matrix[0, 0] == 2**24 + 1


def test_classes_of_pssl_with_their_void_fit() -> None:
    matrix = ConfusionMatrix(1001, 65535)
    matrix.update(np.array([1000, 3, 0], np.uint16), np.array([1000, 65535, 7], np.uint16))
    assert matrix.matrix.sum() == 2
    assert matrix.matrix[1000, 1000] == 1
    assert matrix.matrix[7, 0] == 1


@pytest.mark.parametrize(
    ("predicted", "target", "message"),
    [
        ([0, 3], [0, 0], "prediction holds 3, which is none of the 3 classes"),
        ([0, 0], [0, 3], "target holds 3"),
        ([0, 0], [0, 254], "target holds 254"),
        ([-1, 0], [0, 0], "prediction holds -1"),
        ([0], [0, 0], "differ in shape"),
    ],
)
def test_values_outside_the_classes_are_refused(predicted: list[int], target: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ConfusionMatrix(3, VOID).update(np.array(predicted), np.array(target))


def test_a_void_that_is_a_class_is_refused() -> None:
    with pytest.raises(ValueError, match="void 2 is one of the 3 classes"):
        ConfusionMatrix(3, 2)


def test_merging_other_classes_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot merge counts of 2 classes into 3"):
        ConfusionMatrix(3, VOID).merge(ConfusionMatrix(2, VOID))


def test_the_class_table_names_rows_and_leaves_undefined_cells_empty() -> None:
    matrix = ConfusionMatrix(2, VOID)
    matrix.update(np.array([0, 0]), np.array([0, 0]))
    first, second = matrix.class_table(["sky", "tree"])
    assert first == {"class": "sky", "iou": 1.0, "accuracy": 1.0, "precision": 1.0, "pixels": 2, "predicted_pixels": 2}
    assert second["iou"] is None
    assert second["class"] == "tree"


@pytest.mark.parametrize(("num_classes", "void"), [(5, 255), (5, 5), (5, 65535), (180, 255), (181, 255), (300, 65535)])
@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64])
def test_every_integer_type_and_every_void_give_the_same_counts(kind: type, num_classes: int, void: int) -> None:
    rng = np.random.default_rng(num_classes)
    classes = min(num_classes, np.iinfo(kind).max + 1)
    guess, truth = rng.integers(0, classes, (2, 9, 31))
    if void <= np.iinfo(kind).max:
        truth[2:4] = void
    expected = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(expected, (truth[truth != void], guess[truth != void]), 1)
    matrix = ConfusionMatrix(num_classes, void)
    matrix.update(guess.astype(kind), truth.astype(kind))
    assert np.array_equal(matrix.matrix, expected)
    matrix.update(torch.from_numpy(guess.astype(kind)), torch.from_numpy(truth.astype(kind)))
    assert np.array_equal(matrix.matrix, 2 * expected)


def test_maps_larger_than_a_strip_are_counted_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seg_models.metrics.CPU_STRIP_PIXELS", 64)
    rng = np.random.default_rng(0)
    guess, truth = rng.integers(0, K, (2, 7, 37)).astype(np.uint8)
    truth[3:5] = VOID
    matrix = ConfusionMatrix(K, VOID)
    matrix.update(guess, truth)
    assert np.array_equal(matrix.matrix, slow_counts(guess, truth))


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.int64])
def test_a_label_that_void_would_hide_is_refused_and_nothing_is_counted(kind: type) -> None:
    matrix = ConfusionMatrix(3, 65535)
    with pytest.raises(ValueError, match="target holds 255"):
        matrix.update(np.zeros(2, kind), np.array([0, 255], np.uint8 if kind is np.uint8 else kind))
    with pytest.raises(ValueError, match="prediction holds 3"):
        matrix.update(np.array([0, 3], kind), np.zeros(2, kind))
    with pytest.raises(ValueError, match="target holds 65536"):
        matrix.update(np.zeros(1, kind), np.array([65536]))
    assert matrix.matrix.sum() == 0


def test_a_read_only_map_is_counted_and_one_of_fractions_refused() -> None:
    matrix, held = ConfusionMatrix(2, VOID), np.zeros(3, np.uint8)
    held.flags.writeable = False
    matrix.update(held, held)
    assert matrix.matrix.sum() == 3
    with pytest.raises(ValueError, match=r"label maps hold integers, found torch\.float32"):
        matrix.update(held.astype(np.float32), held)


@settings(max_examples=40, deadline=None)
@given(maps=label_maps)
def test_weighted_iou_and_mean_accuracy_equal_a_loop_over_the_classes(
    maps: tuple[NDArray[np.uint16], NDArray[np.uint8]],
) -> None:
    matrix = ConfusionMatrix(K, VOID)
    matrix.update(*maps)
    counts, weighted, found = slow_counts(*maps), 0.0, []
    for k in range(K):
        pixels, union = counts[k].sum(), counts[k].sum() + counts[:, k].sum() - counts[k, k]
        if pixels:
            weighted += pixels / counts.sum() * counts[k, k] / union
            found.append(counts[k, k] / pixels)
    assert matrix.fwiou() == pytest.approx(weighted if found else np.nan, nan_ok=True)
    assert matrix.mean_accuracy() == pytest.approx(np.mean(found) if found else np.nan, nan_ok=True)


@pytest.mark.parametrize("void", [-1, 65536])
def test_a_void_of_more_than_16_bits_is_refused(void: int) -> None:
    with pytest.raises(ValueError, match=f"void {void} is no label of 16 bits"):
        ConfusionMatrix(3, void)
