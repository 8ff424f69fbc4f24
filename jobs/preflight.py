"""Checks before work starts: does the job fit the cluster, and does every node see the places it names?"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Sequence
from typing import Any, NamedTuple

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from jobs.places import output_of, places
from jobs.specs import Job, TrainJob
from jobs.training.resources import Node, nodes_of
from pipelines import storage

POLL_S = 5.0
MAX_LISTED = 1000
NODE_TIMEOUT_S = 120


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


REMEDY = "on a cluster use an object store (s3://bucket/prefix) or a file system that every node mounts"


class Probe(NamedTuple):
    """What every node must find: in a folder a file of ours or, where we may not write, the same names; in an object
    store nothing but an answer."""

    place: str
    nonce: str = ""
    names: tuple[str, ...] = ()


def check_places(wanted: Sequence[str]) -> None:
    """Make sure that every node sees every place: the driver writes a nonce into local ones, every node looks for it.

    Every node also asks the object stores, with the credentials it has. On one node there is nothing to check.

    Raises:
        ValueError: a node does not see a place, with the reason and the remedy.
    """
    nodes = [node for node in ray.nodes() if node["Alive"]]
    if len(nodes) < 2 or not wanted:
        return
    probes = [Probe(place) for place in wanted if storage.is_remote(place)]
    try:
        folders = [_folder(place) for place in wanted if not storage.is_remote(place)]
        for folder in dict.fromkeys(folders):
            probes.append(_probe(folder))
        _ask_nodes(nodes, probes)
    finally:
        for probe in probes:
            if probe.nonce:
                storage.delete(storage.join(probe.place, probe.nonce))


def _folder(place: str) -> str:
    """The place itself where it is a folder, else the nearest folder above it that exists."""
    while not os.path.isdir(place):
        place = os.path.dirname(place)
    return place


def _probe(folder: str) -> Probe:
    nonce = f".segray-nonce-{uuid.uuid4().hex}"
    try:
        storage.write_bytes(storage.join(folder, nonce), b"segray")
    except OSError:
        return Probe(folder, names=_names(folder))
    return Probe(folder, nonce)


def _names(folder: str) -> tuple[str, ...]:
    return tuple(sorted(os.listdir(folder))[:MAX_LISTED])


def _ask_nodes(nodes: list[dict[str, Any]], probes: list[Probe]) -> None:
    answers = {
        node["NodeManagerAddress"] + " " + node["NodeID"][:8]: _ask_here.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote(probes)
        for node in nodes
    }
    for name, answer in answers.items():
        problems = ray.get(answer, timeout=NODE_TIMEOUT_S)
        for place, problem in problems.items():
            raise ValueError(f"{place}: node {name} {problem}")


def find_problems(probes: Sequence[Probe]) -> dict[str, str]:
    """The places at which this machine does not find what it should, with what is wrong."""
    problems = {probe.place: _problem(probe) for probe in probes}
    return {place: problem for place, problem in problems.items() if problem is not None}


def _problem(probe: Probe) -> str | None:
    if storage.is_remote(probe.place):
        try:
            storage.exists(probe.place)  # whether or not there is anything yet, the store must answer
        except OSError as error:
            reason = str(error).removeprefix(f"{probe.place}: ")
            return f"does not reach the object store ({reason}); give every node the same AWS_* variables or a role"
        return None
    if probe.nonce:
        seen = os.path.exists(os.path.join(probe.place, probe.nonce))
    else:
        seen = os.path.isdir(probe.place) and _names(probe.place) == probe.names
    return None if seen else f"does not see this folder; {REMEDY}"


_ask_here = ray.remote(num_cpus=0)(find_problems)
