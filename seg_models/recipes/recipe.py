"""A recipe: everything about a training run that decides *what* is computed."""

from __future__ import annotations

import itertools
from typing import Literal, Self

from pydantic import Field, model_validator

from seg_models.recipes.sampling import SamplingSpec
from seg_models.spec import AnyModelSpec, Spec


class OptimizerSpec(Spec):
    """Optimizer settings."""

    kind: Literal["sgd", "adamw"] = "sgd"
    lr: float = Field(0.01, gt=0)
    """Learning rate; backbone and head learn at this times their factors."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """SGD momentum; AdamW uses betas (momentum, 0.999)."""
    weight_decay: float = Field(5e-4, ge=0)
    backbone_lr_factor: float = Field(1.0, ge=0)
    """The backbone learns at `lr` times this."""
    backbone_decay_factor: float = Field(1.0, ge=0)
    """The backbone decays by `weight_decay` times this."""
    head_lr_factor: float = Field(1.0, ge=0)
    """All that is not the backbone learns at `lr` times this (mmsegmentation's `lr_mult` of heads)."""
    head_decay_factor: float = Field(1.0, ge=0)
    """All that is not the backbone decays by `weight_decay` times this (mmsegmentation's `decay_mult` of heads)."""
    decay_norms_and_biases: bool = True
    """Apply weight decay to norm parameters and biases too (most segmentation code bases do)."""
    clip_grad_norm: float | None = Field(None, gt=0)
    """Largest allowed norm of the gradient of all weights together, or no clipping."""

    @model_validator(mode="after")
    def _check_decay(self) -> Self:
        for key in ("backbone_decay_factor", "head_decay_factor", "decay_norms_and_biases"):
            value = getattr(self, key)
            if not self.weight_decay and value != type(self).model_fields[key].default:
                raise ValueError(f"{key} = {value!r} takes no effect with weight_decay = 0")
        return self


class ScheduleSpec(Spec):
    """Learning rate over steps: a factor of every group's rate."""

    kind: Literal["poly", "cosine", "milestones", "constant"] = "poly"
    power: float = Field(0.9, gt=0)
    """poly: (1 - t) ** power, with t from 0 at the first step to 1 after the last."""
    milestones: tuple[float, ...] = ()
    """milestones: shares of the run, between 0 and 1, from which on the rate is multiplied by `gamma`."""
    gamma: float = Field(0.1, gt=0, lt=1)
    """milestones: what the rate is multiplied by at each."""
    min_lr_factor: float = Field(0.0, ge=0, lt=1)
    """poly, cosine: the schedule falls to this share of the rate instead of 0, as a whole: m + (1 - m) * factor."""
    per: Literal["step", "epoch"] = "step"
    """epoch: the rate stays as it is while the data is gone through once. Warm-up goes by steps in any case."""
    warmup_steps: int = Field(0, ge=0)
    """Linear warm-up from `warmup_factor` times the schedule."""
    warmup_epochs: float = Field(0.0, ge=0)
    """The same, counted in passes through the data; instead of `warmup_steps`."""
    warmup_factor: float = Field(0.1, gt=0, le=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        self._check_effect("power", self.kind == "poly")
        self._check_effect("milestones", self.kind == "milestones")
        self._check_effect("gamma", self.kind == "milestones")
        self._check_effect("min_lr_factor", self.kind in ("poly", "cosine"))
        self._check_effect("per", self.kind != "constant")
        if self.warmup_factor != type(self).model_fields["warmup_factor"].default and not self._warms_up:
            raise ValueError(
                f"warmup_factor = {self.warmup_factor} takes no effect without `warmup_steps` or `warmup_epochs`"
            )
        if self.kind == "milestones" and not self.milestones:
            raise ValueError("milestones: kind = 'milestones' needs at least one")
        bounds = (0.0, *self.milestones, 1.0)
        if any(first >= second for first, second in itertools.pairwise(bounds)):
            raise ValueError(f"milestones must rise between 0 and 1 (shares of the run), found {self.milestones}")
        if self.warmup_steps and self.warmup_epochs:
            raise ValueError(
                f"warmup_epochs = {self.warmup_epochs} and warmup_steps = {self.warmup_steps}: only one can count"
            )
        return self

    @property
    def _warms_up(self) -> bool:
        return self.warmup_steps > 0 or self.warmup_epochs > 0

    def _check_effect(self, key: str, has_effect: bool) -> None:
        value = getattr(self, key)
        if not has_effect and value != type(self).model_fields[key].default:
            raise ValueError(f"{key} = {value!r} takes no effect with kind = {self.kind!r}")


class EmaSpec(Spec):
    """Averaged weights (exponential moving average), which are evaluated and published in place of the last ones."""

    decay: float = Field(0.999, gt=0, lt=1)
    """Weight of the average so far; it looks back over about 1 / (1 - decay) steps."""
    warmup: bool = True
    """Begin with a small decay: (1 + n) / (10 + n) after n steps, until that is more than `decay`."""
    buffers: Literal["average", "copy"] = "average"
    """Statistics of batch norms: averaged like weights, or those of the last step."""


class AugmentSpec(Spec):
    """Training augmentation. Crop and padding are always applied; void fills the label outside the image."""

    crop: tuple[int, int] = (512, 512)
    """Height and width of the training crop, in pixels."""
    short_side: int | None = Field(None, gt=0)
    """Resize the short side to this before scaling, or keep the image's size."""
    scale: tuple[float, float] = (0.5, 2.0)
    """Range of the random scale factor."""
    flip: float = Field(0.5, ge=0, le=1)
    """Probability of a horizontal flip."""
    brightness: float = Field(0.0, ge=0)
    contrast: float = Field(0.0, ge=0)
    saturation: float = Field(0.0, ge=0)
    hue: float = Field(0.0, ge=0, le=0.5)
    """Largest turn of the hue to either side, as a share of the circle."""
    blur: tuple[float, float] | None = None
    """Range of the Gaussian blur's sigma, in pixels of the crop."""
    blur_share: float = Field(1.0, gt=0, le=1)
    """Probability of the blur."""
    crop_class_max: float | None = Field(None, gt=0, lt=1)
    """Draw another crop, up to ten times, where one class has at least this share of the known pixels."""
    crop_around: tuple[str, ...] = ()
    """Cut the crop around a random pixel of one of these classes, in images that have one."""

    @model_validator(mode="after")
    def _check_ranges(self) -> Self:
        if min(self.crop) <= 0:
            raise ValueError(f"crop must be positive, found {self.crop}")
        low, high = self.scale
        if not 0 < low <= high:
            raise ValueError(f"scale must be (low, high) with 0 < low <= high, found {self.scale}")
        if self.blur is not None and not 0 <= self.blur[0] <= self.blur[1] > 0:
            raise ValueError(f"blur must be (low, high) with 0 <= low <= high and 0 < high, found {self.blur}")
        if self.blur is None and self.blur_share != 1:
            raise ValueError(f"blur_share = {self.blur_share} takes no effect without `blur`")
        return self


class OhemSpec(Spec):
    """Cross-entropy of hard pixels only (online hard example mining; Shrivastava et al., CVPR 2016)."""

    threshold: float = Field(0.7, gt=0, lt=1)
    """Pixels whose own class has at most this probability are kept."""
    min_kept: int = Field(100_000, ge=0)
    """Pixels per image that are kept at least: of a worker's micro-batch of N images the N times as many hardest."""
    sample_every: int = Field(1, ge=1)
    """Look for the `min_kept` hardest in every n-th pixel of every n-th row (CCNet's released code: about 8)."""
    auxiliary: bool = False
    """Mine auxiliary scores too, each by its own probabilities (as PaddleSeg); False: they learn from all pixels."""

    @model_validator(mode="after")
    def _check_effect(self) -> Self:
        if not self.min_kept and self.sample_every != 1:
            raise ValueError(f"sample_every = {self.sample_every} takes no effect with min_kept = 0")
        return self


class LossSpec(Spec):
    """Weights of the loss."""

    background_weight: float | None = Field(None, gt=0)
    """Cross-entropy weight of the label set's background class, every other class weighs 1.

    PSSL: 0.1 is released, 1/9 balances foreground and background, 1/9000 balances all classes
    (specs: PSSL section 6). An error where the label set has no background class.
    """
    aux_weight: float = Field(0.4, ge=0)
    """Weight of every auxiliary loss (those whose name starts with `aux`)."""
    ohem: OhemSpec | None = None
    """Learn from hard pixels only. An error where the network's loss has no cross-entropy of class scores."""


class Recipe(Spec):
    """What a paper fixes: model, optimizer, schedule, augmentation, global batch and steps."""

    model: AnyModelSpec
    optimizer: OptimizerSpec = OptimizerSpec()
    schedule: ScheduleSpec = ScheduleSpec()
    augment: AugmentSpec = AugmentSpec()
    sampling: SamplingSpec = SamplingSpec()
    loss: LossSpec = LossSpec()
    ema: EmaSpec | None = None
    """Average the weights over the steps."""
    steps: int = Field(40_000, gt=0)
    """Optimizer steps; every rank runs exactly this many."""
    global_batch: int = Field(16, gt=0)
    """Images per optimizer step over all workers and accumulation steps."""
    lanes: int = Field(48, gt=0)
    """Streams of samples; fixes the order of samples for every worker count that divides it."""
    sync_batch_norm: bool = True
    """Batch norm statistics over all workers."""
    seed: int = Field(0, ge=-(2**63), lt=2**63)

    @model_validator(mode="after")
    def _check_ohem(self) -> Self:
        ohem, (height, width) = self.loss.ohem, self.augment.crop
        if ohem is not None and ohem.sample_every == 1 and ohem.min_kept >= height * width:
            raise ValueError(
                f"loss.ohem takes no effect: min_kept = {ohem.min_kept} keeps all {height * width} pixels of a crop of "
                f"{height} x {width}; a sixteenth of them is {height * width // 16}"
            )
        return self
