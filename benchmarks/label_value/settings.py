"""What decides the figures, the same for all arms."""

from __future__ import annotations

from dataclasses import dataclass

from seg_models.recipes.recipe import (
    AugmentSpec,
    EmaSpec,
    LossSpec,
    OhemSpec,
    OptimizerSpec,
    Recipe,
    ScheduleSpec,
)
from seg_models.recipes.sampling import ClassUniformSpec, SamplingSpec
from seg_models.recipes.shared import from_package
from seg_models.spec import ModelSpec, preset

LEAST_HARD = 16
"""One of so many pixels is learned from at least."""


@dataclass(frozen=True)
class Settings:
    """Sizes are in pixels, those of pictures before they are scaled."""

    preset: str = "semfpn_efficientnet_lite0"
    steps: int = 4000
    """Of the arms that differ in their labels."""
    begin_steps: int = 1000
    """Of the arms that differ in what they begin with."""
    batch: int = 4
    crop: tuple[int, int] = (128, 176)
    short_side: int = 240
    scale: tuple[float, float] = (0.5, 1.5)
    jitter: float = 0.4
    """Brightness, contrast and saturation."""
    lr: float = 1e-3
    warmup_steps: int = 50
    uniform_share: float = 0.5
    """Share of the crops that are drawn by class, around centroids."""
    tile: int = 120
    """Side of the tiles of a label with a centroid of each class in them."""
    ema_decay: float = 0.99
    """Averaged weights are tested, and label."""
    hard: float = 0.7
    """Pixels whose own class has at most this probability are learned from, and never fewer than a sixteenth."""
    human_share: float = 0.3
    """Share of the eighth where a teacher labels the rest."""
    teacher_scales: tuple[float, ...] = (0.75, 1.0, 1.25)
    """Looks of a teacher that was trained on the eighth; each also mirrored."""
    threshold: float = 0.5
    """Least confidence of an auto-label."""
    pretrain_steps: int = 500
    pretrain_crop: tuple[int, int] = (128, 128)
    pretrain_short_side: int = 160
    pretrain_lr: float = 1e-3
    pssl_samples: int = 1
    """SmoothGrad samples per image and classifier, of `paper` and of `fast`."""

    def finetuning(self, *, steps: int, seed: int, imagenet: bool) -> Recipe:
        """Training on CamVid.

        Args:
            steps: how many.
            seed: of the order, the crops and the fresh weights.
            imagenet: begin with the backbone's ImageNet weights, which a package holds; else with random ones.
        """
        return Recipe(
            model=self._model(imagenet=imagenet),
            optimizer=OptimizerSpec(kind="adamw", lr=self.lr, weight_decay=0.01),
            schedule=ScheduleSpec(warmup_steps=self.warmup_steps),
            augment=self._augment(self.crop, self.short_side, self.scale),
            sampling=SamplingSpec(class_uniform=ClassUniformSpec(share=self.uniform_share, tile=self.tile)),
            loss=LossSpec(ohem=OhemSpec(threshold=self.hard, min_kept=self.crop[0] * self.crop[1] // LEAST_HARD)),
            ema=EmaSpec(decay=self.ema_decay),
            steps=steps,
            global_batch=self.batch,
            seed=seed,
        )

    def pretraining(self) -> Recipe:
        """Training of the whole network on PSSL labels, the backbone at a tenth of the learning rate."""
        return Recipe(
            model=self._model(imagenet=True),
            optimizer=OptimizerSpec(kind="adamw", lr=self.pretrain_lr, weight_decay=0.01, backbone_lr_factor=0.1),
            schedule=ScheduleSpec(warmup_steps=self.warmup_steps),
            augment=self._augment(self.pretrain_crop, self.pretrain_short_side, (0.75, 1.5)),
            loss=LossSpec(background_weight=0.1),
            steps=self.pretrain_steps,
            global_batch=self.batch,
        )

    def _model(self, *, imagenet: bool) -> ModelSpec:
        return from_package(self.preset) if imagenet else preset(self.preset)

    def _augment(self, crop: tuple[int, int], short_side: int, scale: tuple[float, float]) -> AugmentSpec:
        jitter = {"brightness": self.jitter, "contrast": self.jitter, "saturation": self.jitter}
        return AugmentSpec(crop=crop, short_side=short_side, scale=scale, **jitter)
