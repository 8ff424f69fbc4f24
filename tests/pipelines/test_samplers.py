"""What an epoch holds: repeat factors and class-uniform sampling against slow references, phases, errors."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.class_uniform import ClassUniform, per_class
from pipelines.labels import LabelSpace
from pipelines.samplers import ONE, Repeated, Sampler, permutation, repeat_factors
from pipelines.samples import Centroids, Part, PartSummary, SampleIndex, ShardRows
from pipelines.sampling import make_order, plan_phases
from pipelines.schema import ShardKey
from pipelines.sources.cityscapes import CityscapesSource
from seg_models.recipes import resolve_recipe
from seg_models.recipes.sampling import ClassUniformSpec, PartRule, SamplingSpec

NAMES = ("road", "car", "bus", "train")
SPACE = LabelSpace(names=NAMES)
Entry = tuple[int, int, tuple[int, int] | None]
"""Shard, row, centroid."""


def index_of(
    *parts: list[list[int]], rows: list[tuple[int, int, int, int, int]] | None = None, **changes: Any
) -> SampleIndex:
    """An index of parts, each a list of the usable rows of its shards; `rows` are centroids."""
    names = changes.pop("names", [None] * len(parts))
    weights = changes.pop("weights", [None] * len(parts))
    summaries = tuple(
        PartSummary(Part(dataset=f"d{n}", name=name, weight=weight), 0, sum(map(len, part)), 0, "")
        for n, (part, name, weight) in enumerate(zip(parts, names, weights, strict=True))
    )
    shards = tuple(
        ShardRows(n, ShardKey("train", i), np.array(of_shard, np.int32), ("", ""), ("", ""))
        for n, part in enumerate(parts)
        for i, of_shard in enumerate(part)
    )
    return SampleIndex(SPACE, summaries, shards, centroids=None if rows is None else centroids_of(rows), **changes)


def centroids_of(rows: list[tuple[int, int, int, int, int]]) -> Centroids:
    """From (shard, row, class, y, x)."""
    return Centroids(*np.array(sorted(rows, key=lambda row: row[:2]), np.int32).reshape(-1, 5).T.copy())


def entries(sampler: Sampler, epoch: int) -> list[tuple[Entry, int]]:
    """All samples of an epoch, with how often the row came before."""
    found = []
    for shard, size in enumerate(sampler.sizes(epoch)):
        for place in range(size):
            drawn = sampler.row(epoch, shard, place)
            found.append(((shard, drawn.row, drawn.centroid), drawn.repeat))
    return found


# -- repeat factors ------------------------------------------------------------------------------------------------

HOLDS = st.lists(st.sets(st.integers(0, 3), min_size=1), min_size=2, max_size=25)


@settings(max_examples=60, deadline=None)
@given(holds=HOLDS, threshold=st.sampled_from([0.05, 0.3, 0.9]))
def test_factors_are_those_of_the_rarest_class_of_an_image(holds: list[set[int]], threshold: float) -> None:
    half = len(holds) // 2
    index = index_of([list(range(0, 2 * half, 2)), list(range(1, len(holds) - half + 1))])
    addresses = [*((0, 2 * i) for i in range(half)), *((1, i + 1) for i in range(len(holds) - half))]
    rows = [(*at, c, 0, 0) for at, classes in zip(addresses, holds, strict=True) for c in sorted(classes)]
    factors = repeat_factors(index, centroids_of(rows), threshold=threshold)
    frequency = {c: sum(c in classes for classes in holds) / len(holds) for c in range(4)}
    expected = [max(max(1.0, math.sqrt(threshold / frequency[c])) for c in classes) for classes in holds]
    assert [len(of_shard) for of_shard in factors] == [half, len(holds) - half]
    assert np.concatenate(factors) / ONE == pytest.approx(expected, abs=1e-7)


@settings(max_examples=40, deadline=None)
@given(factors=st.lists(st.floats(1, 5), min_size=1, max_size=30), cut=st.integers(1, 29), seed=st.integers(0, 99))
def test_a_row_comes_as_often_as_its_factor_says_and_epochs_are_equally_long(
    factors: list[float], cut: int, seed: int
) -> None:
    whole = np.array([round(factor * ONE) for factor in factors])
    split = [part for part in np.split(whole, [cut]) if len(part)]
    index = index_of([[3 * row for row in range(len(part))] for part in split])
    sampler = Repeated(index.shards, factors=split, key=(seed,))
    assert sampler.length == math.floor(sum(int(f) % ONE for f in whole) / ONE) + sum(int(f) // ONE for f in whole)
    total: Counter[Entry] = Counter()
    for epoch in range(12):
        drawn = entries(sampler, epoch)
        assert len(drawn) == sampler.length
        counts = Counter(entry for entry, _ in drawn)
        assert counts == slow_repeats(split, key=(seed, epoch, 2))
        for entry, count in counts.items():
            assert sorted(repeat for other, repeat in drawn if other == entry) == list(range(count))
        total += counts
    for number, factor in enumerate(factors):
        shard, row = (0, number) if number < len(split[0]) else (1, number - len(split[0]))
        assert math.floor(factor) * 12 <= total[shard, 3 * row, None] <= math.ceil(factor) * 12


def slow_repeats(factors: list[np.ndarray[Any, Any]], *, key: tuple[int, ...]) -> Counter[Entry]:
    flat = [(shard, 3 * row, int(f)) for shard, part in enumerate(factors) for row, f in enumerate(part)]
    found: Counter[Entry] = Counter()
    carried = 0
    for number in permutation(len(flat), *key):
        shard, row, factor = flat[number]
        carried += factor % ONE
        found[shard, row, None] = factor // ONE + carried // ONE
        carried %= ONE
    return found


def test_fractions_are_honoured_over_many_epochs() -> None:
    factors = np.repeat([ONE, ONE * 3 // 2, ONE * 9 // 4], (5, 10, 20))
    sampler = Repeated(index_of([list(range(35))]).shards, factors=[factors], key=(0,))
    assert sampler.length == 5 + 15 + 45
    counts = Counter(entry[1] for epoch in range(200) for entry, _ in entries(sampler, epoch))
    for row, factor in enumerate(factors / ONE):
        assert counts[row] / 200 == pytest.approx(factor, abs=0.15)


# -- class-uniform sampling ----------------------------------------------------------------------------------------

CENTROID_ROWS = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 5), st.integers(0, 2), st.integers(0, 99), st.integers(0, 99)),
    min_size=1,
    max_size=40,
)


@settings(max_examples=60, deadline=None)
@given(rows=CENTROID_ROWS, share=st.sampled_from([0.25, 0.5, 1.0]), seed=st.integers(0, 99))
def test_an_epoch_equals_the_slow_reference(
    rows: list[tuple[int, int, int, int, int]], share: float, seed: int
) -> None:
    index = index_of([list(range(6))] * 3, rows=rows)
    assert index.centroids is not None
    table = index.centroids
    lists = [np.flatnonzero(table.class_index == number) for number in range(4)]
    sampler = ClassUniform(index.shards, images=[0, 1, 2], centroids=table, lists=lists, share=share, key=(seed, 0, 0))
    assert sampler.length == 18
    for epoch in range(3):
        drawn = entries(sampler, epoch)
        assert Counter(entry for entry, _ in drawn) == slow_epoch(table, share=share, key=(seed, 0, 0, epoch))
        repeats = defaultdict(list)
        for (shard, row, _), repeat in drawn:
            repeats[shard, row].append(repeat)
        assert all(sorted(of_row) == list(range(len(of_row))) for of_row in repeats.values())


def slow_epoch(table: Centroids, *, share: float, key: tuple[int, ...]) -> Counter[Entry]:
    """Sheet, section 6.1: m = floor(share n / K) by shuffled cycling for each class, the rest images likewise."""
    images: list[Entry] = [(shard, row, None) for shard in range(3) for row in range(6)]
    m = math.floor(share * len(images) / len(NAMES))
    epoch: list[Entry] = []
    for class_index in range(len(NAMES)):
        of_class = [
            (int(table.shard[i]), int(table.row[i]), (int(table.y[i]), int(table.x[i])))
            for i in range(len(table))
            if table.class_index[i] == class_index
        ]
        shuffled = [of_class[i] for i in permutation(len(of_class), *key, 3 + class_index)]
        epoch += [shuffled[i % len(shuffled)] for i in range(m)] if shuffled else []
    shuffled_images = [images[i] for i in permutation(len(images), *key, 2)]
    return Counter(epoch + shuffled_images[: len(images) - len(epoch)])


def test_every_class_is_drawn_equally_often_however_rare_it_is() -> None:
    rows = [(i % 2, i // 2, 0, i, i) for i in range(40)] + [(0, 3, 3, 7, 7)]
    index = index_of([list(range(20))] * 2, rows=rows)
    order = make_order(uniform(share=0.4), index, steps=30, global_batch=8, lanes=8, seed=0)
    for epoch in range(3):
        samples = [order.sample(g) for g in range(40 * epoch, 40 * epoch + 40)]
        drawn = Counter(sample.centroid == (7, 7) and sample.row == 3 for sample in samples if sample.centroid)
        assert drawn == {True: 4, False: 4}  # floor(0.4 * 40 / 4) of each class that has a centroid
        rare = [sample for sample in samples if sample.row == 3 and sample.key.shard == 0]
        assert sorted(sample.repeat for sample in rare) == list(range(len(rare)))


def uniform(**changes: Any) -> SamplingSpec:
    return SamplingSpec(class_uniform=ClassUniformSpec(**changes))


@pytest.mark.parametrize(
    ("length", "share", "num_classes", "expected"), [(2975, 0.5, 19, 78), (18_000, 0.5, 65, 138), (10, 0.3, 3, 1)]
)
def test_the_number_of_crops_of_a_class_is_rounded_down(
    length: int, share: float, num_classes: int, expected: int
) -> None:
    assert per_class(length, share=share, num_classes=num_classes) == expected


def test_a_share_too_small_for_one_sample_of_each_class_is_refused() -> None:
    with pytest.raises(ValueError, match=r"share = 0\.5 takes no effect: an epoch of 6 samples .* 4 classes"):
        order_of(uniform(), index_of([list(range(6))], rows=[(0, 0, 0, 1, 1)]))


def test_labels_smaller_than_a_tile_are_told() -> None:
    with pytest.raises(ValueError, match="no label holds a class in a whole tile; choose a `tile`"):
        order_of(uniform(), index_of([list(range(16))], rows=[]))


def order_of(spec: SamplingSpec, index: SampleIndex, **changes: Any) -> Any:
    return make_order(spec, index, **{"steps": 20, "global_batch": 4, "lanes": 4, "seed": 0, **changes})


# -- phases --------------------------------------------------------------------------------------------------------


def test_auto_labels_are_drawn_around_centroids_of_their_classes_until_their_phase_ends() -> None:
    spec = SamplingSpec(
        class_uniform=ClassUniformSpec(),
        parts=(PartRule(part="auto", centroids_of=("bus", "train"), until=0.5),),
    )
    rows = [(0, i, i % 3, i, i) for i in range(16)] + [(1, i, c, 50 + c, i) for i in range(30) for c in range(4)]
    index = index_of([list(range(16))], [list(range(30))], names=["fine", "auto"], rows=rows)
    order = order_of(spec, index, steps=40, seed=5)
    first, second = ([order.samples(step, global_batch=4) for step in steps] for steps in (range(20), range(20, 40)))
    auto = [sample for step in first for sample in step if sample.part == 1]
    assert auto
    assert {sample.centroid[0] for sample in auto if sample.centroid} == {52, 53}
    assert all(sample.centroid is not None for sample in auto)
    assert {(sample.part, sample.phase) for step in second for sample in step} == {(0, 1)}
    assert any(sample.centroid for step in second for sample in step)
    of_epoch = [order.sample(g) for g in range(16)]  # as long as the fine labels have images
    assert {sample.epoch for sample in of_epoch} == {0}
    assert order.sample(16).epoch == 1
    of_train = [sample for sample in of_epoch if sample.centroid and sample.centroid[0] == 53]
    assert len(of_train) == 2  # floor(0.5 * 16 / 4)


def test_hmsas_recipe_leaves_auto_labels_out_after_epoch_150() -> None:
    recipe = resolve_recipe("hmsa_w48_cityscapes_autolabels")
    parts = [Part(dataset="d"), Part(dataset="d", labels="teacher", name="autolabels")]
    space = CityscapesSource(root="nowhere").label_space()
    first, second = plan_phases(recipe.sampling, parts, space=space, steps=recipe.steps)
    assert recipe.steps * recipe.global_batch / 2975 == pytest.approx(175, abs=0.01)
    assert first.end == second.first == pytest.approx(150 * 2975 / 16, abs=1)
    ((part, classes),) = first.streams[0].around
    assert (part, classes) == (1, (3, 4, 6, 7, 9, *range(11, 19)))
    assert (second.streams[0].images, second.streams[0].around) == ((0,), ())
    assert second.class_uniform is not None


def test_class_uniform_sampling_may_end_before_the_run() -> None:
    rows = [(0, i, i % 4, i, i) for i in range(16)]
    order = order_of(uniform(until=0.25), index_of([list(range(16))], rows=rows))
    steps = [order.samples(step, global_batch=4) for step in range(20)]
    assert any(sample.centroid for step in steps[:5] for sample in step)
    assert not any(sample.centroid for step in steps[5:] for sample in step)
    assert Counter(sample.row for step in steps[5:9] for sample in step) == Counter(range(16))


def test_weights_give_parts_their_shares_and_rules_end_them() -> None:
    spec = SamplingSpec(parts=(PartRule(part="extra", until=0.5),))
    index = index_of([list(range(9))], [list(range(50))], names=["own", "extra"], weights=[1.0, 3.0])
    order = order_of(spec, index, steps=40)
    drawn = [Counter(sample.part for sample in order.samples(step, global_batch=4)) for step in range(40)]
    assert all(step == {0: 1, 1: 3} for step in drawn[:20])
    assert all(step == {0: 4} for step in drawn[20:])


@pytest.mark.parametrize(
    ("spec", "changes", "message"),
    [
        (
            SamplingSpec(parts=(PartRule(part="otto", until=0.5),)),
            {"names": ["fine", "auto"]},
            r"no part of the data has the name 'otto' \(did you mean 'auto'\?\); names given in .*: fine, auto",
        ),
        (
            SamplingSpec(
                class_uniform=ClassUniformSpec(), parts=(PartRule(part="auto", centroids_of=("rode",), until=0.5),)
            ),
            {"names": ["fine", "auto"]},
            r"'auto': centroids_of: no class 'rode' \(did you mean 'road'\?\); classes: road, car",
        ),
        (SamplingSpec(), {"weights": [1.0, None]}, r"data\.1\.weight: is needed where another part has one"),
        (SamplingSpec(), {"names": ["a", "a"]}, "two parts have the name 'a'"),
        (
            SamplingSpec(parts=(PartRule(part="a", until=0.5), PartRule(part="b", until=0.5))),
            {"names": ["a", "b"]},
            "from step 10 on no part of the data is left",
        ),
        (
            SamplingSpec(class_uniform=ClassUniformSpec(), parts=(PartRule(part="b", centroids_of=("car",)),)),
            {"names": ["a", "b"], "weights": [1.0, 1.0]},
            "part 'b' is drawn only around centroids, which does not go with weights",
        ),
    ],
)
def test_what_takes_no_effect_or_does_not_exist_is_refused(
    spec: SamplingSpec, changes: dict[str, Any], message: str
) -> None:
    index = index_of([[0]], [[0]], **changes)
    with pytest.raises(ValueError, match=message):
        plan_phases(spec, [summary.part for summary in index.parts], space=SPACE, steps=20)


def test_the_weight_of_a_single_part_is_refused() -> None:
    with pytest.raises(ValueError, match=r"data\.0\.weight = 2\.0 takes no effect"):
        plan_phases(SamplingSpec(), [Part(dataset="d", weight=2.0)], space=SPACE, steps=20)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"parts": [{"part": "a"}]}, "the rule for part 'a' takes no effect"),
        ({"parts": [{"part": "a", "centroids_of": ["car"]}]}, "takes no effect without class_uniform"),
        ({"class_uniform": {}, "repeat_threshold": 0.1}, "repeat_threshold takes no effect"),
        ({"parts": [{"part": "a", "until": 0.5}, {"part": "a", "until": 0.6}]}, "names a part twice"),
        (
            {"class_uniform": {"until": 0.5}, "parts": [{"part": "a", "centroids_of": ["car"]}]},
            r"until = 1\.0 is past class_uniform\.until = 0\.5",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SamplingSpec.model_validate(settings)
