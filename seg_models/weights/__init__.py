"""Weights of others: where they lie, how they are read, and the classifiers PSSL explains."""

from seg_models.weights.classifiers import (
    Classifier,
    ClassifierSpec,
    build_classifier,
    lite_ensemble,
)
from seg_models.weights.collected import collected_ensemble
from seg_models.weights.ensembles import named_ensemble
from seg_models.weights.files import file_sha256, load_tensors, resolve_weights
from seg_models.weights.matching import load_by_name, load_by_order
from seg_models.weights.timm15 import timm15_ensemble

__all__ = [
    "Classifier",
    "ClassifierSpec",
    "build_classifier",
    "collected_ensemble",
    "file_sha256",
    "lite_ensemble",
    "load_by_name",
    "load_by_order",
    "load_tensors",
    "named_ensemble",
    "resolve_weights",
    "timm15_ensemble",
]
