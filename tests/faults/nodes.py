"""A Ray cluster of several nodes on this machine, whose nodes can be added, killed and drained; a process of its own.

Ray insists that nodes are added by a main thread, and a killed node takes everything in its process group along.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
STORE_BYTES = 100 * 1024**2


class Nodes:
    """A running cluster, as a test sees it: a head of one CPU, and nodes by id."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.address: str = self._ask("address")
        self.alive: list[str] = []

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to join."""
        return {"RAY_AUTH_MODE": "disabled", "RAY_ADDRESS": self.address}

    def fill(self, count: int, *, cpus: int = 1) -> None:
        """Make sure that there are so many nodes beside the head; those that are added have so many CPUs."""
        while len(self.alive) < count:
            self.alive.append(self._ask("add", cpus))
        while len(self.alive) > count:
            self.kill(self.alive[-1])

    def kill(self, node: str) -> None:
        """Kill -9 of a node and its workers."""
        self._ask("kill", node)
        self.alive.remove(node)

    def drain(self, node: str, *, seconds: float) -> None:
        """Announce that a node is taken away after so many seconds."""
        self._ask("drain", node, seconds)
        self.alive.remove(node)

    def node_of(self, pid: int) -> str:
        """The node a process belongs to."""
        node: str = self._ask("node_of", pid)
        return node

    def _ask(self, *order: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith("answer "):
                return json.loads(line.removeprefix("answer "))
        raise AssertionError("the process of the cluster has ended")


@contextlib.contextmanager
def ray_nodes() -> Iterator[Nodes]:
    """A cluster for the length of the block, beginning with its head alone."""
    # Not below a test's folder: Ray puts sockets there, whose paths may have 107 characters at most.
    with tempfile.TemporaryDirectory(prefix="sr-", dir="/tmp", ignore_cleanup_errors=True) as short:
        (Path(short) / "ray").mkdir()
        process = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "RAY_TMPDIR": short, "RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(ROOT)},
        )
        try:
            yield Nodes(process)
        finally:
            process.communicate(timeout=120)  # its input ends, and so does it


def _main() -> None:
    from ray._raylet import GcsClient  # type: ignore[attr-defined]
    from ray.cluster_utils import Cluster

    quick = {"health_check_initial_delay_ms": 500, "health_check_period_ms": 500, "health_check_failure_threshold": 6}
    head = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": STORE_BYTES, "_system_config": quick}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    nodes: dict[str, Any] = {}

    def add(cpus: int) -> str:
        node = cluster.add_node(num_cpus=cpus, object_store_memory=STORE_BYTES)
        nodes[node.node_id] = node
        return str(node.node_id)

    def drain(node: str, seconds: float) -> bool:
        deadline_ms = int((_now() + seconds) * 1000)
        accepted, _ = GcsClient(cluster.address).drain_node(node, 2, "taken away by a test", deadline_ms)
        return bool(accepted)

    def node_of(pid: int) -> str:
        while pid > 1:
            for node_id, node in nodes.items():
                if any(info.process.pid == pid for info in node.all_processes.get("raylet", [])):
                    return node_id
            pid = _parent(pid)
        return ""

    orders: dict[str, Any] = {
        "address": lambda: cluster.address,
        "add": add,
        "kill": lambda node: cluster.remove_node(nodes.pop(node), allow_graceful=False),
        "drain": drain,
        "node_of": node_of,
    }
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        print("answer", json.dumps(orders[name](*arguments)), flush=True)
    cluster.shutdown()


def _now() -> float:
    import time

    return time.time()


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0


if __name__ == "__main__":
    _main()
