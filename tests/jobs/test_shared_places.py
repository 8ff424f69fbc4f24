"""Whether every node sees the places a job names."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from jobs import shared_places
from pipelines import storage


def test_a_node_that_does_not_see_a_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [{"Alive": True, "NodeID": f"{i}" * 8, "NodeManagerAddress": f"10.0.0.{i}"} for i in range(2)]
    monkeypatch.setattr("jobs.shared_places.ray.nodes", lambda: nodes)
    monkeypatch.setattr(shared_places, "_ask_here", FarNode("11111111"))
    monkeypatch.setattr(shared_places, "NodeAffinitySchedulingStrategy", lambda node_id, soft: node_id)
    monkeypatch.setattr("jobs.shared_places.ray.get", lambda answer, timeout: answer)
    with pytest.raises(ValueError, match=r"node 10\.0\.0\.1 11111111 does not see this folder; .*s3://"):
        shared_places.check_places([str(tmp_path / "not" / "yet" / "there")])
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_known_by_its_names(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    assert shared_places.find_problems([shared_places.Probe(str(tmp_path), names=("a.png",))]) == {}
    assert list(shared_places.find_problems([shared_places.Probe(str(tmp_path), names=("b.png",))])) == [str(tmp_path)]
    gone = str(tmp_path / "gone")
    assert list(shared_places.find_problems([shared_places.Probe(gone, names=())])) == [gone]
    assert list(shared_places.find_problems([shared_places.Probe(gone, "nonce")])) == [gone]


def test_an_object_store_must_answer_on_every_node(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_credentials(uri: str) -> bool:
        raise storage.StorageError(f"{uri}: Unable to locate credentials")

    monkeypatch.setattr("jobs.shared_places.storage.exists", lambda uri: False)
    probe = shared_places.Probe("s3://bucket/not/yet/there")
    assert shared_places.find_problems([probe]) == {}
    monkeypatch.setattr("jobs.shared_places.storage.exists", no_credentials)
    assert shared_places.find_problems([probe]) == {
        "s3://bucket/not/yet/there": "does not reach the object store (Unable to locate credentials); "
        "give every node the same AWS_* variables or a role"
    }


class FarNode:
    """Stands for the remote task: one node sees none of our files."""

    def __init__(self, blind: str, node: str = "") -> None:
        self.blind, self.node = blind, node

    def options(self, *, scheduling_strategy: str) -> FarNode:
        return FarNode(self.blind, scheduling_strategy)

    def remote(self, probes: list[shared_places.Probe]) -> dict[str, str]:
        blind = self.node == self.blind
        return {probe.place: f"does not see this folder; {shared_places.REMEDY}" for probe in probes if blind}


def test_nodes_are_asked_without_loading_torch() -> None:
    code = (
        "import sys, jobs.shared_places; print([name for name in ('torch', 'timm', 'mlflow') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
