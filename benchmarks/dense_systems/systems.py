"""One small preset of every architecture, chosen by what it has and costs, not by name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from seg_models import describe_model
from seg_models.backbones.timm_backbone import BackboneSpec, backbones_of
from seg_models.recipes.shared import LITE0, weights_from_package
from seg_models.spec import ModelSpec, Spec, presets

MOST_GMAC = 4.0
"""Multiply-adds (10⁹) of a crop that a small network may take."""


@dataclass(frozen=True)
class System:
    """A network that takes part."""

    arch: str
    preset: str
    spec: ModelSpec
    params: int
    gmac: float


def small_system(arch: str, *, num_classes: int, crop: tuple[int, int]) -> System:
    """The cheapest preset on the backbone whose ImageNet weights lie in a package, else the cheapest of all.

    Raises:
        ValueError: that one takes more than `MOST_GMAC`.
    """
    named = {name: spec for name, spec in presets().items() if spec.arch == arch}
    with_weights = {name: spec for name, spec in named.items() if _has_weights(spec)}
    infos = [describe_model(name, num_classes=num_classes, size=crop) for name in with_weights or named]
    cheapest = min(infos, key=lambda info: info.gmac, default=None)
    if cheapest is None:
        raise ValueError(f"{arch} has no preset")
    if cheapest.gmac > MOST_GMAC:
        raise ValueError(
            f"{arch} has no small preset: {cheapest.name} takes {cheapest.gmac:.1f} GMAC for a crop of "
            f"{crop[0]}×{crop[1]}, at most {MOST_GMAC:g} are allowed; add one on {LITE0}"
        )
    return System(arch, cheapest.name, named[cheapest.name], cheapest.params, cheapest.gmac)


def _has_weights(spec: ModelSpec) -> bool:
    return all(backbone.name == LITE0 for backbone in backbones_of(spec))


def weight_flags(spec: Spec, *, key: str = "recipe.model") -> Iterator[str]:
    """Flags of `segray train` that give every backbone, however deep it stands, the weights that lie in a package."""
    for name, value in spec:
        if isinstance(value, BackboneSpec):
            for setting, text in weights_from_package(value).items():
                yield from (f"--{key}.{name}.{setting}", text)
        elif isinstance(value, Spec):
            yield from weight_flags(value, key=f"{key}.{name}")
