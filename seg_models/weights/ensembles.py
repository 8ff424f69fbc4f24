"""Named ensembles of classifiers."""

from __future__ import annotations

from collections.abc import Callable

from seg_models.spec import did_you_mean
from seg_models.weights.classifiers import ClassifierSpec, lite_ensemble
from seg_models.weights.collected import collected_ensemble
from seg_models.weights.timm15 import timm15_ensemble

PRESETS: dict[str, Callable[[], tuple[ClassifierSpec, ...]]] = {
    "efficientnet_lite": lite_ensemble,
    "timm15": timm15_ensemble,
}

# Ensembles whose files lie in a folder of the user's: `name:FOLDER`.
FROM_FOLDER: dict[str, Callable[[str], tuple[ClassifierSpec, ...]]] = {
    "collected": collected_ensemble,
    "timm15": timm15_ensemble,
}


def named_ensemble(name: str) -> tuple[ClassifierSpec, ...]:
    """The classifiers of a preset: `efficientnet_lite`, `timm15`, `timm15:FOLDER` or `collected:FOLDER`.

    Raises:
        ValueError: no preset of that name, or no folder where one is needed.
    """
    kind, folder = split_folder(name)
    if folder is not None:
        return FROM_FOLDER[kind](folder)
    if name not in PRESETS:
        known = [*PRESETS, *(f"{each}:FOLDER" for each in FROM_FOLDER)]
        nearest = did_you_mean(f"{name.partition(':')[0]}:FOLDER" if ":" in name else name, known)
        raise ValueError(f"unknown ensemble {name!r}{nearest}; known: {', '.join(known)}")
    return PRESETS[name]()


def split_folder(name: str) -> tuple[str, str | None]:
    """The kind of ensemble and the folder in `kind:FOLDER`; None where the name holds no folder."""
    kind, colon, folder = name.partition(":")
    return (kind, folder) if colon and folder and kind in FROM_FOLDER else (name, None)
