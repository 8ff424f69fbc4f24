"""What a training run takes of a cluster."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

MAX_DATA_THREADS = 16


@dataclass(frozen=True)
class Node:
    """A machine of the cluster."""

    cpus: float
    gpus: float = 0.0


@dataclass(frozen=True)
class Allocation:
    """Resources of each of the workers."""

    workers: int
    device: Literal["cpu", "cuda"]
    cpus: float
    """CPUs of each worker."""
    threads: int
    """Torch threads of each worker."""
    data_threads: int
    """Threads of each worker that decode and augment, where there are no data workers."""
    data_workers: int = 0
    """Actors of one CPU, anywhere in the cluster, that decode and augment for all workers."""
    sizes: tuple[int, ...] = ()
    """Of a group that grows and shrinks: the numbers of workers it may have, in order."""

    def text(self) -> str:
        """For a person."""
        gpu = " and 1 GPU" if self.device == "cuda" else ""
        data = f"{self.data_workers} data workers" if self.data_workers else f"{self.data_threads} data threads"
        other = ", ".join(str(size) for size in self.sizes if size != self.workers)
        elastic = f" (or {other} workers, as there is room)" if other else ""
        return f"{self.workers} x {self.cpus:g} CPU{gpu}, {self.threads} torch threads, {data}{elastic}"


def this_machine() -> list[Node]:
    """The machine a local Ray would run on."""
    return [Node(cpus=float(os.cpu_count() or 1), gpus=float(torch.cuda.device_count()))]


def nodes_of(ray_nodes: Sequence[dict[str, Any]]) -> list[Node]:
    """The living machines in the answer of `ray.nodes()`."""
    alive = [node["Resources"] for node in ray_nodes if node["Alive"]]
    return [Node(cpus=float(resources.get("CPU", 0)), gpus=float(resources.get("GPU", 0))) for resources in alive]


def allocate(
    nodes: Sequence[Node],
    *,
    workers: int,
    device: Literal["auto", "cpu", "cuda"],
    threads: int | None,
    data_workers: int = 0,
) -> Allocation:
    """Share the CPUs out among the workers and leave one for each data worker, and at least one for the data stages.

    A cluster of one CPU has none to leave. `auto` takes GPUs where there is one for every worker.

    Raises:
        ValueError: GPUs were asked for and there are too few; the data workers leave no CPU for training.
    """
    gpus = int(sum(int(node.gpus) for node in nodes))
    if device == "cuda" and gpus < workers:
        found = f"there are {gpus} GPUs" if gpus else "there is no GPU"
        raise ValueError(f"device = 'cuda' with workers = {workers}: {found}; use device = 'cpu' or fewer workers")
    use_gpu = device == "cuda" or (device == "auto" and gpus >= workers)
    check_data_workers(data_workers, cpus=sum(node.cpus for node in nodes))
    cpus = cpus_per_worker(nodes, workers=workers, use_gpu=use_gpu, data_workers=data_workers)
    share = max(1, int(cpus))
    return Allocation(
        workers=workers,
        device="cuda" if use_gpu else "cpu",
        cpus=cpus,
        threads=threads or share,
        data_threads=min(MAX_DATA_THREADS, max(2, share)) if use_gpu else max(1, share // 4),
        data_workers=data_workers,
    )


def allocate_elastic(
    nodes: Sequence[Node],
    *,
    sizes: Sequence[int],
    device: Literal["auto", "cpu", "cuda"],
    threads: int | None,
    data_workers: int = 0,
) -> Allocation:
    """Size the workers for the largest group of which each has a whole CPU now (and a GPU, where GPUs are used).

    Workers of other sizes of the group get the same. `auto` takes GPUs where there are enough for the smallest group.

    Raises:
        ValueError: GPUs were asked for and there are too few for the smallest group, or data workers leave no CPU.
    """
    gpus = int(sum(int(node.gpus) for node in nodes))
    use_gpu = device == "cuda" or (device == "auto" and gpus >= sizes[0])
    fitting = [
        size
        for size in sizes
        if cpus_per_worker(nodes, workers=size, use_gpu=use_gpu, data_workers=data_workers) >= 1
        and (not use_gpu or size <= gpus)
    ]
    found = allocate(
        nodes,
        workers=max(fitting, default=sizes[0]),
        device="cuda" if use_gpu else "cpu",
        threads=threads,
        data_workers=data_workers,
    )
    return replace(found, sizes=tuple(sizes))


def check_data_workers(data_workers: int, *, cpus: float) -> None:
    """Refuse data workers that leave no CPU for training.

    Raises:
        ValueError: there are too many, with the figures.
    """
    if data_workers and data_workers >= cpus:
        raise ValueError(
            f"data_workers = {data_workers}: each takes a CPU, and of {cpus:g} CPUs none would be left for training; "
            "use fewer, or 0 for threads in the training workers"
        )


def cpus_per_worker(nodes: Sequence[Node], *, workers: int, use_gpu: bool, data_workers: int = 0) -> float:
    """The most CPUs (whole ones if possible) that each worker can have, beside data workers of one CPU each.

    One more CPU of the cluster is left over, unless that would be the last one.
    """
    total = sum(node.cpus for node in nodes)
    spare = data_workers + (1.0 if total - data_workers > 1 else 0.0)
    for cpus in range(int(max(node.cpus for node in nodes)), 0, -1):
        if _slots(nodes, float(cpus), use_gpu=use_gpu) >= workers and total - cpus * workers >= spare:
            return float(cpus)
    return max(0.01, int(100 * (total - spare) / workers) / 100)


def _slots(nodes: Sequence[Node], cpus: float, *, use_gpu: bool) -> int:
    """How many workers of that many CPUs the nodes can hold."""
    return sum(min(int(node.cpus // cpus), int(node.gpus)) if use_gpu else int(node.cpus // cpus) for node in nodes)
