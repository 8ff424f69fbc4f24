"""The arms: what each trains on, and what it begins with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from benchmarks.label_value.coarse import GROUPS
from benchmarks.label_value.settings import Settings
from benchmarks.study.maps import short_hash

LABELS = ("threshold", "human_share")
SELF = (*LABELS, "teacher_scales")
PRETRAINING = ("pretrain_steps", "pretrain_crop", "pretrain_short_side", "pretrain_lr", "pssl_samples")
COARSE = "-coarse"
"""Ends the names of label sets with groups of classes."""
OF_OTHERS = {"steps", "begin_steps", *SELF, *PRETRAINING}
"""Settings that not all arms depend on."""


@dataclass(frozen=True)
class Arm:
    """One row of a table."""

    name: str
    title: str
    rest: str | None = None
    """Labels of the other seven eighths of the training frames: `human`, or by whom: `self`, the arm `eighth` with the
    same seed, or `cityscapes`."""
    pssl: str | None = None
    """Label set of the pre-training: `paper`, `fast` or `random`, with 1000 classes or, as `fast-coarse`, with few."""
    imagenet: bool = True
    """Begin with the backbone's ImageNet weights."""
    brief: bool = False
    """Train for `begin_steps` instead of `steps`."""

    def steps(self, settings: Settings) -> int:
        """How many steps it trains."""
        return settings.begin_steps if self.brief else settings.steps

    def fingerprint(self, settings: Settings, *, seed: int) -> str:
        """Names what decides the figures of a run: the settings it depends on, not the version of the code."""
        table = _values(settings, self._depends(settings))
        pretraining = None if self.pssl is None else pretraining_key(self.pssl, settings)
        return short_hash([self.rest, pretraining, self.imagenet, self.steps(settings), seed, table])

    def _depends(self, settings: Settings) -> set[str]:
        keys = set(vars(settings)) - OF_OTHERS
        keys.update({"self": SELF, "cityscapes": LABELS}.get(self.rest or "", ()))
        return keys


def pretraining_key(labels: str, settings: Settings) -> str:
    """Names what decides a pre-training on the label set of that name."""
    values = _values(settings, {"preset", "batch", "jitter", "warmup_steps", *PRETRAINING})
    return short_hash([labels, values, GROUPS if labels.endswith(COARSE) else None])


def _values(settings: Settings, keys: set[str]) -> dict[str, Any]:
    return {key: value for key, value in vars(settings).items() if key in keys}


EIGHTH = Arm("eighth", "1/8 of the labels")
IMAGENET = Arm("imagenet", "ImageNet backbone", brief=True)
AUTO_LABELS = (
    EIGHTH,
    Arm("self", "1/8, auto-labels on the rest by the network of the row above", rest="self"),
    Arm("cityscapes", "1/8, auto-labels on the rest by the best Cityscapes teacher", rest="cityscapes"),
    Arm("all", "all labels", rest="human"),
)
PSSL = (
    Arm("scratch", "random weights", imagenet=False, brief=True),
    IMAGENET,
    Arm("random", "PSSL, random masks of equal area, 1000 classes", pssl="random", brief=True),
    Arm("paper", "PSSL, `paper` labels, 1000 classes", pssl="paper", brief=True),
    Arm("fast", "PSSL, `fast` labels, 1000 classes", pssl="fast", brief=True),
    Arm("random-coarse", "PSSL, random masks of equal area, coarse classes", pssl="random-coarse", brief=True),
    Arm("paper-coarse", "PSSL, `paper` labels, coarse classes", pssl="paper-coarse", brief=True),
    Arm("fast-coarse", "PSSL, `fast` labels, coarse classes", pssl="fast-coarse", brief=True),
)
ARMS = {arm.name: arm for arm in (*AUTO_LABELS, *PSSL)}
