"""How a classifier is computed when it is explained: the same function, in the form that suits a machine."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from seg_models.spec import Spec


class Numerics(Spec):
    """Precision, memory format and rearrangements. Part of the label plan: each changes results in the last digits."""

    dtype: Literal["float32", "bfloat16", "float64"] = "float32"
    """Precision of the classifier; sums are always float64."""
    channels_last: bool = True
    """Memory format; faster for most networks."""
    fold_batch_norm: bool = True
    """Fold batch norms into the convolutions before them, where that is legal."""
    stem_once: bool = False
    """Differentiate at the first convolution's output and go through it once per image instead of once per copy."""
    chunk: int = Field(16, gt=0)
    """Copies that go through the classifier at once, at least, where there are so many: of one image, or all copies of
    several. On one CPU thread torch takes a slow path for convolutions of 1x1 below 16."""
