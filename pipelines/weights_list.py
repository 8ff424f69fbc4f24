"""What a job's trained weights are: where each file can be had, where the loader looks for it, whether it is right.

Nothing is fetched: this is what a machine without internet is prepared with.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import timm
import torch
from torch import nn

from pipelines import storage
from seg_models.backbones.timm_backbone import BackboneSpec, backbones_of
from seg_models.spec import Spec
from seg_models.weights.classifiers import ClassifierSpec, build_network
from seg_models.weights.files import MissingPackageError, file_sha256, weights_place, weights_source
from seg_models.weights.timm15 import published_file

BLOCK_BYTES = 2**22
State = Literal["verified", "there", "missing", "wrong"]
"""`there`: a file for which no hash is known; `wrong`: one with another hash."""

USABLE = ("verified", "there")


@dataclass(frozen=True)
class WeightsFile:
    """One file of trained weights."""

    name: str
    """Classifier or backbone."""
    source: str | None
    """Where it can be had: an address or a pip command; None where only the user knows."""
    place: str | None
    """Path or address at which the loader looks; of a hub's file that is missing the folder to copy whole; None for a
    package that is not installed."""
    sha256: str | None
    """What the file's SHA-256 is, or begins with."""
    size_bytes: int | None
    """Of the file that is there, else about: four bytes a number of the network."""
    state: State
    input: dict[str, Any]
    """A classifier's input; empty for a backbone, which takes images of any size."""

    @property
    def usable(self) -> bool:
        """Whether a job could load it."""
        return self.state in USABLE


def classifier_file(spec: ClassifierSpec) -> WeightsFile:
    """The file of a classifier.

    Raises:
        ValueError: timm knows no such network, or the kind of address is unknown.
    """
    place, state, size = _look(spec.weights_ref, spec.weights_sha256)
    published = published_file(spec.name, spec.weights_sha256)
    if size is None and ":" not in spec.name:
        size = _about(lambda: build_network(spec))
    facts: dict[str, Any] = {"size": spec.size, "scale": spec.input_scale, "mean": spec.mean, "std": spec.std}
    if published is not None:
        facts |= {"published_crop": published.crop, "published_interpolation": published.interpolation}
    source = weights_source(spec.weights_ref) if published is None else published.url
    return WeightsFile(spec.label, source, place, spec.weights_sha256, size, state, facts)


def is_usable(spec: ClassifierSpec) -> bool:
    """Whether a classifier's file is there and right.

    Raises:
        ValueError: timm has no published weights of that name, or the kind of address is unknown.
    """
    return _look(spec.weights_ref, spec.weights_sha256)[1] in USABLE


def backbone_files(model: Spec) -> list[WeightsFile]:
    """The files of the backbones of a model; none where they begin untrained.

    Raises:
        ValueError: timm has no published weights of that name, or the kind of address is unknown.
    """
    wanted = [(backbone, backbone.weights_ref) for backbone in backbones_of(model)]
    return [_backbone_file(backbone, ref) for backbone, ref in wanted if ref is not None]


def _backbone_file(spec: BackboneSpec, ref: str) -> WeightsFile:
    place, state, size = _look(ref, spec.weights_sha256)
    if size is None:
        size = _about(lambda: timm.create_model(spec.name, pretrained=False))
    return WeightsFile(spec.name, weights_source(ref), place, spec.weights_sha256, size, state, {})


def _look(ref: str, sha256: str | None) -> tuple[str | None, State, int | None]:
    """Where a file belongs, how it is there, and its size where it is."""
    if storage.is_remote(ref):
        return (ref, *_look_remote(ref, sha256))
    try:
        place = weights_place(ref, sha256=sha256)
    except MissingPackageError:
        return None, "missing", None
    if not place.is_file():
        return str(place), "missing", None
    return str(place), _compare(sha256, lambda: file_sha256(place)), place.stat().st_size


def _look_remote(uri: str, sha256: str | None) -> tuple[State, int | None]:
    if not storage.exists(uri):
        return "missing", None
    digest, size = hashlib.sha256(), 0
    with storage.open_input(uri) as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
            size += len(block)
    return _compare(sha256, digest.hexdigest), size


def _compare(sha256: str | None, digest: Callable[[], str]) -> State:
    if sha256 is None:
        return "there"
    return "verified" if digest().startswith(sha256.lower()) else "wrong"


def _about(build: Callable[[], nn.Module]) -> int:
    """Bytes of a network's numbers, of which none is made."""
    with torch.device("meta"):
        network = build()
    return sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values())
