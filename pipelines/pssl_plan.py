"""What pseudo-labels are made from, fixed before the first shard: settings, ensemble, weights, numerics.

Floating-point results depend on threads, kernels and chunk sizes, so all of them are part of the label plan. Under one
plan on one kind of CPU, labels are equal bytes, whatever the number of actors, their order or retries.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any, Literal

import timm
import torch
from pydantic import ValidationError

from pipelines import machine, storage
from pipelines.labels import LabelSpace
from pipelines.pssl_spec import PsslSpec
from seg_models.ensemble import Ensemble
from seg_models.memory import keep_freed_memory
from seg_models.numerics import Numerics
from seg_models.probe import fastest_numerics
from seg_models.spec import Spec
from seg_models.weights.classifiers import Classifier, ClassifierSpec, build_classifier
from seg_models.weights.files import file_sha256, resolve_weights

Device = Literal["cpu", "cuda"]

PLANNED = {"explainer", "normalise", "smoothing", "resize", "top_deciles", "above_otsu", "seed"}
"""Settings of a job that decide its labels; how classifiers are computed stands beside each of them."""


class ClassifierPlan(Spec):
    """One classifier as it is used, wherever its weights lie."""

    settings: dict[str, Any]
    """The ClassifierSpec without the address of the weights and the numerics."""
    weights_sha256: str
    numerics: Numerics


class LabelPlan(Spec):
    """Everything that decides the bytes of a pseudo-label set."""

    kind: Literal["pssl"] = "pssl"
    settings: dict[str, Any]
    """Explainer, normalisation, resizing, deciles, Otsu's threshold and seed."""
    classifiers: tuple[ClassifierPlan, ...]
    threads: int
    device: Device
    instruction_set: str | None
    """Of the CPU, as torch names it; None on a GPU."""
    torch: str
    timm: str
    images: str
    """Fingerprint of the image table."""


def make_plan(
    spec: PsslSpec,
    classifiers: tuple[ClassifierSpec, ...],
    *,
    images: str,
    device: Device = "cpu",
    earlier: Mapping[str, Any] | None = None,
) -> LabelPlan:
    """Fix the plan on this machine.

    Args:
        classifiers: with weights in reach of this machine, see `local_weights`.
        images: fingerprint of the image table.
        earlier: plan that the label set follows already; what was probed for it is not probed again.

    Raises:
        ValueError: weights are missing or hash to something else.
    """
    probed = _probed(earlier) if spec.numerics == "probe" else {}
    torch.set_num_threads(spec.threads)
    return LabelPlan(
        settings=spec.model_dump(mode="json", include=PLANNED),
        classifiers=tuple(_plan_of(classifier, spec, probed=probed, device=device) for classifier in classifiers),
        threads=spec.threads,
        device=device,
        instruction_set=machine.instruction_set(device),
        torch=str(torch.__version__),
        timm=timm.__version__,
        images=images,
    )


def _plan_of(
    classifier: ClassifierSpec, spec: PsslSpec, *, probed: Mapping[str, Numerics], device: Device
) -> ClassifierPlan:
    path = resolve_weights(classifier.weights_ref, sha256=classifier.weights_sha256)
    sha256 = file_sha256(path)
    settings = classifier.model_dump(mode="json", exclude={"weights", "weights_sha256", "title", "numerics"})
    numerics = classifier.numerics or spec.numerics
    if numerics == "probe":
        numerics = probed.get(_key(settings, sha256)) or _probe(classifier, device=device)
    return ClassifierPlan(settings=settings, weights_sha256=sha256, numerics=numerics)


def _probed(earlier: Mapping[str, Any] | None) -> dict[str, Numerics]:
    """What an earlier plan found for each classifier; nothing where it is another version's."""
    try:
        plans = LabelPlan.model_validate(earlier).classifiers
    except ValidationError:
        return {}
    return {_key(plan.settings, plan.weights_sha256): plan.numerics for plan in plans}


def _key(settings: Mapping[str, Any], sha256: str) -> str:
    return json.dumps([settings, sha256], sort_keys=True)


def _probe(classifier: ClassifierSpec, *, device: Device) -> Numerics:
    """Time a classifier here.

    Raises:
        ValueError: this machine has not the device that the workers will have.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            "pssl.numerics = 'probe' measures on the machine that starts the job, which has no GPU: start it on a "
            "GPU machine, or give the numerics (dtype, channels_last, chunk, …)"
        )
    keep_freed_memory()
    torch.backends.cudnn.allow_tf32 = False
    return fastest_numerics(build_classifier(classifier).network, classifier, device=device)


def local_weights(classifiers: tuple[ClassifierSpec, ...]) -> tuple[ClassifierSpec, ...]:
    """The same classifiers with weights of object stores copied to this machine.

    Raises:
        ValueError: an object is missing.
    """
    return tuple(_local(classifier) for classifier in classifiers)


def _local(classifier: ClassifierSpec) -> ClassifierSpec:
    if classifier.weights is None or not storage.is_remote(classifier.weights):
        return classifier
    return classifier.model_copy(update={"weights": str(storage.local_copy(classifier.weights))})


def check_machine(plan: LabelPlan) -> None:
    """Refuse a machine whose results would differ from the plan's.

    Raises:
        ValueError: another torch or timm, another instruction set where the CPU computes, too few CPUs, or no GPU; all
            are listed.
    """
    problems = []
    if timm.__version__ != plan.timm:
        problems.append(f"timm is {timm.__version__}, the plan says {plan.timm}")
    if (os.cpu_count() or 1) < plan.threads:
        problems.append(f"{os.cpu_count()} CPUs, the plan says {plan.threads} threads")
    machine.check_machine(plan, also=problems)


def build_ensemble(plan: LabelPlan, classifiers: tuple[ClassifierSpec, ...]) -> Ensemble:
    """The ensemble as planned, on this machine; threads must be set before.

    Raises:
        ValueError: weights that are missing here or differ from the plan's.
    """
    keep_freed_memory()
    torch.backends.cudnn.allow_tf32 = False  # else float32 is none on a GPU
    settings = PsslSpec.model_validate(plan.settings)
    pairs = zip(local_weights(classifiers), plan.classifiers, strict=True)
    built = [_as_planned(classifier, planned) for classifier, planned in pairs]
    return Ensemble(
        built,
        explainer=settings.explainer,
        normalise=settings.normalise,
        smoothing=settings.smoothing,
        resize=settings.resize,
        seed=settings.seed,
        device=plan.device,
    )


def _as_planned(classifier: ClassifierSpec, planned: ClassifierPlan) -> Classifier:
    """A classifier with the planned numerics and weights, which lie where its settings say."""
    path = resolve_weights(classifier.weights_ref, sha256=classifier.weights_sha256)
    found = file_sha256(path)
    if found != planned.weights_sha256:
        raise ValueError(f"{path}: its SHA-256 is {found}, the label plan says {planned.weights_sha256}")
    return build_classifier(classifier, numerics=planned.numerics)


def pssl_label_space(space: LabelSpace) -> LabelSpace:
    """Classes of the pseudo-labels of a dataset: its own, and a background class at the end where it has none."""
    if space.background is not None:
        return space
    names = (*space.names, "background")
    return LabelSpace(
        names=names,
        colors=(*space.colors, (0, 0, 0)),
        background=space.num_classes,
        mirror_pairs=space.mirror_pairs,
    )


def target_index(class_index: int, *, space: LabelSpace, num_scores: int) -> int:
    """Which of a classifier's `num_scores` scores belongs to a class index of the pseudo-labels' space.

    A classifier scores either every class of the space, or every class but the background, in their order.

    Raises:
        ValueError: the class is the background or no class at all.
    """
    if not 0 <= class_index < space.num_classes or class_index == space.background:
        raise ValueError(f"class {class_index} is no image-level class of the dataset")
    skips = num_scores < space.num_classes and space.background is not None and class_index > space.background
    return class_index - 1 if skips else class_index


def check_scores(classifiers: tuple[ClassifierSpec, ...], *, space: LabelSpace) -> None:
    """Make sure that every classifier scores the classes of a dataset (its own space, before a background is added).

    Raises:
        ValueError: a classifier has another number of scores than the dataset has classes, or than the others.
    """
    allowed = (space.num_classes,) if space.background is None else (space.num_classes - 1, space.num_classes)
    for classifier in classifiers:
        if classifier.num_classes not in allowed:
            raise ValueError(
                f"classifier {classifier.label!r} scores {classifier.num_classes} classes, the dataset has "
                f"{allowed[0]} image-level classes: the classifiers must be trained on the dataset's class list"
            )
    if len({classifier.num_classes for classifier in classifiers}) > 1:
        raise ValueError("some classifiers of the ensemble score the background and others do not: use one kind")
