"""Checks before work starts: does the job fit the cluster, and does every node see the places it names?"""

from __future__ import annotations

import os
import uuid
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from jobs.specs import Job, TrainJob
from pipelines import storage

PLACE_KEYS = ("dataset", "output", "images", "checkpoint", "init_from")


def preflight(job: Job) -> None:
    """Check a job against the running Ray cluster; call inside a Ray session, before any work.

    Raises:
        ValueError: it needs what the cluster does not have, or a node does not see one of its places.
    """
    check_fits(job)
    check_places(places(job))


def places(job: Job) -> list[str]:
    """The folders and addresses a job names, absolute, each once."""
    named = [getattr(job, key, None) for key in PLACE_KEYS]
    if isinstance(job, TrainJob):
        named += [part.dataset for part in job.data]
    return list(dict.fromkeys(storage.normalise(place) for place in named if place))


def check_fits(job: Job) -> None:
    """Compare what the job asks for with what the cluster has.

    Raises:
        ValueError: the part that is impossible, with the figures.
    """
    resources = ray.cluster_resources()
    cpus, gpus = float(resources.get("CPU", 0)), float(resources.get("GPU", 0))
    compute = job.compute
    actors = compute.actors or 1
    if compute.gpus > 0 and gpus < compute.gpus * actors:
        raise ValueError(
            f"compute.gpus: {actors} actors x {compute.gpus:g} GPUs do not fit the cluster, which has {gpus:g} GPUs"
        )
    if compute.gpus == 0 and cpus < compute.cpus * actors:
        raise ValueError(
            f"compute.actors: {actors} actors x {compute.cpus:g} CPUs do not fit the cluster, which has {cpus:g} CPUs"
        )
    if isinstance(job, TrainJob):
        _check_workers(job, cpus=cpus, gpus=gpus)


def _check_workers(job: TrainJob, *, cpus: float, gpus: float) -> None:
    if job.device == "cuda" and gpus < 1:
        raise ValueError("device: 'cuda' asked for, the cluster has no GPU; use device = \"cpu\" or a GPU node type")
    if job.device == "cuda" and job.workers > gpus:
        raise ValueError(f"workers: {job.workers} GPU workers do not fit the cluster, which has {gpus:g} GPUs")
    if job.device != "cuda" and job.workers > max(1.0, cpus):
        raise ValueError(
            f"workers: {job.workers} workers do not fit the cluster, which has {cpus:g} CPUs (one per worker at least)"
        )


def check_places(wanted: list[str]) -> None:
    """Make sure that every node sees every local place: the driver writes a nonce there, every node reads it.

    Places in an object store are seen by all nodes that have credentials; on one node there is nothing to check.

    Raises:
        ValueError: a node does not see a place; the remedy is an object store or a shared file system.
    """
    nodes = [node for node in ray.nodes() if node["Alive"]]
    local = [_folder(place) for place in wanted if not storage.is_remote(place)]
    if len(nodes) < 2 or not local:
        return
    nonces = [storage.join(place, f".segray-nonce-{uuid.uuid4().hex}") for place in dict.fromkeys(local)]
    try:
        for nonce in nonces:
            storage.write_bytes(nonce, b"segray")
        _ask_nodes(nodes, nonces)
    finally:
        for nonce in nonces:
            storage.delete(nonce)


def _folder(place: str) -> str:
    """The place itself where it is a folder, else the nearest folder above it that exists."""
    while not os.path.isdir(place):
        place = os.path.dirname(place)
    return place


def _ask_nodes(nodes: list[dict[str, Any]], nonces: list[str]) -> None:
    answers = {
        node["NodeManagerAddress"] + " " + node["NodeID"][:8]: _missing.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote(nonces)
        for node in nodes
    }
    for name, answer in answers.items():
        missing = ray.get(answer, timeout=120)
        if missing:
            raise ValueError(
                f"{os.path.dirname(missing[0])}: node {name} does not see this folder; on a cluster use an object "
                "store "
                "(s3://bucket/prefix) or a file system that every node mounts"
            )


def _find_missing(nonces: list[str]) -> list[str]:
    return [nonce for nonce in nonces if not os.path.exists(nonce)]


_missing = ray.remote(num_cpus=0)(_find_missing)
