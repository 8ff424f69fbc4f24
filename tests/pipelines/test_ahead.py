"""Images decoded ahead of the one that is used."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from pipelines.ahead import ahead
from pipelines.decoding import decode_ahead
from pipelines.shard_counts import RowError, ShardCounts
from tests.tiny_data import SPACE, scene


@pytest.mark.parametrize("num", [1, 2, 8])
def test_results_keep_the_order_of_the_items_whichever_is_ready_first(num: int) -> None:
    def prepare(item: int) -> int:
        time.sleep(0.02 if item % 3 == 0 else 0.0)
        return item * item

    assert list(ahead(range(20), prepare, num=num)) == [item * item for item in range(20)]
    assert list(ahead([], prepare, num=num)) == []


def test_no_more_items_are_taken_than_may_wait_and_they_are_prepared_while_the_caller_works() -> None:
    taken: list[int] = []
    everybody = threading.Barrier(3, timeout=20)  # passed only by three threads at once

    def prepare(item: int) -> int:
        taken.append(item)
        if item < 3:
            everybody.wait()
        return item

    results = ahead(range(90), prepare, num=3)
    assert next(results) == 0
    assert len(taken) <= 1 + 3
    results.close()  # type: ignore[attr-defined]  # a generator
    assert len(taken) < 90


def test_what_one_item_raises_comes_at_its_turn() -> None:
    def prepare(item: int) -> int:
        if item == 2:
            raise OSError("disk")
        return item

    results = ahead(range(9), prepare, num=4)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(OSError, match="disk"):
        next(results)


def test_a_row_without_an_image_is_a_reason_in_its_place() -> None:
    good = scene(1, space=SPACE, size=(36, 44))["image"]
    rows = [
        {"image": good, "reason": None},
        {"image": None, "reason": "too small"},
        {"image": b"\xff\xd8 torn", "reason": None},
        {"image": good, "reason": None},
    ]
    first, rejected, torn, last = decode_ahead(rows, num=2)
    assert isinstance(first, np.ndarray)
    assert first.shape == (36, 44, 3)
    assert isinstance(last, np.ndarray)
    assert np.array_equal(first, last)
    assert isinstance(rejected, RowError)
    assert str(rejected) == "image was rejected: too small"
    assert isinstance(torn, RowError)


def test_waiting_for_items_is_counted_as_a_phase() -> None:
    counts = ShardCounts()
    assert list(counts.timed("decode", ahead(range(3), lambda item: time.sleep(0.05), num=1))) == [None] * 3
    assert 0.05 < counts.of_receipt()["seconds"]["decode"] < 5
