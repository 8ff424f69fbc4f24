"""The study's measures, rules and tables on small cases whose answer is plain."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.study.maps import Depth
from benchmarks.study.rules import GUIDED, NUM_CLASSIFIERS, Rule, label_quality, labels_by, quality, rules, scores_by
from benchmarks.study.tables import CHOSEN_ON, held_out, means, paired_tests, passes_for_paper, plot, with_purity


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), size=st.integers(4, 12))
def test_quality_equals_its_definitions(seed: int, size: int) -> None:
    draw = np.random.default_rng(seed)
    scores, mask = draw.random((size, size)), draw.random((size, size)) < 0.4
    mask[0, 0] = True
    found = quality(scores, mask)
    ranked = sorted(range(scores.size), key=lambda pixel: -scores.flat[pixel])
    top, area = ranked[: scores.size // 10], ranked[: int(mask.sum())]
    both = sum(bool(mask.flat[pixel]) for pixel in area)
    at_hits = [
        sum(bool(mask.flat[other]) for other in ranked[: place + 1]) / (place + 1)
        for place, pixel in enumerate(ranked)
        if mask.flat[pixel]
    ]
    assert found["precision"] == pytest.approx(np.mean([mask.flat[pixel] for pixel in top]))
    assert found["iou"] == pytest.approx(both / (2 * len(area) - both))
    assert found["ap"] == pytest.approx(np.mean(at_hits))


def test_otsu_parts_two_groups_whatever_their_share() -> None:
    for share in (0.05, 0.3, 0.6):
        scores = np.random.default_rng(0).normal(0.0, 0.05, (40, 50))
        wanted = np.arange(2000).reshape(40, 50) < 2000 * share
        scores[wanted] += 1.0
        assert np.array_equal(labels_by(scores)["otsu"], wanted)
        assert float(labels_by(scores)["top 2 deciles"].mean()) == pytest.approx(0.2)


def test_scores_are_the_mean_of_the_chosen_maps() -> None:
    kept = {f"logit.1/{number}": np.full((4, 4), 1.0, np.float16) for number in range(NUM_CLASSIFIERS)}
    kept["logit.1/2"] = np.eye(4, dtype=np.float16)
    sums = {f"{key}/sum": np.array(3.0) for key in kept}
    image = torch.zeros(3, 4, 4, dtype=torch.uint8)
    (flat,) = {round(float(value), 12) for value in _scores(Rule(members=(0, 1)), {**kept, **sums}, image).flat}
    assert flat > 0
    spotted = _scores(Rule(members=(0, 2), normalise="none"), {**kept, **sums}, image)
    assert spotted[0, 0] > spotted[0, 3]


def _scores(rule: Rule, kept: dict[str, Any], image: torch.Tensor) -> Any:
    found = scores_by(rule, kept, image)
    assert found is not None
    return found.numpy()


def row(kind: str, photo: int, precision: float, **changes: Any) -> dict[str, Any]:
    passes = NUM_CLASSIFIERS * int(kind.partition(".")[2])
    common = {"axis": "passes", "kind": kind, "normalise": "l1", "smoothing": "none", "models": NUM_CLASSIFIERS}
    measures = {"precision": precision, "iou": precision, "ap": 0.5}
    return common | measures | {"passes": passes, "photo": str(photo)} | changes


def test_passes_and_tests_compare_fast_with_the_deepest_published_score() -> None:
    guided = Rule(smoothing=GUIDED).smoothing_name
    rows = []
    for name in ("ecssd-500", "weizmann-horse-164"):
        for photo in range(12):
            base = 0.5 + photo / 100
            rows += [row("probability.1", photo, base + 0.2, set=name), row("probability.50", photo, base, set=name)]
            rows += [row("logit.1", photo, base - 0.01, set=name, smoothing=guided)]
            rows += [row("logit.4", photo, base + 0.02 + photo / 1000, set=name, smoothing=guided)]
    tables = {"passes": means(rows, axis="passes")}
    found = passes_for_paper(tables)["ecssd-500"]
    assert found["paper"]["passes"] == 700
    assert found["ratio_all_models"] == pytest.approx(700 / 56)  # one sample is not good enough here
    compared = paired_tests(rows)
    assert compared["ecssd-500 logit.4 at 1/12.5 of probability.50"]["iou"]["p"] < 0.01
    assert compared["ecssd-500 logit.1 at 1/50 of probability.50"]["iou"]["p"] > 0.9
    assert len(plot(tables["passes"]).axes) == 4


def test_every_rule_of_the_study_has_its_maps() -> None:
    depth = Depth(probability=(1, 4), logit=(1, 4))
    listed = list(rules(depth.kinds))
    assert {rule.kind for rule in listed} == set(depth.kinds)
    assert len(listed) == len(set(listed))
    assert Depth().key != depth.key


def test_what_is_no_label_is_judged_too() -> None:
    mask = np.zeros((4, 10), bool)
    mask[:2] = True
    chosen = np.zeros_like(mask)
    chosen[0] = True
    chosen[3] = True
    common = {"set": "a", "photo": "1"}
    rows: list[dict[str, Any]] = [
        common | {"axis": "control", "precision": float(mask.mean())},
        common | {"axis": "share"} | label_quality(chosen, mask),
    ]
    assert with_purity(rows)[1]["purity"] == pytest.approx(float((~mask[~chosen]).mean()))


def test_photographs_that_the_rule_was_chosen_on_are_held_out_in_order() -> None:
    rows = [{"set": name, "photo": str(number)} for name in CHOSEN_ON for number in range(45) for _ in range(2)]
    left = [(row["set"], int(row["photo"])) for row in held_out(rows)]
    assert left == [(name, number) for name, most in CHOSEN_ON.items() for number in range(most, 45) for _ in range(2)]
