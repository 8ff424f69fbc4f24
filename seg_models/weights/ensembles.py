"""Named ensembles of classifiers."""

from __future__ import annotations

from collections.abc import Callable

from seg_models.spec import did_you_mean
from seg_models.weights.classifiers import ClassifierSpec, lite_ensemble, paper_ensemble
from seg_models.weights.collected import collected_ensemble

PRESETS: dict[str, Callable[[], tuple[ClassifierSpec, ...]]] = {
    "efficientnet_lite": lite_ensemble,
    "timm15": paper_ensemble,
}

COLLECTED = "collected:"


def named_ensemble(name: str) -> tuple[ClassifierSpec, ...]:
    """The classifiers of a preset: `efficientnet_lite`, `timm15`, or `collected:FOLDER`.

    Raises:
        ValueError: no preset of that name.
    """
    if name.startswith(COLLECTED):
        return collected_ensemble(name.removeprefix(COLLECTED))
    if name not in PRESETS:
        known = ", ".join([*PRESETS, f"{COLLECTED}FOLDER"])
        raise ValueError(f"unknown ensemble {name!r}{did_you_mean(name, PRESETS)}; known: {known}")
    return PRESETS[name]()
