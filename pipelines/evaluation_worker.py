"""The worker of evaluation: one shard of images and labels in, counts out."""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pipelines.codecs import decode_label, encode_label
from pipelines.images import ImageError, decode_image
from pipelines.measures import MeasureCounts, Measures, MetricsSpec
from pipelines.published import Checkpoint, Device, make_predictor
from pipelines.samples import check_same_ids
from pipelines.schema import ShardKey
from pipelines.tables import read_shard_file
from seg_models.metrics import integers
from seg_models.predictor import PredictorSpec


@dataclass(frozen=True)
class LabelledShard:
    """Address of a shard of images and its labels."""

    key: ShardKey
    image_path: str
    label_path: str
    num_rows: int


@dataclass(frozen=True)
class ImageScore:
    """How well one image was predicted."""

    id: str
    figures: dict[str, float | None]
    """Each measure of this image alone; None where it is undefined, as all are where all of its truth is void."""

    @property
    def miou(self) -> float | None:
        """Mean IoU over the classes in its truth or prediction."""
        return self.figures["miou"]


@dataclass(frozen=True)
class Candidate:
    """An image that may be shown, with its prediction."""

    score: ImageScore
    key: ShardKey
    row: int
    prediction: bytes
    """Encoded label map."""

    def by_hash(self) -> str:
        """Order of the fixed pictures: neither class nor folder, the same for every checkpoint."""
        return _hash(self.score.id)

    def by_score(self) -> tuple[float, str]:
        """Order of the worst pictures."""
        return (self.score.miou if self.score.miou is not None else 1.0, self.score.id)


@dataclass(frozen=True)
class ShardScores:
    """Counts of one shard."""

    measured: MeasureCounts
    images: tuple[ImageScore, ...]
    reasons: dict[str, int]
    fixed: tuple[Candidate, ...]
    worst: tuple[Candidate, ...]


class SkipRow(ValueError):
    """A row that cannot be evaluated; the text is the reason."""


class EvaluationWorker:
    """Predicts the images of a shard and counts them against their labels.

    Raises:
        ValueError: the checkpoint cannot be loaded, or there is no GPU where one was asked for.
    """

    def __init__(
        self,
        *,
        checkpoint: Checkpoint,
        images_uri: str,
        labels_uri: str,
        predictor: PredictorSpec,
        metrics: MetricsSpec,
        device: Device,
        threads: int,
        num_fixed: int,
        num_worst: int,
    ) -> None:
        self._predictor = make_predictor(checkpoint, spec=predictor, device=device, threads=threads)
        self._space, self._metrics = checkpoint.label_space, metrics
        self._images_uri, self._labels_uri = images_uri, labels_uri
        self._num_fixed, self._num_worst = num_fixed, num_worst

    def __call__(self, shard: LabelledShard) -> ShardScores:
        """Evaluate a shard."""
        rows = self._read(shard)
        total = self._nothing_measured()
        candidates: list[Candidate] = []
        reasons: Counter[str] = Counter()
        scores: list[ImageScore] = []
        for number, row in enumerate(rows):
            try:
                prediction, measures = self._evaluate(row)
            except SkipRow as error:
                reasons[str(error)] += 1
                continue
            total.merge(measures.counts())
            scores.append(ImageScore(row["id"], measures.figures()))
            candidates.append(Candidate(scores[-1], shard.key, number, prediction))
            candidates = self._best(candidates)
        fixed, worst = self._fixed(candidates), self._worst(candidates)
        return ShardScores(total.counts(), tuple(scores), dict(reasons), tuple(fixed), tuple(worst))

    def _nothing_measured(self) -> Measures:
        return Measures.of(self._space, self._metrics, device=self._predictor.device)

    def _read(self, shard: LabelledShard) -> list[dict[str, Any]]:
        images = read_shard_file(self._images_uri, shard.image_path, columns=("id", "image", "reason")).to_pylist()
        labels = read_shard_file(self._labels_uri, shard.label_path, columns=("id", "label", "reason")).to_pylist()
        check_same_ids(f"shard {shard.key}", [row["id"] for row in images], [row["id"] for row in labels])
        return [
            {**image, "label": label["label"], "label_reason": label["reason"]}
            for image, label in zip(images, labels, strict=True)
        ]

    def _evaluate(self, row: dict[str, Any]) -> tuple[bytes, Measures]:
        """The encoded prediction of one image and what is measured of it."""
        for key in ("reason", "label_reason"):
            if row[key] is not None:
                raise SkipRow(row[key])
        try:
            image, truth = decode_image(row["image"]), decode_label(row["label"])
        except (ImageError, ValueError) as error:
            raise SkipRow(str(error)) from error
        if image.shape[:2] != truth.shape:
            raise SkipRow("image and label differ in size")
        label, confidence = self._predict(image)
        measures = self._nothing_measured()
        measures.update(label, truth, confidence=confidence)
        return encode_label(label.cpu().numpy().astype(self._space.dtype)), measures

    def _predict(self, image: NDArray[np.uint8]) -> tuple[Tensor, Tensor | None]:
        """Label of every pixel and, where calibration is measured, its confidence; both (H, W) on the device."""
        pixels = integers(image, self._predictor.device).permute(2, 0, 1)[None]
        if self._metrics.calibration_bins is None:
            return self._predictor.label_tensors(pixels)[0], None
        found = self._predictor.predict_tensors(pixels)
        return found.label[0], found.confidence[0]

    def _best(self, candidates: list[Candidate]) -> list[Candidate]:
        chosen = [*self._fixed(candidates), *self._worst(candidates)]
        return list({candidate.row: candidate for candidate in chosen}.values())

    def _fixed(self, candidates: list[Candidate]) -> list[Candidate]:
        return heapq.nsmallest(self._num_fixed, candidates, key=Candidate.by_hash)

    def _worst(self, candidates: list[Candidate]) -> list[Candidate]:
        judged = [candidate for candidate in candidates if candidate.score.miou is not None]
        return heapq.nsmallest(self._num_worst, judged, key=Candidate.by_score)


def _hash(image_id: str) -> str:
    return hashlib.sha256(image_id.encode()).hexdigest()
