"""Number formats of the forward pass, and the scale that keeps gradients inside fp16."""

from __future__ import annotations

import torch
from torch.amp.grad_scaler import GradScaler

from jobs.training.plan import TrainPlan


def autocast_dtype(plan: TrainPlan, device: torch.device) -> torch.dtype | None:
    """bf16 or fp16, or None for float32 throughout.

    Raises:
        ValueError: bf16 was asked for and the GPU does not have it.
    """
    has_bf16 = device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)
    if plan.precision == "bf16" and not has_bf16:
        raise ValueError(
            f"precision = 'bf16': {torch.cuda.get_device_name(device)} has no bf16; use 'fp16', 'fp32' or 'auto'"
        )
    if plan.precision == "fp16":
        return torch.float16
    wanted = plan.precision == "bf16" or (plan.precision == "auto" and device.type == "cuda" and has_bf16)
    return torch.bfloat16 if wanted else None


def gradient_scaler(dtype: torch.dtype | None, device: torch.device) -> GradScaler:
    """Scales the loss, so that small gradients are no zeros in fp16 (Micikevicius et al., ICLR 2018).

    With another format it does nothing. A step whose gradients are no finite numbers is left out and the scale halved.
    """
    return GradScaler(device.type, enabled=dtype == torch.float16)
