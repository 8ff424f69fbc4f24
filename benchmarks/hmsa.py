"""Multi-scale attention trained on pairs of scales against the explicit form, which needs all of them: multiply-adds.

Around DeepLabV3+ with ResNet-50, the network of the paper's table 3 (arXiv 2005.10821): the pair 0.5 and 1 against
0.5, 1 and 2. Counted on a training forward pass without weights.
"""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure import Effort, Entries, Measured, command
from seg_models.spec import preset

NUM_CLASSES = 65
"""Mapillary Vistas."""


def entries(effort: Effort) -> Entries:
    """Multiply-adds of a training forward pass per image."""
    side = 64 if effort.tiny else 512
    ours, peer = (training_gmac(f"hmsa_deeplabv3plus_resnet50{form}", side=side) for form in ("", "_explicit"))
    return {"hmsa_pair_gmac": Measured(ours, peer, "GMAC", note=f"{side}×{side}, counted")}


def training_gmac(name: str, *, side: int) -> float:
    """10⁹ multiply-adds of a training forward pass per image of a named model."""
    with torch.device("meta"):
        model, images = preset(name).build(NUM_CLASSES).train(), torch.empty(2, 3, side, side)
    with FlopCounterMode(display=False) as counter:
        model(images)
    return float(counter.get_total_flops()) / 2e9 / len(images)


if __name__ == "__main__":
    command(__doc__, entries)
