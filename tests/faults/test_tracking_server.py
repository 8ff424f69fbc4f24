"""A real MLflow server that is stopped, killed and started late while a training sends its points."""

from __future__ import annotations

import gc
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from jobs.specs import Job, TrackingSpec
from jobs.tracked_run import Run, curve_points
from jobs.tracking import track
from jobs.training.loop import train
from jobs.training.notice import Notices, Stop
from jobs.training.plan import Tracking, Worker
from jobs.training.points import read_points
from pipelines.samples import Part, SampleIndex, build_index
from tests.faults.training import last_step, wait_for
from tests.jobs.tiny_training import CPU, TinySpec, plan_of, tiny_recipe
from tests.tiny_data import write_dataset

STOPPED_S = 60.0
TICK_S = 1 / os.sysconf("SC_CLK_TCK")

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(600)]


class MlflowServer:
    """`mlflow server` on a database file, in processes of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self._port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it answers."""
        store = ("--backend-store-uri", f"sqlite:///{self._folder}/server.db")
        files = ("--artifacts-destination", str(self._folder / "artifacts"), "--serve-artifacts")
        place = ("--host", "127.0.0.1", "--port", str(self._port), "--workers", "1")
        # Its queues of jobs would share the processor whose use is measured.
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with (self._folder / "server.log").open("ab") as log:
            command = [sys.executable, "-m", "mlflow", "server", *store, *files, *place]
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
        wait_for(self._answers, what="an answer of the MLflow server", alive=lambda: True)

    def send(self, number: int) -> None:
        """Send a signal to all of its processes."""
        assert self._process is not None
        os.killpg(self._process.pid, number)
        if number == signal.SIGKILL:
            self._process.wait()
            self._process = None

    def close(self) -> None:
        """End it, whatever state it is in."""
        if self._process is not None:
            self.send(signal.SIGKILL)

    def _answers(self) -> bool:
        """Whether it lists its experiments: the first call takes longest."""
        question = urllib.request.Request(
            f"{self.uri}/api/2.0/mlflow/experiments/search",
            data=b'{"max_results": 1}',
            headers={"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(question, timeout=60) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False


@pytest.fixture
def server(tmp_path: Path) -> Iterator[MlflowServer]:
    running = MlflowServer(tmp_path)
    yield running
    running.close()


@pytest.fixture
def few_objects() -> Iterator[None]:
    """Python collects garbage in whichever thread it falls due; what earlier tests left here takes it half a second."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> SampleIndex:
    root = tmp_path_factory.mktemp("data")
    write_dataset(root, shard_sizes=(6, 7))
    return build_index([Part(dataset=str(root))])


@dataclass(frozen=True)
class Cost:
    """Processor seconds of this process so far, and those of the thread that sends points."""

    steps: int
    process_s: float
    sender_s: float

    def share_since(self, before: Cost) -> float:
        """What the sender took, as a share of everything else."""
        sender = self.sender_s - before.sender_s
        return sender / max(self.process_s - before.process_s - sender, TICK_S)


def cost(run: Path) -> Cost:
    senders = [thread.native_id for thread in threading.enumerate() if thread.name == "mlflow-sender"]
    return Cost(last_step(run), time.process_time(), sum(_thread_s(number) for number in senders if number))


def _thread_s(number: int) -> float:
    fields = Path(f"/proc/self/task/{number}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * TICK_S


def train_beside(
    index: SampleIndex, folder: Path, tracked: Run, interfere: Callable[[Callable[[int], None]], None]
) -> None:
    """Train until `interfere`, which can wait for a step, has done its worst."""
    recipe = tiny_recipe(model=TinySpec(norm=True, width=33, pause_s=0.02), steps=100_000, global_batch=8)
    tracking = Tracking(tracked.run_id, tracked.tracking_uri)
    plan = plan_of(index, folder, recipe, checkpoint_every=100_000, log_every=5, tracking=tracking)
    notices, failures = Notices(), []

    def work() -> None:
        try:
            interfere(lambda step: wait_for(lambda: last_step(folder) >= step, what=f"step {step}", alive=lambda: True))
        except BaseException as error:  # handed to the test
            failures.append(error)
        notices.give(Stop.TAKEN_AWAY, "the test is over")

    thread = threading.Thread(target=work)
    thread.start()
    train(plan, Worker(rank=0, world=1, device=CPU), notices=notices)
    thread.join()
    if failures:
        raise failures[0]


def check_every_point_is_there_once(tracked: Run, folder: Path) -> int:
    """Compare the run's own curve with the server's; how many points there are."""
    from mlflow import MlflowClient

    client = MlflowClient(tracked.tracking_uri)
    recorded = [tuple(point) for point in curve_points(read_points(str(folder)))]
    keys = {point[0] for point in recorded}
    histories = [client.get_metric_history(tracked.run_id, key) for key in sorted(keys)]
    stored = Counter(
        (point.key, point.value, point.timestamp, point.step) for history in histories for point in history
    )
    assert stored == Counter(recorded), "each once, with its value and its time"
    return len(recorded)


def job_at(server: MlflowServer, **changes: Any) -> Job:
    return Job(name="faults", tracking=TrackingSpec(uri=server.uri, **changes))


@pytest.mark.usefixtures("few_objects")
def test_a_server_stopped_for_a_minute_gets_every_point_once_and_costs_the_training_less_than_a_hundredth(
    server: MlflowServer, index: SampleIndex, tmp_path: Path, tell: Callable[[str], None]
) -> None:
    server.start()
    folder, shares = tmp_path / "run", {}

    def stop_for_a_minute(reach: Callable[[int], None]) -> None:
        reach(100)  # the client library is loaded by then
        before = cost(folder)
        reach(before.steps + 200)
        shares["server answers"] = (before, answered := cost(folder))
        server.send(signal.SIGSTOP)
        time.sleep(STOPPED_S)
        shares["server stopped"] = (answered, stopped := cost(folder))
        server.send(signal.SIGCONT)
        reach(stopped.steps + 100)

    with track(job_at(server), verb="train", output=str(folder)) as tracked:
        train_beside(index, folder, tracked, stop_for_a_minute)
        tracked.log_curve(read_points(str(folder)))
    num_points = check_every_point_is_there_once(tracked, folder)
    lines = [f"{num_points} points"]
    for state, (before, after) in shares.items():
        steps, share = after.steps - before.steps, after.share_since(before)
        each_ms = 1000 * (after.process_s - before.process_s) / steps
        lines.append(f"{state}: {steps} steps of {each_ms:.2f} ms of the processor, x {1 + share:.4f} for sending")
    tell("\n".join(lines))
    before, after = shares["server stopped"]
    assert after.share_since(before) <= 0.01


def test_a_server_that_comes_late_and_is_killed_has_every_point_once_in_the_end(
    server: MlflowServer, index: SampleIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.opening.TRY_EVERY_S", 0.5)
    folder = tmp_path / "run"

    def come_late_and_be_killed(reach: Callable[[int], None]) -> None:
        reach(50)
        server.start()
        reach(last_step(folder) + 200)
        server.send(signal.SIGKILL)
        reach(last_step(folder) + 100)
        server.start()
        reach(last_step(folder) + 100)

    with track(job_at(server, required=False), verb="train", output=str(folder)) as tracked:
        assert tracked.run_id == "", "the server is not there yet"
        train_beside(index, folder, tracked, come_late_and_be_killed)
        tracked.log_curve(read_points(str(folder)))
    assert check_every_point_is_there_once(tracked, folder) > 500
