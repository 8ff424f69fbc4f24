"""Which of a teacher's labels are kept: thresholds, border, classes from coarse labels; against a slow reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pipelines.keep import BorderSpec, CoarseSpec, KeepRule, KeepSpec
from pipelines.labels import LabelSpace

SPACE = LabelSpace(names=("road", "car", "truck", "bus", "bicycle"))
VOID = SPACE.void


def slow(keep: KeepSpec, found: Any, steps: Any, coarse: Any) -> Any:
    """Pixel by pixel, as one would say it."""
    height, width = found.shape
    border, label = keep.border, np.empty_like(found)
    for y in range(height):
        for x in range(width):
            outside = y < border.top or y >= height - border.bottom or x < border.left or x >= width - border.right
            name = SPACE.names[found[y, x]]
            sure = steps[y, x] / 20 >= keep.class_thresholds.get(name, keep.threshold) - 1e-9
            value = found[y, x] if sure else VOID
            if keep.coarse is not None:
                human = None if coarse[y, x] == VOID else SPACE.names[coarse[y, x]]
                if name in keep.coarse.classes or human in keep.coarse.classes:
                    value = coarse[y, x]
            label[y, x] = VOID if outside else value
    return label


def released(keep: KeepSpec, found: Any, steps: Any, coarse: Any) -> Any:
    """What the released loader does with a picture of ids, class after class."""
    assert keep.coarse is not None
    seen = np.full_like(found, VOID)
    inside = keep.border.inside(*found.shape)
    seen[inside] = found[inside]
    label = seen.copy()
    for index, name in enumerate(SPACE.names):
        mine = seen == index
        if name in keep.coarse.classes and mine.any():
            mine = mine | (coarse == index)
        label[mine] = index
    for index, name in enumerate(SPACE.names):
        least = round(20 * keep.class_thresholds.get(name, keep.threshold))
        label[(label == index) & (steps < least)] = VOID
    return label


twentieths = st.integers(0, 20).map(lambda steps: steps / 20)
classes = st.lists(st.sampled_from(SPACE.names), min_size=1, max_size=3, unique=True).map(tuple)


@st.composite
def cases(draw: st.DrawFn, *, as_released: bool) -> tuple[KeepSpec, Any, Any, Any]:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = (draw(st.integers(1, 9)), draw(st.integers(1, 9)))
    side = st.integers(0, 3)
    coarse = CoarseSpec(labels="human", classes=draw(classes), released=as_released)
    keep = KeepSpec(
        threshold=draw(twentieths),
        class_thresholds=draw(st.dictionaries(st.sampled_from(SPACE.names), twentieths, max_size=3)),
        border=BorderSpec(top=draw(side), bottom=draw(side), left=draw(side), right=draw(side)),
        coarse=coarse if as_released or draw(st.booleans()) else None,
    )
    found = rng.integers(0, 5, shape).astype(np.uint8)
    human = rng.choice([0, 1, 2, 3, 4, VOID], shape).astype(np.uint8)
    return keep, found, rng.integers(0, 21, shape).astype(np.uint8), human


@given(cases(as_released=False))
@settings(max_examples=150, deadline=None)
def test_every_pixel_is_what_a_slow_reference_says(case: tuple[KeepSpec, Any, Any, Any]) -> None:
    keep, found, steps, coarse = case
    kept = KeepRule(keep, SPACE).apply(found, steps, coarse=coarse if keep.coarse else None)
    assert np.array_equal(kept.label, slow(keep, found, steps, coarse))
    assert kept.label.dtype == found.dtype


@given(cases(as_released=True))
@settings(max_examples=150, deadline=None)
def test_the_released_flag_does_what_the_released_loader_does(case: tuple[KeepSpec, Any, Any, Any]) -> None:
    keep, found, steps, coarse = case
    assert np.array_equal(
        KeepRule(keep, SPACE).apply(found, steps, coarse=coarse).label, released(keep, found, steps, coarse)
    )


def test_the_intent_trusts_people_where_the_released_loader_takes_the_union() -> None:
    """The teacher takes a car for a truck, and misses a truck that people drew."""
    found = np.array([[2, 2, 1, 0]], np.uint8)
    coarse = np.array([[1, 2, 2, VOID]], np.uint8)
    steps = np.full(found.shape, 20, np.uint8)

    def label(*, released: bool) -> list[int]:
        rule = CoarseSpec(labels="human", classes=("truck",), released=released)
        return list(KeepRule(KeepSpec(coarse=rule), SPACE).apply(found, steps, coarse=coarse).label[0])

    assert label(released=False) == [1, 2, 2, 0]
    assert label(released=True) == [2, 2, 2, 0]


def test_a_threshold_is_reached_by_equality() -> None:
    found, steps = np.zeros((1, 3), np.uint8), np.array([[17, 18, 19]], np.uint8)
    label = KeepRule(KeepSpec(threshold=0.9), SPACE).apply(found, steps).label
    assert label.tolist() == [[VOID, 0, 0]]


def test_every_twentieth_is_a_threshold_and_means_its_own_step() -> None:
    found, steps = np.zeros((1, 21), np.uint8), np.arange(21, dtype=np.uint8)[None]
    for count in range(21):
        label = KeepRule(KeepSpec(threshold=count / 20), SPACE).apply(found, steps).label
        assert (label != VOID).sum() == 21 - count


@pytest.mark.parametrize("name", ["released", "paper"])
def test_published_thresholds_have_names(name: str) -> None:
    assert KeepSpec.model_validate({"threshold": name}).threshold == {"released": 0.5, "paper": 0.9}[name]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"threshold": 0.87}, r"found 0\.87; confidence is kept in twentieths, use 0\.85 or 0\.9"),
        ({"threshold": 1.5}, r"use 0\.\.1"),
        ({"threshold": -0.1}, r"use 0\.\.1"),
        ({"threshold": "papper"}, "did you mean 'paper'"),
        ({"class_thresholds": {"car": 0.33}}, r"use 0\.3 or 0\.35"),
        ({"border": {"top": 1.5}}, "whole pixels"),
        ({"border": {"top": 0.5, "bottom": 0.5, "unit": "share"}}, "cover the whole frame"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused_with_the_remedy(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        KeepSpec.model_validate(settings)


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        (KeepSpec(class_thresholds={"trunk": 0.5}), r"keep\.class_thresholds: no class 'trunk'.*did you mean 'truck'"),
        (KeepSpec(coarse=CoarseSpec(labels="x", classes=("buss",))), r"keep\.coarse\.classes: no class 'buss'.*'bus'"),
    ],
)
def test_a_class_that_the_teacher_does_not_have_is_refused_with_the_nearest(keep: KeepSpec, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        keep.check(SPACE)


def test_the_published_border_of_cityscapes_keeps_rows_15_to_840_and_columns_14_to_2030() -> None:
    border = BorderSpec(top=15, bottom=184, left=14, right=18)
    assert border.inside(1024, 2048) == (slice(15, 840), slice(14, 2030))
    share = BorderSpec(top=15 / 1024, bottom=184 / 1024, left=14 / 2048, right=18 / 2048, unit="share")
    assert share.inside(1024, 2048) == (slice(15, 840), slice(14, 2030))
    assert share.inside(512, 1024) == (slice(8, 420), slice(7, 1015))


def test_margins_larger_than_the_frame_leave_nothing() -> None:
    found = np.zeros((4, 4), np.uint8)
    rule = KeepRule(KeepSpec(border=BorderSpec(top=3, bottom=3)), SPACE)
    assert (rule.apply(found, np.full((4, 4), 20, np.uint8)).label == VOID).all()
