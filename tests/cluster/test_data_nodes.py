"""Data workers on other nodes than the training worker, one of which is lost, in a process of its own."""

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
from functools import partial
from pathlib import Path
import ray, torch
from ray.cluster_utils import Cluster
from pipelines.batches import RayBatches
from pipelines.batch_plan import BatchPlan
from pipelines.local_batches import LocalBatches
from pipelines.order import SampleOrder
from pipelines.samples import Part, build_index
from seg_models.recipes.recipe import AugmentSpec
from tests.tiny_data import write_dataset

class WhereOrder(SampleOrder):
    def __init__(self, index, folder):
        super().__init__(index, lanes=12, seed=0)
        if ray.is_initialized():
            Path(folder, ray.get_runtime_context().get_node_id()).touch()

folder = Path(sys.argv[1])
write_dataset(folder / "set", shard_sizes=(5, 4, 3, 6))
(folder / "nodes").mkdir()
index = build_index([Part(dataset=str(folder / "set"))])
plan = BatchPlan(partial(WhereOrder, index, folder / "nodes"), augment=AugmentSpec(crop=(128, 128)), global_batch=12,
                 steps=50)
with LocalBatches(plan) as running:
    expected = list(running)
heartbeats = {"health_check_initial_delay_ms": 1000, "health_check_period_ms": 1000, "health_check_timeout_ms": 5000,
              "health_check_failure_threshold": 3}
head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": 150 * 1024**2, "_system_config": heartbeats}
cluster = Cluster(initialize_head=True, head_node_args=head)
nodes = [cluster.add_node(num_cpus=1, object_store_memory=150 * 1024**2) for _ in range(2)]
ray.init(address=cluster.address, log_to_driver=False)
here = ray.get_runtime_context().get_node_id()
with RayBatches(plan, data_workers=2, chunk=4) as running:
    found = [next(running) for _ in range(10)]
    cluster.remove_node(nodes[0], allow_graceful=False)
    cluster.add_node(num_cpus=1, object_store_memory=150 * 1024**2)
    found += list(running)
equal = [a.ids == b.ids and torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels)
         for a, b in zip(found, expected, strict=True)]
worked = set(os.listdir(folder / "nodes")) - {here}
(folder / "answer.json").write_text(json.dumps({"equal": sum(equal), "nodes": len(worked)}))
ray.shutdown()
cluster.shutdown()
"""


@pytest.mark.cluster
@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.xdist_group("ray")
def test_data_workers_of_other_nodes_make_the_same_batches_also_when_a_node_is_lost(tmp_path: Path) -> None:
    # Not below tmp_path: Ray puts sockets there, whose paths may have 107 characters at most.
    with tempfile.TemporaryDirectory(prefix="sr-", dir="/tmp", ignore_cleanup_errors=True) as short:
        (Path(short) / "ray").mkdir()
        environment = {**os.environ, "RAY_TMPDIR": short, "RAY_AUTH_MODE": "disabled"}
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(tmp_path)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=220,
            check=False,
        )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads((tmp_path / "answer.json").read_text()) == {"equal": 50, "nodes": 3}
