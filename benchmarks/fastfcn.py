"""A FastFCN against the dilated network it replaces: the same head, weights and image, on a CPU.

The paper's claim for ResNet-101 with context encoding is 3.05 times the frames of the dilated EncNet on a GPU
(10.51 to 32.02 per second at 512×512). Here both networks are ours, so that only the upsampling differs.
"""

from __future__ import annotations

import torch

from benchmarks.measure import Effort, Entries, Measured, command, cpu_pairs
from seg_models.models import create_model, describe_model

NUM_CLASSES = 59


def entries(effort: Effort) -> Entries:
    """Time of one prediction, and its multiply-adds."""
    side, backbone = (64, "resnet50") if effort.tiny else (512, "resnet101")
    names = (f"fastfcn_{backbone}_enc", f"fastfcn_{backbone}_enc_dilated")
    ours, peer = (describe_model(name, num_classes=NUM_CLASSES, size=(side, side)).gmac for name in names)
    return {
        "fastfcn_dilated_time": _time(effort, names, side=side),
        "fastfcn_dilated_gmac": Measured(ours, peer, "GMAC", note=f"{side}×{side}, counted"),
    }


def _time(effort: Effort, names: tuple[str, str], *, side: int) -> Measured:
    torch.manual_seed(0)
    ours, peer = (create_model(name, num_classes=NUM_CLASSES).eval() for name in names)
    images = torch.randint(0, 256, (1, 3, side, side), dtype=torch.uint8)
    with torch.inference_mode():
        return cpu_pairs(
            lambda: ours(images), lambda: peer(images), effort=effort.few, note=f"{names[0]}, {side}×{side}"
        )


if __name__ == "__main__":
    command(__doc__, entries)
