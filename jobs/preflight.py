"""Checks before work starts: does the job fit the cluster, and does every node see the places it names?"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

import ray

from jobs.places import output_of, places
from jobs.shared_places import check_places
from jobs.specs import Job, TrainJob
from jobs.training.resources import Node, nodes_of
from pipelines import storage

POLL_S = 5.0


def preflight(job: Job) -> None:
    """Check a job against the running Ray cluster; call inside a Ray session, before any work.

    Raises:
        ValueError: it needs what the cluster does not have, its output cannot be written, or a node does not see one of
            its places.
    """
    enter_again()
    wait_until_fits(job)
    storage.check_writable(storage.normalise(output_of(job)))
    check_places(places(job))
    enter_again()


def enter_again() -> None:
    """Step into the working folder anew where it was replaced.

    Nodes on one machine share the folder of a submitted package, and the first process on the second node replaces it:
    the driver would stand in a removed folder, and MLflow asks where it stands.
    """
    try:
        os.getcwd()
    except FileNotFoundError:
        folder = os.readlink("/proc/self/cwd").removesuffix(" (deleted)")
        if os.path.isdir(folder):
            os.chdir(folder)


def wait_until_fits(job: Job) -> None:
    """Compare what the job asks for with what the cluster has; let a cluster that can grow do so.

    Raises:
        ValueError: the part that is impossible, with the figures; after `compute.wait_s` seconds.
    """
    deadline = time.monotonic() + job.compute.wait_s
    asked = False
    try:
        while True:
            problem = problem_of(job, nodes_of(ray.nodes()))
            if problem is None:
                return
            if time.monotonic() >= deadline:
                raise ValueError(problem)
            if not asked:
                print(f"waiting up to {job.compute.wait_s:g} s for the cluster to grow ({problem})", flush=True)
                _ask_for(bundles(job))
                asked = True
            time.sleep(POLL_S)
    finally:
        if asked:
            _ask_for([])  # the nodes stay as long as work holds them


def bundles(job: Job) -> list[dict[str, float]]:
    """The resources a job asks for, one entry for each actor and training worker."""
    compute = job.compute
    actor = {"GPU": compute.gpus} if compute.gpus > 0 else {"CPU": compute.cpus}
    wanted = [actor] * (compute.actors or 1)
    if isinstance(job, TrainJob):
        worker = {"GPU": 1.0, "CPU": 1.0} if job.device == "cuda" else {"CPU": 1.0}
        wanted += [worker] * job.min_workers + [{"CPU": 1.0}] * job.data_workers
    return wanted


def problem_of(job: Job, nodes: Sequence[Node]) -> str | None:
    """What of a job does not fit nodes like these, in words; None where all fits."""
    compute = job.compute
    has = f"the cluster has nodes with {_figures(nodes)}"
    room = room_for(nodes, cpus=compute.cpus, gpus=compute.gpus)
    actors = compute.actors or 1
    if room < actors:
        part, each = ("gpus", f"{compute.gpus:g} GPUs") if compute.gpus > 0 else ("actors", f"{compute.cpus:g} CPUs")
        return f"compute.{part}: {actors} actors x {each} do not fit, there is room for {room}; {has}"
    if not isinstance(job, TrainJob):
        return None
    gpus = sum(int(node.gpus) for node in nodes)
    if job.device == "cuda" and gpus == 0:
        return "device: 'cuda' asked for, the cluster has no GPU; use device = \"cpu\" or a GPU node type"
    if job.device == "cuda" and job.min_workers > gpus:
        return f"workers: {job.min_workers} workers x 1 GPU do not fit; {has}"
    cpus = sum(node.cpus for node in nodes)
    if job.device != "cuda" and job.min_workers > max(1.0, cpus):
        return f"workers: {job.min_workers} workers do not fit, each needs a CPU; {has}"
    if job.data_workers and job.min_workers + job.data_workers > cpus:
        return f"data_workers: {job.data_workers} x 1 CPU do not fit beside {job.min_workers} workers; {has}"
    return None


def room_for(nodes: Sequence[Node], *, cpus: float, gpus: float) -> int:
    """How many actors of that size the nodes can hold; an actor lies on one node."""
    if gpus > 0:
        return sum(int(node.gpus / gpus + 1e-9) for node in nodes)
    return sum(int(node.cpus / max(cpus, 0.01) + 1e-9) for node in nodes)


def _figures(nodes: Sequence[Node]) -> str:
    sizes = [f"{node.cpus:g} CPUs" + (f" and {node.gpus:g} GPUs" if node.gpus else "") for node in nodes]
    return ", ".join(f"{sizes.count(size)} x {size}" for size in dict.fromkeys(sizes)) or "nothing"


def _ask_for(wanted: list[dict[str, float]]) -> None:
    from ray.autoscaler.sdk import request_resources

    request_resources(bundles=wanted)
