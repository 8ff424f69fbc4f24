"""Does every node of a cluster see the places a job names?

Every node imports this module anew, and a job waits for that: it must not load torch, nor what loads it.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Sequence
from typing import Any, NamedTuple

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipelines import storage

MAX_LISTED = 1000
NODE_TIMEOUT_S = 120
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
