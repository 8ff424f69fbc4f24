"""What is checked before work starts."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from jobs import preflight
from jobs.specs import TrainData, TrainJob
from jobs.training.resources import Node
from pipelines.shards import ComputeSpec

CLUSTER = (Node(cpus=3), Node(cpus=1, gpus=1))


def training(**changes: Any) -> TrainJob:
    settings = {"name": "x", "recipe": "pspnet_resnet50_voc", "data": (TrainData(dataset="d"),), **changes}
    return TrainJob(**settings)


@pytest.mark.parametrize(
    ("job", "message"),
    [
        (
            training(compute=ComputeSpec(actors=3, gpus=0.5)),
            "compute.gpus: 3 actors x 0.5 GPUs do not fit, there is room for 2; "
            "the cluster has nodes with 1 x 3 CPUs, 1 x 1 CPUs and 1 GPUs",
        ),
        (training(compute=ComputeSpec(actors=5)), "compute.actors: 5 actors x 1 CPUs do not fit, there is room for 4"),
        (training(compute=ComputeSpec(actors=2, cpus=2)), "2 actors x 2 CPUs do not fit, there is room for 1"),
        (training(device="cuda", workers=2), "workers: 2 workers x 1 GPU do not fit"),
        (training(device="cpu", workers=8), "workers: 8 workers do not fit, each needs a CPU"),
        (training(device="cpu", workers=2, data_workers=3), "data_workers: 3 x 1 CPU do not fit beside 2 workers"),
    ],
)
def test_what_does_not_fit_the_cluster_is_named_with_the_figures(job: TrainJob, message: str) -> None:
    problem = preflight.problem_of(job, CLUSTER)
    assert problem is not None
    assert message in problem


def test_a_gpu_that_is_not_there_is_named() -> None:
    problem = preflight.problem_of(training(device="cuda"), [Node(cpus=4)])
    assert problem is not None
    assert problem.startswith("device: 'cuda' asked for, the cluster has no GPU")


def test_a_job_that_fits_passes() -> None:
    assert preflight.problem_of(training(device="cpu", workers=2, compute=ComputeSpec(actors=2)), CLUSTER) is None


def ray_nodes(*cpus: float) -> list[dict[str, Any]]:
    return [{"Alive": True, "Resources": {"CPU": count}} for count in cpus]


def test_a_cluster_that_grows_is_asked_and_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, asked = [ray_nodes(1), ray_nodes(1), ray_nodes(1, 4)], list[list[dict[str, float]]]()
    monkeypatch.setattr("jobs.preflight.ray.nodes", lambda: sizes.pop(0))
    monkeypatch.setattr(preflight, "_ask_for", asked.append)
    monkeypatch.setattr(preflight, "POLL_S", 0.0)
    preflight.wait_until_fits(training(workers=2, device="cpu", compute=ComputeSpec(cpus=2, wait_s=60)))
    assert sizes == []
    assert asked == [[{"CPU": 2.0}, {"CPU": 1.0}, {"CPU": 1.0}], []]


def test_a_cluster_that_does_not_grow_is_left_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.preflight.ray.nodes", lambda: ray_nodes(1))
    monkeypatch.setattr(preflight, "_ask_for", lambda wanted: pytest.fail("nobody asked for waiting"))
    with pytest.raises(ValueError, match=r"compute\.actors: 1 actors x 2 CPUs do not fit"):
        preflight.wait_until_fits(training(compute=ComputeSpec(cpus=2)))


def test_a_working_folder_that_was_replaced_is_entered_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "package"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    folder.mkdir()
    with pytest.raises(FileNotFoundError):
        os.getcwd()
    preflight.enter_again()
    assert os.getcwd() == str(folder)
