"""What a run draws from its data, as a dry run and the report tell it."""

from __future__ import annotations

from typing import Any

import numpy as np

from jobs.training.plan import sample_order
from pipelines.class_uniform import ClassUniform, per_class
from pipelines.crops import class_indices
from pipelines.order import Phase, SampleOrder
from pipelines.samplers import ONE, Repeated, Sampler
from pipelines.samples import SampleIndex
from pipelines.sampling import PhasePlan, plan_phases
from seg_models.recipes.recipe import Recipe


def check_sampling(recipe: Recipe, index: SampleIndex) -> tuple[PhasePlan, ...]:
    """The phases of a run, as far as they are known without a look into labels.

    Raises:
        ValueError: settings that name what does not exist, or take no effect.
    """
    space = index.label_space
    class_indices(recipe.augment.crop_around, space, key="recipe.augment.crop_around")
    parts = [summary.part for summary in index.parts]
    phases = plan_phases(recipe.sampling, parts, space=space, steps=recipe.steps)
    for phase in phases:
        for stream in phase.streams if phase.class_uniform is not None else ():
            assert phase.class_uniform is not None
            num_images = sum(index.parts[number].num_samples for number in stream.images)
            per_class(num_images, share=phase.class_uniform.share, num_classes=space.num_classes)
    return phases


def planned_table(recipe: Recipe, index: SampleIndex) -> list[dict[str, Any]]:
    """The phases of a run by settings alone, for a dry run before the labels were looked at."""
    return [
        {
            "steps": [phase.first, phase.end],
            "parts": [
                {"part": _name(index, number), "drawn": _manner(phase, number), "share": None}
                for stream in phase.streams
                for number in (*stream.images, *(part for part, _ in stream.around))
            ],
        }
        for phase in check_sampling(recipe, index)
    ]


def sampling_table(recipe: Recipe, index: SampleIndex) -> list[dict[str, Any]]:
    """The phases of a run with the share of each part, and what classes and repeats make of an epoch.

    Args:
        index: with centroids and repeat factors, where the recipe needs them. Shares are those of the first epoch.
    """
    order = sample_order(recipe, index)
    rows = []
    for plan, phase in zip(check_sampling(recipe, index), order.phases, strict=True):
        rows.append(
            {
                "steps": [plan.first, plan.end],
                "parts": _parts(plan, phase, recipe, order),
                **_classes(phase, index),
                **_repeats(phase),
            }
        )
    return rows


def _parts(plan: PhasePlan, phase: Phase, recipe: Recipe, order: SampleOrder) -> list[dict[str, Any]]:
    samples = (plan.end - plan.first) * recipe.global_batch
    rows = []
    for sampler, share in zip(phase.samplers, phase.mix.shares, strict=True):
        epochs = float(samples * share) / sampler.length
        for number, size in _sizes(sampler).items():
            rows.append(
                {
                    "part": _name(order.index, number),
                    "drawn": _manner(plan, number),
                    "share": round(float(share) * size / sampler.length, 4),
                    "epochs": round(epochs, 3),
                }
            )
    return rows


def _sizes(sampler: Sampler) -> dict[int, int]:
    """Samples of each part in the first epoch."""
    parts = np.array([shard.part for shard in sampler.shards])
    counts = np.bincount(parts, weights=sampler.sizes(0)).astype(int)
    return {int(number): int(counts[number]) for number in np.unique(parts)}


def _classes(phase: Phase, index: SampleIndex) -> dict[str, Any]:
    """For each class its centroids and how many of them an epoch draws, where a phase samples by class."""
    names = index.label_space.names
    found = [
        {
            "class": name,
            "centroids": len(of_class),
            "per_epoch": sampler.per_class if len(of_class) else 0,
        }
        for sampler in phase.samplers
        if isinstance(sampler, ClassUniform)
        for name, of_class in zip(names, sampler.lists, strict=True)
    ]
    return {"classes": found} if found else {}


def _repeats(phase: Phase) -> dict[str, Any]:
    """How much longer repeats make an epoch."""
    found = [
        {
            "rows": len(sampler.factors),
            "repeated_rows": int((sampler.factors > ONE).sum()),
            "largest_factor": round(int(sampler.factors.max()) / ONE, 3),
            "epoch": sampler.length,
        }
        for sampler in phase.samplers
        if isinstance(sampler, Repeated)
    ]
    return {"repeats": found} if found else {}


def _manner(phase: PhasePlan, number: int) -> str:
    """How a phase draws from a part, in words."""
    if any(part == number for stream in phase.streams for part, _ in stream.around):
        return "around centroids only"
    if phase.class_uniform is not None:
        return f"{phase.class_uniform.share:g} by class"
    return "with repeats" if phase.repeats else "every row"


def _name(index: SampleIndex, number: int) -> str:
    part = index.parts[number].part
    return part.name or str(part)
