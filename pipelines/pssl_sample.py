"""A few real images of a dataset to measure PSSL with, and the bytes that their labels take."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines.codecs import best_decile_codec, encode_deciles, encode_label
from pipelines.images import ImageError, decode_image
from pipelines.pssl_plan import pssl_label_space, target_index
from pipelines.pssl_spec import PsslSpec
from pipelines.tables import Dataset, ShardFile, read_shard_file
from seg_models.consensus import pseudo_label, resize_map
from seg_models.ranks import deciles
from seg_models.smoothing import smooth_map
from seg_models.weights.classifiers import input_size, resize_image

NUM_SAMPLES = 4
MAX_SHARDS = 8  # looked through for images with a class

Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Sample:
    """One image of the dataset."""

    image_id: str
    data: bytes
    """The image's file."""
    pixels: NDArray[np.uint8]
    """(H, W, 3)"""
    class_index: int
    target: int
    """The classifiers' score of its class."""
    relative_pixels: float
    """Its number of pixels over the mean of its shard's."""


class LabelSizes(NamedTuple):
    """What an image of the dataset takes beside the classifiers."""

    label_bytes: float
    decile_bytes: float
    seconds: float
    """Decode, label, encode."""


def take_samples(dataset: Dataset, shards: Sequence[ShardFile], *, num_scores: int) -> list[Sample]:
    """Images of the first shard that has any with a class, those of the most usual shape first.

    Raises:
        ValueError: there are none.
    """
    for shard in shards[:MAX_SHARDS]:
        columns = ("id", "image", "height", "width", "class", "reason")
        rows = read_shard_file(dataset.images.uri, shard.path, columns=columns).to_pylist()
        usable = [row for row in rows if row["reason"] is None and row["class"] is not None]
        if found := _decoded(_usual_first(usable), dataset, num_scores=num_scores):
            return found
    raise ValueError(f"{dataset.root}: the first {len(shards[:MAX_SHARDS])} shards in scope hold no image with a class")


def _usual_first(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A classifier's time goes with its input's shape, so an image of a rare one would mislead."""
    shapes = [row["width"] / row["height"] for row in rows]
    usual = statistics.median(shapes) if shapes else 1.0
    return sorted(rows, key=lambda row: abs(row["width"] / row["height"] - usual))


def _decoded(rows: list[dict[str, Any]], dataset: Dataset, *, num_scores: int) -> list[Sample]:
    space = pssl_label_space(dataset.info.label_space)
    samples: list[Sample] = []
    for row in rows:
        try:
            pixels = decode_image(row["image"])
            target = target_index(row["class"], space=space, num_scores=num_scores)
        except (ImageError, ValueError):  # the job gives such a row a reason
            continue
        mean = statistics.fmean(other["height"] * other["width"] for other in rows)
        relative = pixels.shape[0] * pixels.shape[1] / mean
        samples.append(Sample(row["id"], row["image"], pixels, row["class"], target, relative))
        if len(samples) == NUM_SAMPLES:
            break
    return samples


def mean_scores(maps: Sequence[Scores | None], sample: Sample) -> Scores:
    """The mean of the classifiers' maps of an image; where none says anything, noise, which compresses worst."""
    found = [each for each in maps if each is not None]
    if found:
        mean: Scores = np.mean(found, axis=0)
        return mean
    return np.random.default_rng(0).random(sample.pixels.shape[:2])


def label_sizes(
    scores: Scores, samples: Sequence[Sample], dataset: Dataset, *, pssl: PsslSpec, map_size: int
) -> LabelSizes:
    """Bytes of the label and deciles of an image of mean size, and the seconds that all but the classifiers take.

    Args:
        scores: (H, W) of the first sample, not smoothed.
        map_size: short side of the mean map.
    """
    first, space = samples[0], pssl_label_space(dataset.info.label_space)
    assert space.background is not None
    start = time.perf_counter()
    decode_image(first.data)
    smooth = _smoothed(scores, first, pssl=pssl, map_size=map_size)
    label = encode_label(
        pseudo_label(
            smooth,
            class_index=first.class_index,
            background=space.background,
            top_deciles=pssl.top_deciles,
            above_otsu=pssl.above_otsu,
            dtype=space.dtype,
        )
    )
    seconds = time.perf_counter() - start
    kept = encode_deciles(deciles(smooth), codec=best_decile_codec())
    return LabelSizes(len(label) / first.relative_pixels, len(kept) / first.relative_pixels, seconds)


def _smoothed(scores: Scores, sample: Sample, *, pssl: PsslSpec, map_size: int) -> Scores:
    """Scores (H, W) as an ensemble finishes them: smoothed at the size of the mean map, then brought to the image's."""
    height, width = scores.shape
    low, wide = input_size(height, width, size=map_size, resize=pssl.resize)
    pixels = torch.from_numpy(sample.pixels.copy()).permute(2, 0, 1)
    guide = resize_image(pixels, height=low, width=wide) / 255
    small = resize_map(torch.from_numpy(scores), height=low, width=wide)
    smooth = smooth_map(small, guide=guide, spec=pssl.smoothing)
    found: Scores = resize_map(smooth, height=height, width=width).numpy()
    return found
