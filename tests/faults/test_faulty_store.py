"""A label set written to a real S3 server whose answers fail: equal bytes to local disk, nothing twice, no orphan."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from jobs.pssl import plan_work
from jobs.specs import PsslJob
from pipelines import label_run, storage, tables
from pipelines.label_run import OnProgress
from pipelines.pssl import run_pssl
from pipelines.shards import CommitBuffer, ShardError
from pipelines.tables import Dataset, Table
from tests.fault_proxy import Fault, FaultProxy, fault_proxy
from tests.faults.labelling import settings, write_dataset, write_weights
from tests.inline_shards import inline_shards
from tests.s3_server import BUCKET, bucket_at, start, stop

SHARDS, SAMPLES = 6, 2
LOG = "/_delta_log/"


@dataclass
class Server:
    """An S3 server that can be killed and started again on the same data."""

    folder: Path
    process: subprocess.Popen[bytes]
    endpoint: str

    def restart(self) -> None:
        """Kill -9, then start."""
        stop(self.process)
        self.process, self.endpoint = start(self.folder)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("s3")
    running = Server(folder, *start(folder))
    yield running
    stop(running.process)


@pytest.fixture
def proxy(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """The way to the server; no faults yet."""
    with fault_proxy(server.endpoint) as running, bucket_at(running.endpoint, monkeypatch):
        yield running


def label(root: str, weights: Path, *, on_progress: OnProgress | None = None) -> Table:
    """Run the job on a dataset in this process, with a commit after every shard."""
    job = PsslJob.model_validate(settings(root, weights, samples=SAMPLES))
    with inline_shards(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(label_run, "CommitBuffer", lambda commit: CommitBuffer(commit, max_receipts=1))
        work = plan_work(job)
        result = run_pssl(work, compute=job.compute, on_progress=on_progress)
    assert (result.labelled, result.rejected) == (SHARDS * 4 - 2, 2)
    return work.open()


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory, weights: Path) -> Table:
    """The labels as they come out on local disk."""
    return label(write_dataset(str(tmp_path_factory.mktemp("calm")), shards=SHARDS).root, weights)


def assert_equal(found: Table, calm: Table) -> None:
    """Equal files in table and store: nothing is missing, twice, or beside what was committed."""
    assert found.files() == calm.files()
    assert found.label_digest() == calm.label_digest()
    stored = [file.relative for file in storage.list_files(found.uri) if "_delta_log/" not in file.relative]
    assert stored == sorted(file.path for file in calm.files())


FAULTS = {
    "refused": [Fault("refuse", share=0.2)],
    "cut": [Fault("cut upload", share=0.4, methods=("PUT",)), Fault("cut download", share=0.2, methods=("GET",))],
    "lost": [Fault("lose answer", share=0.3, methods=("PUT", "DELETE", "POST"))],
    "commits lost": [Fault("lose answer", methods=("PUT",), path=f"labels/pssl{LOG}", times=2)],
}


@pytest.mark.cluster
@pytest.mark.faults
@pytest.mark.parametrize("name", FAULTS)
def test_labels_in_a_faulty_store_are_equal_bytes_and_none_is_there_twice(
    proxy: FaultProxy, calm: Table, weights: Path, name: str
) -> None:
    root = write_dataset(f"s3://{BUCKET}/{name.replace(' ', '-')}", shards=SHARDS).root
    proxy.set(*FAULTS[name])
    found = label(root, weights)
    assert all(proxy.broken())
    proxy.set()
    assert_equal(found, calm)


@pytest.mark.cluster
@pytest.mark.faults
def test_a_server_killed_and_restarted_during_the_job_loses_nothing(
    proxy: FaultProxy, server: Server, calm: Table, weights: Path
) -> None:
    root = write_dataset(f"s3://{BUCKET}/restarted", shards=SHARDS).root
    restarts: list[threading.Thread] = []

    def restart() -> None:
        server.restart()
        proxy.set(target=server.endpoint)

    def kill_once(numbers: dict[str, float], done: int) -> None:
        if not restarts:
            restarts.append(threading.Thread(target=restart))
            restarts[0].start()

    found = label(root, weights, on_progress=kill_once)
    restarts[0].join()
    assert_equal(found, calm)


@pytest.mark.cluster
@pytest.mark.faults
def test_a_store_that_stays_away_is_one_line_in_bounded_time_and_a_later_run_completes(
    proxy: FaultProxy, calm: Table, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_dataset(f"s3://{BUCKET}/away", shards=SHARDS).root
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "3")
    monkeypatch.setattr(tables, "REPEAT_S", 2.0)
    proxy.set(Fault("refuse", path="shard%3D4/", methods=("PUT",)))
    start_s = time.monotonic()
    with pytest.raises(ShardError, match=r"the object store does not answer \(.*\); when it is back") as caught:
        label(root, weights)
    assert time.monotonic() - start_s < 60
    assert "\n" not in str(caught.value)
    proxy.set(Fault("hang up"))
    for place in (root, f"{root}/labels/pssl"):
        with pytest.raises(storage.StorageError) as away:
            Dataset.open(place) if place == root else Table.open(place)
        assert "\n" not in str(away.value)
    proxy.set()
    assert [file.key.shard for file in Dataset.open(root).labels("pssl").files()] == [0, 1, 2, 3]
    assert_equal(label(root, weights), calm)
