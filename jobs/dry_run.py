"""What a job would do, shown without starting anything: settings, counts, and whether it fits."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

import torch
from pydantic import BaseModel

from pipelines.shards import ComputeSpec


def show_plan(job: BaseModel, plan: Mapping[str, Any]) -> dict[str, Any]:
    """Print and return the resolved settings of a job, what it would do and, where it has stages, whether they fit.

    Raises:
        ValueError: this machine has not what a stage asks for.
    """
    compute = getattr(job, "compute", None)
    fit = {"compute": fits(compute)} if compute is not None else {}
    table = {"job": job.model_dump(mode="json"), "plan": {**plan, **fit}}
    print(json.dumps(table, indent=2))
    return table


def fits(compute: ComputeSpec) -> dict[str, Any]:
    """What a dry run says about compute: where the stage would run and what is there.

    A cluster is asked when the job starts on it; without one the stage runs on this machine.

    Raises:
        ValueError: this machine has not what the stage asks for.
    """
    if compute.cluster:
        return {"where": compute.cluster, "fits": "checked on the cluster before work starts"}
    cpus, gpus, actors = os.cpu_count() or 1, torch.cuda.device_count(), compute.actors or 1
    if compute.gpus * actors > gpus:
        raise ValueError(f"compute.gpus: {actors} actors x {compute.gpus:g} GPUs, this machine has {gpus} GPUs")
    if compute.gpus == 0 and compute.cpus * actors > cpus:
        raise ValueError(f"compute.cpus: {actors} actors x {compute.cpus:g} CPUs, this machine has {cpus} CPUs")
    return {"where": "this machine", "cpus": cpus, "gpus": gpus, "fits": True}
