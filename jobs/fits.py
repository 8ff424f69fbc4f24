"""Whether a stage fits the machine it would run on, judged without starting anything."""

from __future__ import annotations

import os
from typing import Any

import torch

from pipelines.shards import ComputeSpec


def fits(compute: ComputeSpec) -> dict[str, Any]:
    """What a dry run says about compute: where the stage would run and what is there.

    A cluster is asked when the job starts on it; without one the stage runs on this machine.

    Raises:
        ValueError: this machine has not what the stage asks for.
    """
    address = compute.address or os.environ.get("RAY_ADDRESS")
    if address:
        return {"where": address, "fits": "checked on the cluster before work starts"}
    cpus, gpus, actors = os.cpu_count() or 1, torch.cuda.device_count(), compute.actors or 1
    if compute.gpus * actors > gpus:
        raise ValueError(f"compute.gpus: {actors} actors x {compute.gpus:g} GPUs, this machine has {gpus} GPUs")
    if compute.gpus == 0 and compute.cpus * actors > cpus:
        raise ValueError(f"compute.cpus: {actors} actors x {compute.cpus:g} CPUs, this machine has {cpus} CPUs")
    return {"where": "this machine", "cpus": cpus, "gpus": gpus, "fits": True}
