"""From a recipe's sampling settings and the parts of the data to the phases of a run.

A phase lasts as long as the same parts are drawn in the same way. Parts with weights are streams of their own, mixed
in these shares; without weights all parts are one stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pipelines.class_uniform import ClassUniform
from pipelines.crops import class_indices
from pipelines.labels import LabelSpace
from pipelines.mixing import Mix
from pipelines.order import Phase, SampleOrder
from pipelines.samplers import EveryRow, Repeated, Sampler
from pipelines.samples import Centroids, Part, SampleIndex
from seg_models.recipes.sampling import ClassUniformSpec, PartRule, SamplingSpec
from seg_models.spec import did_you_mean


@dataclass(frozen=True)
class StreamPlan:
    """What one stream of a phase draws from."""

    images: tuple[int, ...]
    """Parts whose rows are drawn."""
    around: tuple[tuple[int, tuple[int, ...]], ...] = ()
    """Parts that are drawn only around centroids, with the classes."""
    weight: float = 1.0


@dataclass(frozen=True)
class PhasePlan:
    """Steps from `first` up to `end`, in which the same is drawn."""

    first: int
    end: int
    streams: tuple[StreamPlan, ...]
    class_uniform: ClassUniformSpec | None
    repeats: bool
    """Whether rows come as often as their repeat factors say."""


def plan_phases(spec: SamplingSpec, parts: Sequence[Part], *, space: LabelSpace, steps: int) -> tuple[PhasePlan, ...]:
    """The phases of a run, from settings and names alone.

    Raises:
        ValueError: a rule for a part or class that does not exist, a weight or rule without effect, a phase with
            nothing to draw.
    """
    _check_names(spec, parts)
    _check_weights(spec, parts)
    starts = sorted({0, *(end for until in _ends(spec) if (end := _step(until, steps)) < steps)})
    pairs = zip(starts, [*starts[1:], steps], strict=True)
    return tuple(_phase(spec, parts, space=space, steps=steps, start=start, end=end) for start, end in pairs)


def _phase(
    spec: SamplingSpec, parts: Sequence[Part], *, space: LabelSpace, steps: int, start: int, end: int
) -> PhasePlan:
    rules = {rule.part: rule for rule in spec.parts}
    images, around = [], []
    for number, part in enumerate(parts):
        rule = rules.get(part.name or "")
        if rule is not None and start >= _step(rule.until, steps):
            continue
        if rule is not None and rule.centroids_of:
            around.append((number, class_indices(rule.centroids_of, space, key=_key(rule))))
        else:
            images.append(number)
    if not images:
        raise ValueError(f"recipe.sampling.parts: from step {start} on no part of the data is left to draw from")
    uniform = spec.class_uniform
    if uniform is not None and start >= _step(uniform.until, steps):
        uniform = None
    repeats = spec.repeat_threshold is not None and uniform is None
    return PhasePlan(start, end, _streams(parts, images, around), uniform, repeats)


def _ends(spec: SamplingSpec) -> list[float]:
    """The shares of the run at which something ends."""
    uniform = [] if spec.class_uniform is None else [spec.class_uniform.until]
    return [*uniform, *(rule.until for rule in spec.parts)]


def _step(until: float, steps: int) -> int:
    return max(1, round(until * steps))


def _streams(
    parts: Sequence[Part], images: Sequence[int], around: Sequence[tuple[int, tuple[int, ...]]]
) -> tuple[StreamPlan, ...]:
    weights = {n: weight for n in images if (weight := parts[n].weight) is not None}
    if not weights:
        return (StreamPlan(tuple(images), tuple(around)),)
    return tuple(StreamPlan((n,), weight=weight) for n, weight in weights.items())


def _key(rule: PartRule) -> str:
    return f"recipe.sampling.parts: {rule.part!r}: centroids_of"


def _check_names(spec: SamplingSpec, parts: Sequence[Part]) -> None:
    names = [part.name for part in parts if part.name is not None]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"data: two parts have the name {twice!r}")
    for name in (rule.part for rule in spec.parts):
        if name not in names:
            hint, listed = did_you_mean(name, names), ", ".join(names) or "none"
            raise ValueError(
                f"recipe.sampling.parts: no part of the data has the name {name!r}{hint}; names given in "
                f"[[data]]: {listed}"
            )


def _check_weights(spec: SamplingSpec, parts: Sequence[Part]) -> None:
    """Refuse weights that do not say what share a part has."""
    weighted = [number for number, part in enumerate(parts) if part.weight is not None]
    only_around = {rule.part for rule in spec.parts if rule.centroids_of}
    if not weighted:
        return
    for number, part in enumerate(parts):
        if part.name in only_around:
            raise ValueError(
                f"data.{number}: part {part.name!r} is drawn only around centroids, which does not go with weights"
            )
        if part.weight is None:
            raise ValueError(f"data.{number}.weight: is needed where another part has one (data.{weighted[0]}.weight)")
    if len(parts) == 1:
        raise ValueError(f"data.0.weight = {parts[0].weight} takes no effect: there is no other part")


def epoch_samples(spec: SamplingSpec, index: SampleIndex, *, steps: int) -> int:
    """Samples of an epoch of the run's first phase; of weighted parts, an epoch of each."""
    plan = plan_phases(spec, [summary.part for summary in index.parts], space=index.label_space, steps=steps)[0]
    images = {part for stream in plan.streams for part in stream.images}
    if plan.repeats:
        return sum(_sampler(plan, stream, index, key=()).length for stream in plan.streams)
    return sum(len(shard.rows) for shard in index.shards if shard.part in images)


# -- order ---------------------------------------------------------------------------------------------------------


def make_order(
    spec: SamplingSpec, index: SampleIndex, *, steps: int, global_batch: int, lanes: int, seed: int
) -> SampleOrder:
    """The order of samples of a run.

    Args:
        index: with `centroids` and `repeats` where the settings need them (centroids.py).

    Raises:
        ValueError: as `plan_phases`; nothing to draw by class.
    """
    plans = plan_phases(spec, [summary.part for summary in index.parts], space=index.label_space, steps=steps)
    phases = [
        Phase(
            plan.first * global_batch,
            tuple(_sampler(plan, stream, index, key=(seed, n, place)) for place, stream in enumerate(plan.streams)),
            Mix.of([stream.weight for stream in plan.streams]),
        )
        for n, plan in enumerate(plans)
    ]
    return SampleOrder(index, lanes=lanes, seed=seed, phases=phases)


def _sampler(plan: PhasePlan, stream: StreamPlan, index: SampleIndex, *, key: tuple[int, ...]) -> Sampler:
    used = {*stream.images, *(part for part, _ in stream.around)}
    places = [place for place, shard in enumerate(index.shards) if shard.part in used]
    shards = tuple(index.shards[place] for place in places)
    if plan.class_uniform is not None:
        assert index.centroids is not None, "centroids are found before the order is made"
        here = _of_shards(index.centroids, places)
        images = [place for place, shard in enumerate(shards) if shard.part in stream.images]
        return ClassUniform(
            shards,
            images=images,
            centroids=here,
            lists=_lists(here, [shard.part for shard in shards], stream, num_classes=index.label_space.num_classes),
            share=plan.class_uniform.share,
            key=key,
        )
    if plan.repeats:
        assert index.repeats is not None, "repeat factors are found before the order is made"
        return Repeated(shards, factors=[index.repeats[place] for place in places], key=key)
    return EveryRow(shards)


def _of_shards(centroids: Centroids, places: Sequence[int]) -> Centroids:
    """The centroids of some shards, which count as 0, 1, 2, …"""
    chosen = np.isin(centroids.shard, places)
    kept = {name: getattr(centroids, name)[chosen] for name in ("row", "class_index", "y", "x")}
    return replace(centroids, shard=np.searchsorted(places, centroids.shard[chosen]).astype(np.int32), **kept)


def _lists(
    centroids: Centroids, part_of: Sequence[int], stream: StreamPlan, *, num_classes: int
) -> list[NDArray[np.int64]]:
    """For each class the places of its centroids that the stream may draw."""
    parts = np.array(part_of)[centroids.shard]
    allowed = np.isin(parts, stream.images)
    for part, classes in stream.around:
        allowed |= (parts == part) & np.isin(centroids.class_index, classes)
    return [np.flatnonzero(allowed & (centroids.class_index == number)) for number in range(num_classes)]
