"""What is checked before work starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jobs import preflight
from jobs.specs import EvaluateJob, TrainData, TrainJob
from pipelines.shards import ComputeSpec

CLUSTER = {"CPU": 4.0, "GPU": 1.0}


def training(**changes: Any) -> TrainJob:
    settings = {"name": "x", "recipe": "pspnet_resnet50_voc", "data": (TrainData(dataset="d"),), **changes}
    return TrainJob(**settings)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    resources = dict(CLUSTER)
    monkeypatch.setattr("jobs.preflight.ray.cluster_resources", lambda: resources)
    return resources


@pytest.mark.parametrize(
    ("job", "message"),
    [
        (training(compute=ComputeSpec(actors=3, gpus=0.5)), "compute.gpus: 3 actors x 0.5 GPUs do not fit"),
        (training(compute=ComputeSpec(actors=5)), "compute.actors: 5 actors x 1 CPUs do not fit"),
        (training(device="cuda", workers=2), "workers: 2 GPU workers do not fit the cluster, which has 1 GPUs"),
        (training(device="cpu", workers=8), "workers: 8 workers do not fit the cluster, which has 4 CPUs"),
    ],
)
def test_what_does_not_fit_the_cluster_is_named(cluster: dict[str, float], job: TrainJob, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        preflight.check_fits(job)


def test_a_gpu_that_is_not_there_is_named(cluster: dict[str, float]) -> None:
    cluster["GPU"] = 0.0
    with pytest.raises(ValueError, match="device: 'cuda' asked for, the cluster has no GPU"):
        preflight.check_fits(training(device="cuda"))


def test_a_job_that_fits_passes(cluster: dict[str, float]) -> None:
    preflight.check_fits(training(device="cpu", workers=2, compute=ComputeSpec(actors=2)))


def test_places_are_absolute_and_named_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    job = EvaluateJob(checkpoint="s3://b/c", dataset="d", output="d")
    assert preflight.places(job) == [str(tmp_path / "d"), "s3://b/c"]


def test_a_node_that_does_not_see_a_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [{"Alive": True, "NodeID": f"{i}" * 8, "NodeManagerAddress": f"10.0.0.{i}"} for i in range(2)]
    monkeypatch.setattr("jobs.preflight.ray.nodes", lambda: nodes)
    monkeypatch.setattr(preflight, "_missing", FarNode("11111111"))
    monkeypatch.setattr(preflight, "NodeAffinitySchedulingStrategy", lambda node_id, soft: node_id)
    monkeypatch.setattr("jobs.preflight.ray.get", lambda answer, timeout: answer)
    with pytest.raises(ValueError, match=r"node 10\.0\.0\.1 11111111 does not see this folder; .*s3://"):
        preflight.check_places([str(tmp_path / "not" / "yet" / "there")])
    assert list(tmp_path.iterdir()) == []


class FarNode:
    """Stands for the remote task: one node has no file of ours."""

    def __init__(self, blind: str, node: str = "") -> None:
        self.blind, self.node = blind, node

    def options(self, *, scheduling_strategy: str) -> FarNode:
        return FarNode(self.blind, scheduling_strategy)

    def remote(self, nonces: list[str]) -> list[str]:
        return nonces if self.node == self.blind else []
