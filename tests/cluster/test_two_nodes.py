"""Work over shards on a Ray of two nodes, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

SCRIPT = """
import json, os, sys
from ray.cluster_utils import Cluster
import ray
from jobs.shared_places import check_places
from pipelines.shards import ComputeSpec, ShardTask, run_shards

class Where:
    def __call__(self, payload):
        import time
        time.sleep(0.3)
        return [payload, ray.get_runtime_context().get_node_id()]

head = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 150 * 1024**2}
cluster = Cluster(initialize_head=True, head_node_args=head)
cluster.add_node(num_cpus=1, object_store_memory=150 * 1024**2)
ray.init(address=cluster.address, log_to_driver=False)
results = {}
tasks = [ShardTask(f"k{i}", i) for i in range(8)]
stats = run_shards(Where, tasks=tasks, worker_args={}, compute=ComputeSpec(actors=2, cpus=1.0),
                   on_result=results.__setitem__, label="where")
check_places([sys.argv[1]])
print(json.dumps({"values": sorted(v for v, _ in results.values()), "nodes": len({n for _, n in results.values()}),
                  "left": os.listdir(sys.argv[1])}))
ray.shutdown()
cluster.shutdown()
"""


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.timeout(240)
def test_shards_are_worked_on_by_both_nodes_and_places_are_seen_by_both(tmp_path: Path) -> None:
    (tmp_path / "place").mkdir()
    # Not below tmp_path: Ray puts sockets there, whose paths may have 107 characters at most.
    with tempfile.TemporaryDirectory(prefix="sr-", dir="/tmp", ignore_cleanup_errors=True) as short:
        (Path(short) / "ray").mkdir()
        environment = {**os.environ, "RAY_TMPDIR": short, "RAY_AUTH_MODE": "disabled"}
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(tmp_path / "place")],
            env=environment,
            capture_output=True,
            text=True,
            timeout=220,
            check=False,
        )
    assert done.returncode == 0, done.stderr[-2000:]
    answer = json.loads(done.stdout.strip().splitlines()[-1])
    assert answer == {"values": list(range(8)), "nodes": 2, "left": []}
