"""The table of all networks, and what the most frequent class alone would score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.dense_systems.settings import Settings
from benchmarks.model_table import table
from seg_models.metrics import ConfusionMatrix

COLUMNS = ("architecture", "preset", "parameters", "PSSL loss", "CamVid loss", "seconds", "mIoU", "pixel accuracy")


@dataclass(frozen=True)
class Baseline:
    """The most frequent class of the labels, and the scores of predicting it everywhere."""

    name: str
    miou: float
    pixel_accuracy: float


def majority(row: dict[str, Any]) -> Baseline:
    """The baseline of the labels that an evaluation met, which are the rows of its confusion matrix (K, K)."""
    truth = np.asarray(row["confusion"], dtype=np.int64).sum(axis=1)
    constant = np.zeros((len(truth), len(truth)), dtype=np.int64)
    constant[:, truth.argmax()] = truth
    counts = ConfusionMatrix(len(truth), void=len(truth))
    counts.merge(constant)
    return Baseline(row["classes"][int(truth.argmax())], counts.miou(), counts.pixel_accuracy())


def results_markdown(rows: Sequence[dict[str, Any]], settings: Settings) -> str:
    """What `docs/results.md` tells of the networks; the last line of the table is the baseline."""
    base = majority(rows[0])
    last = ("the most frequent class", base.name, *["–"] * 4, *_scores(base.miou, base.pixel_accuracy))
    figures = table(COLUMNS, iter([*(_line(row) for row in rows), last]))
    crops = ["×".join(map(str, crop)) for crop in (settings.pssl_crop, settings.crop)]
    text = (
        f"{settings.pssl_steps} steps on PSSL labels with {settings.batch} crops of {crops[0]}, then {settings.steps} "
        f"steps on CamVid-11's training frames with {settings.batch} crops of {crops[1]}; short side of pictures "
        f"{settings.short_side} px, AdamW at {settings.lr:g}, seed {settings.seed}, {settings.threads} threads; the "
        "same for every network. Losses: mean of the first → of the last tenth of the steps. Evaluated: all "
        f"{rows[0]['evaluated']} frames of the split `val` at 360×480. Seconds: the three commands of a network, with "
        "their start."
    )
    return f"{text}\n\n{figures}\n"


def _line(row: dict[str, Any]) -> tuple[str, ...]:
    losses = [f"{first:.2f} → {last:.2f}" for first, last in (row["pssl_losses"], row["camvid_losses"])]
    figures = (f"{row['params']:,}", *losses, f"{row['seconds']:.0f}")
    return row["arch"], f"`{row['preset']}`", *figures, *_scores(row["miou"], row["pixel_accuracy"])


def _scores(miou: float, pixel_accuracy: float) -> tuple[str, str]:
    return f"{miou:.4f}", f"{pixel_accuracy:.4f}"
