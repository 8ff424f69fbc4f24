"""What of a machine decides the bytes of labels: fixed in a label plan, compared again by every worker."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Literal, Protocol

import torch

BFLOAT16_UNITS = ("avx512_bf16", "amx_bf16")
"""Other kernels run where a CPU has them."""


class MachinePlan(Protocol):
    """The part of a label plan that is about the machine."""

    @property
    def device(self) -> Literal["cpu", "cuda"]:
        """Where the networks run."""

    @property
    def instruction_set(self) -> str | None:
        """Of the CPU, see `instruction_set`."""

    @property
    def torch(self) -> str:
        """Version of torch."""


def instruction_set(device: Literal["cpu", "cuda"]) -> str | None:
    """This CPU's, as torch names it, with its bfloat16 units; None where the networks run on a GPU.

    Labels are equal bytes only on one kind of CPU. A GPU's are not promised to be, whatever CPU feeds it, so the driver
    of a GPU job need not have the CPU of the machines that hold the GPUs.
    """
    if device != "cpu":
        return None
    has = torch.cpu.get_capabilities()
    return "+".join([torch.backends.cpu.get_cpu_capability(), *(unit for unit in BFLOAT16_UNITS if has.get(unit))])


def check_machine(plan: MachinePlan, *, also: Sequence[str] = ()) -> None:
    """Refuse a machine whose labels would differ from the plan's.

    Args:
        also: what else the caller found to differ.

    Raises:
        ValueError: another torch, another instruction set (only where the CPU computes), no GPU; all are listed.
    """
    here, problems = str(torch.__version__), []
    if here != plan.torch:
        problems.append(f"torch is {here}, the plan says {plan.torch}")
    if plan.device == "cpu" and (found := instruction_set("cpu")) != plan.instruction_set:
        problems.append(f"instruction_set is {found}, the plan says {plan.instruction_set}")
    if plan.device == "cuda" and not torch.cuda.is_available():
        problems.append("no GPU, the plan says cuda")
    problems += also
    if problems:
        raise ValueError(
            f"machine {os.uname().nodename} cannot follow the label plan ({'; '.join(problems)}), its labels would "
            "differ: leave it out, or write another label set with --labels"
        )
