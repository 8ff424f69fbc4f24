"""Settings of what an epoch holds. Which samples these are, and in which order, is worked out in pipelines."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from seg_models.spec import Spec


class ClassUniformSpec(Spec):
    """Draw a share of the samples by class, each class equally often, in crops around centroids (HMSA)."""

    share: float = Field(0.5, gt=0, le=1)
    """Share of an epoch's samples that are drawn by class; the rest are images, cropped anywhere."""
    tile: int = Field(1024, gt=0)
    """Side of the tiles that labels are cut in, in pixels; each class has a centroid in every tile that holds it."""
    until: float = Field(1.0, gt=0, le=1)
    """Share of the run's steps after which images are drawn alike again."""


class PartRule(Spec):
    """What a recipe says of one part of the data, which the job names."""

    part: str
    """`name` of a `[[data]]` table."""
    centroids_of: tuple[str, ...] = ()
    """Draw the part only in crops around centroids of these classes; default: all of it, like the others."""
    until: float = Field(1.0, gt=0, le=1)
    """Share of the run's steps after which the part is left out."""

    @model_validator(mode="after")
    def _check_effect(self) -> Self:
        if not self.centroids_of and self.until == 1:
            raise ValueError(f"the rule for part {self.part!r} takes no effect: set `centroids_of` or `until`")
        return self


class SamplingSpec(Spec):
    """What an epoch holds; default: every row of the data once."""

    class_uniform: ClassUniformSpec | None = None
    repeat_threshold: float | None = Field(None, gt=0, lt=1)
    """Repeat images of classes that fewer than this share of the images hold (LVIS: 0.001).

    An image comes max(1, sqrt(threshold / f)) times in an epoch, f being the share of its rarest class.
    """
    parts: tuple[PartRule, ...] = ()
    """Rules for parts of the data that are drawn otherwise or end earlier."""

    @model_validator(mode="after")
    def _check_effect(self) -> Self:
        names = [rule.part for rule in self.parts]
        if len(set(names)) != len(names):
            raise ValueError(f"parts names a part twice: {', '.join(names)}")
        uniform = self.class_uniform
        if self.repeat_threshold is not None and uniform is not None and uniform.until == 1:
            raise ValueError("repeat_threshold takes no effect: with class_uniform, samples are drawn by class")
        for rule in self.parts:
            if rule.centroids_of and uniform is None:
                raise ValueError(f"part {rule.part!r}: centroids_of takes no effect without class_uniform")
            if rule.centroids_of and uniform is not None and rule.until > uniform.until:
                raise ValueError(
                    f"part {rule.part!r}: until = {rule.until} is past class_uniform.until = {uniform.until}, "
                    "where no centroids are drawn any more"
                )
        return self
