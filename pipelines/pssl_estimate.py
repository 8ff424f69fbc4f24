"""What a PSSL job will take: passes, device hours, cost and bytes, from a short measurement on this machine.

Every classifier is measured alone, in the numerics of the job's plan, on real images of the dataset; the others are not
in memory meanwhile. Classifiers whose weights are not here are measured with random ones, which take the same time.
Nothing is written but temporary files, and Ray is not started.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from pipelines.label_run import shards_in_scope
from pipelines.pssl_plan import check_scores
from pipelines.pssl_sample import label_sizes, mean_scores, take_samples
from pipelines.pssl_spec import EnsembleSpec, PsslSpec, used_classifiers
from pipelines.pssl_timing import ClassifierTime, Device, measure
from pipelines.shards import ComputeSpec
from pipelines.tables import Dataset, ShardFile
from seg_models.explain import RandomSpec

IMAGENET_IMAGES = 1_281_167
"""Images of ImageNet's training split."""


@dataclass(frozen=True)
class Need:
    """What a number of images takes."""

    images: int
    passes: int
    device_hours: float
    """GPU-hours, or CPU-hours where CPUs compute."""
    wall_hours: float
    cost: float | None
    """At the price of a device hour."""
    label_bytes: int
    decile_bytes: int
    """Of the deciles, if they are kept."""


@dataclass(frozen=True)
class PsslEstimate:
    """A measurement, scaled to a job."""

    device: Device
    compute: ComputeSpec
    actors: int
    measured_s: float
    measured_images: int
    classifiers: tuple[ClassifierTime, ...]
    other_seconds: float
    """Of an image beside the classifiers: decode, smooth, label, encode."""
    label_bytes: float
    decile_bytes: float
    """Bytes of an image."""
    images_in_scope: int
    images_left: int
    """Those of shards not yet committed."""

    @property
    def seconds_per_image(self) -> float:
        """Of one actor that has its device to itself."""
        return sum(each.seconds_per_image for each in self.classifiers) + self.other_seconds

    @property
    def passes_per_image(self) -> int:
        """Over all classifiers."""
        return sum(each.passes for each in self.classifiers)

    def need(self, images: int, *, price: float | None = None) -> Need:
        """What `images` images take; `price` is that of a device hour.

        Actors that share a GPU are taken to share its speed; each of the CPUs of an actor is paid.
        """
        gpus = self.compute.gpus
        per_actor, sharing = (max(1.0, gpus), min(1.0, gpus)) if gpus > 0 else (max(self.compute.cpus, 1.0), 1.0)
        hours = images * self.seconds_per_image / 3600
        return Need(
            images=images,
            passes=images * self.passes_per_image,
            device_hours=hours * per_actor,
            wall_hours=hours / (self.actors * sharing),
            cost=None if price is None else hours * per_actor * price,
            label_bytes=round(images * self.label_bytes),
            decile_bytes=round(images * self.decile_bytes),
        )


def estimate_pssl(
    dataset: str,
    *,
    labels: str,
    pssl: PsslSpec,
    ensemble: EnsembleSpec,
    split: str | None = None,
    compute: ComputeSpec | None = None,
    seconds: float = 10.0,
) -> PsslEstimate:
    """Measure the classifiers of a job on this machine; the arguments are those of `make_pssl`.

    Where the job would probe numerics, the default ones are measured: an upper bound.

    Args:
        seconds: about how long the classifiers are measured; building them comes on top.

    Raises:
        ValueError: what `plan_pssl` refuses but absent weights, a control without classifiers, no GPU where the job
            asks for one, no image with a class.
    """
    compute, start = compute or ComputeSpec(), time.monotonic()
    device = _device(pssl, compute)
    opened = Dataset.open(dataset)
    classifiers = used_classifiers(pssl, ensemble)
    check_scores(classifiers, space=opened.info.label_space)
    shards = shards_in_scope(opened, opened.images, split)
    left = _left(opened, labels, shards)
    num_scores = min(classifier.num_classes for classifier in classifiers)
    samples = take_samples(opened, left or shards, num_scores=num_scores)
    times, maps = [], []
    with _threads(pssl.threads):
        for classifier in classifiers:
            took, found = measure(classifier, samples, pssl, device=device, seconds=seconds / len(classifiers))
            times.append(took)
            maps.append(found)
        map_size = max(classifier.size for classifier in classifiers)
        sizes = label_sizes(mean_scores(maps, samples[0]), samples, opened, pssl=pssl, map_size=map_size)
    return PsslEstimate(
        device=device,
        compute=compute,
        actors=_actors(compute, num_shards=len(left)),
        measured_s=time.monotonic() - start,
        measured_images=len(samples),
        classifiers=tuple(times),
        other_seconds=sizes.seconds,
        label_bytes=sizes.label_bytes,
        decile_bytes=sizes.decile_bytes,
        images_in_scope=sum(shard.num_rows for shard in shards),
        images_left=sum(shard.num_rows for shard in left),
    )


def _device(pssl: PsslSpec, compute: ComputeSpec) -> Device:
    if isinstance(pssl.explainer, RandomSpec):
        raise ValueError("pssl.explainer.kind: random runs no classifier, there is nothing to estimate")
    if compute.gpus == 0:
        return "cpu"
    if not torch.cuda.is_available():
        raise ValueError(f"compute.gpus = {compute.gpus:g}: this machine has no GPU; estimate on one like the job's")
    return "cuda"


def _left(opened: Dataset, labels: str, shards: tuple[ShardFile, ...]) -> tuple[ShardFile, ...]:
    """The shards that the label set does not have yet."""
    done = opened.labels(labels).committed() if labels in opened.label_sets() else set()
    return tuple(shard for shard in shards if shard.key not in done)


def _actors(compute: ComputeSpec, *, num_shards: int) -> int:
    """Those asked for, else as many as this machine has room for; one where a cluster decides."""
    if compute.actors is not None:
        room = compute.actors
    elif compute.cluster:
        room = 1
    elif compute.gpus > 0:
        room = int(torch.cuda.device_count() / compute.gpus)
    else:
        room = int(((os.cpu_count() or 1) - 1) / max(compute.cpus, 0.01))
    return max(1, min(room, num_shards))


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Torch threads of an actor, for the length of the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
