"""Brightness, contrast and saturation of a training crop against torchvision's three functions one after the other.

    python -m benchmarks.colors

Both get the same uint8 picture (3, 512, 512) and the same factors, and end in equal bytes. The peer is what data paths
usually call: `adjust_brightness`, `adjust_contrast` and `adjust_saturation` of `torchvision.transforms.v2`.
"""

from __future__ import annotations

import torch
import torchvision.transforms.v2.functional as tv  # type: ignore[import-untyped]
from torch import Tensor

from benchmarks.measure import Effort, Entries, command, cpu_pairs
from pipelines.colors import ColorDraws, jitter
from seg_models.recipes.recipe import AugmentSpec

STRENGTH = 0.5
DRAWS = ColorDraws(brightness=0.3, contrast=0.6, saturation=0.8, hue=0.0, blur=0.0, sigma=0.0)
CALLS = 16
"""Calls that are timed together: one takes a millisecond."""


def entries(effort: Effort) -> Entries:
    """Time to change the colours of one crop."""
    size = 32 if effort.tiny else 512
    image = torch.randint(0, 256, (3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    spec = AugmentSpec(crop=(size, size), brightness=STRENGTH, contrast=STRENGTH, saturation=STRENGTH)
    assert torch.equal(jitter(image, spec=spec, draws=DRAWS), by_torchvision(image))
    timed = cpu_pairs(
        lambda: jitter(image, spec=spec, draws=DRAWS), lambda: by_torchvision(image), effort=effort, repeat=CALLS
    )
    return {"colors_torchvision": timed}


def by_torchvision(image: Tensor) -> Tensor:
    """The same changes as torchvision makes them."""
    brightness, contrast, saturation = (1 - STRENGTH + 2 * STRENGTH * draw for draw in DRAWS[:3])
    changed = tv.adjust_contrast(tv.adjust_brightness(image, brightness), contrast)
    changed = tv.adjust_saturation(changed, saturation)
    assert isinstance(changed, Tensor)
    return changed


if __name__ == "__main__":
    command(__doc__, entries)
