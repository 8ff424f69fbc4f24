"""MLflow runs are read back through its own client, from a database file and from a real server that comes and goes."""

from __future__ import annotations

import json
import os
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.specs import CheckJob, EvaluateJob, IngestJob, Job, TrackingSpec
from jobs.tracked_run import Run
from jobs.tracking import MetricSender, check_tracking, deliver, track, tracking_uri
from jobs.training.points import PointLog, read_points


@pytest.fixture(autouse=True)
def no_tracking_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture
def job(mlflow_database: str) -> Job:
    return Job(name="walk", tracking=TrackingSpec(uri=mlflow_database))


def client(uri: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(uri)


class Server:
    """A real MLflow server in a thread, on one port, that can be stopped and started."""

    def __init__(self, folder: Path) -> None:
        os.environ["_MLFLOW_SERVER_FILE_STORE"] = f"sqlite:///{folder}/server.db"
        os.environ["_MLFLOW_SERVER_ARTIFACT_ROOT"] = "mlflow-artifacts:/"
        os.environ["_MLFLOW_SERVER_ARTIFACT_DESTINATION"] = str(folder / "artifacts")
        os.environ["_MLFLOW_SERVER_SERVE_ARTIFACTS"] = "true"
        self._port = 0
        self.start()

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        from mlflow.server import app
        from werkzeug.serving import make_server

        self._server = make_server("127.0.0.1", self._port, app, threaded=True)
        self._port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = tmp_path_factory.mktemp("server")
        client(f"sqlite:///{folder}/server.db").search_experiments()  # makes the tables, which takes seconds
        running = Server(folder)
        client(running.uri).search_experiments()
    yield running
    running.stop()


def test_a_finished_job_leaves_one_run_with_settings_metrics_files_and_data_set(job: Job, tmp_path: Path) -> None:
    data = {"name": "scenes", "source": "/data/scenes", "fingerprint": "f" * 64, "context": "test"}
    with track(job, verb="evaluate", output=str(tmp_path / "out"), dataset=data) as run:
        run.log_metrics({"val/miou": 0.25, "val/iou/traffic light, red": 0.5}, step=3)
        run.log_image("pictures/0", np.full((4, 6, 3), 7, np.uint8), step=3)
        run.log_table("classes.json", {"class": ["sky", "road"], "iou": [0.1, None]})
        run.log_text("hello", "notes/a.txt")
    found = client(run.tracking_uri).get_run(run.run_id)
    assert found.info.status == "FINISHED"
    assert found.info.run_name == "walk"
    assert found.data.metrics == {"val/miou": 0.25, "val/iou/traffic light_ red": 0.5}
    assert found.data.params["compute.cpus"] == "1.0"
    assert found.data.tags["verb"] == "evaluate"
    assert found.data.tags["dataset.fingerprint.test"] == "f" * 64
    used = found.inputs.dataset_inputs[0].dataset
    assert (used.name, used.digest, json.loads(used.source)) == ("scenes", "f" * 36, {"uri": "/data/scenes"})
    history = client(run.tracking_uri).get_metric_history(run.run_id, "val/miou")
    assert [point.step for point in history] == [3]


def test_files_of_a_run_can_be_downloaded_and_the_job_file_is_the_whole_job(job: Job, tmp_path: Path) -> None:
    with track(job, verb="evaluate", output=str(tmp_path / "out")) as run:
        run.log_table("classes.json", {"class": ["sky"], "iou": [0.5]})
        run.log_image("pictures/0", np.zeros((4, 6, 3), np.uint8))
        (tmp_path / "report.html").write_text("<p>")
        run.log_file(tmp_path / "report.html", folder="report")
    reader = client(run.tracking_uri)
    stored = reader.download_artifacts(run.run_id, "job.json", str(tmp_path))
    assert Job.model_validate_json(Path(stored).read_text()) == job
    table = json.loads(Path(reader.download_artifacts(run.run_id, "classes.json", str(tmp_path))).read_text())
    assert table == {"columns": ["class", "iou"], "data": [["sky", 0.5]]}
    assert [item.path for item in reader.list_artifacts(run.run_id, "report")] == ["report/report.html"]
    assert any(item.path.endswith(".png") for item in reader.list_artifacts(run.run_id, "images"))


def test_a_job_that_raises_leaves_a_failed_run_and_its_error_passes_through(job: Job, tmp_path: Path) -> None:
    with pytest.raises(KeyError), track(job, verb="train", output=str(tmp_path)) as run:
        raise KeyError("lost")
    assert client(run.tracking_uri).get_run(run.run_id).info.status == "FAILED"


def test_the_same_job_continues_its_run_and_another_job_gets_its_own(job: Job, tmp_path: Path) -> None:
    with track(job, verb="train", output=str(tmp_path)) as first:
        first.log_metrics({"loss": 2.0}, step=1)
    more_actors = job.model_copy(update={"compute": job.compute.model_copy(update={"actors": 2})})
    with track(more_actors, verb="train", output=str(tmp_path)) as second:
        second.log_metrics({"loss": 1.0}, step=2)
    with track(job.model_copy(update={"name": "other"}), verb="train", output=str(tmp_path)) as third:
        pass
    assert first.run_id == second.run_id != third.run_id
    found = client(second.tracking_uri).get_run(second.run_id)
    assert found.info.status == "FINISHED"
    assert found.data.params["compute.actors"] == "null"
    assert found.data.tags["changed.compute.actors"] == "2"
    history = client(second.tracking_uri).get_metric_history(second.run_id, "loss")
    assert [point.value for point in history] == [2.0, 1.0]


def test_long_settings_are_cut_and_lists_of_tables_become_numbered_keys() -> None:
    from jobs.tracked_run import flatten

    flat = flatten({"data": [{"split": "train"}, {"split": "val"}], "names": ["a" * 999], "crop": (3, 4), "x": None})
    assert flat["data.0.split"] == "train"
    assert flat["data.1.split"] == "val"
    assert len(flat["names"]) == 500
    assert flat["crop"] == "[3, 4]"
    assert flat["x"] == "null"


def test_the_default_is_one_database_file_for_every_job_of_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    jobs = [
        IngestJob.model_validate({"source": {"kind": "folder", "images": "i"}, "dataset": "out/mine"}),
        EvaluateJob(checkpoint="c", dataset="d", output="elsewhere/evaluate"),
        CheckJob(dataset="d", output="s3://bucket/check"),
    ]
    assert {tracking_uri(job) for job in jobs} == {f"sqlite:///{tmp_path}/out/mlflow.db"}
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host:5000")
    assert tracking_uri(jobs[0]) == "http://host:5000"
    assert tracking_uri(Job(name="walk", tracking=TrackingSpec(uri="sqlite:////a.db"))) == "sqlite:////a.db"


def test_the_default_database_is_made_with_its_folder_and_artifacts_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    job = Job(name="walk")
    check_tracking(job, dry_run=True)
    assert list(tmp_path.iterdir()) == [], "a dry run leaves nothing"
    check_tracking(job)
    with track(job, verb="train", output=str(tmp_path / "elsewhere")) as run:
        pass
    assert (tmp_path / "out" / "mlflow.db").exists()
    assert client(run.tracking_uri).get_run(run.run_id).info.artifact_uri.startswith(f"{tmp_path}/out/mlflow-artifacts")


@pytest.mark.parametrize(
    ("uri", "remedy"),
    [
        ("https://user:secret@host:5000", "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"),
        ("http://secret@host", "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"),
        ("http://user:sec/secret@ret@host", "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"),
        ("postgresql+psycopg2://user:secret@host/db", "pgpass"),
    ],
)
def test_a_password_in_the_address_is_refused_and_not_repeated(
    uri: str, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusal(job: Job) -> str:
        with pytest.raises(ValueError, match=remedy) as caught:
            check_tracking(job, dry_run=True)
        assert "secret" not in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1
        return str(caught.value).partition(": ")[0]

    assert refusal(Job(name="walk", tracking=TrackingSpec(uri=uri))) == "tracking.uri"
    assert refusal(Job(name="walk", tracking=TrackingSpec(uri=uri, enabled=False))) == "tracking.uri"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert refusal(Job(name="walk")) == "MLFLOW_TRACKING_URI"
    check_tracking(Job(name="walk", tracking=TrackingSpec(enabled=False)))
    with (
        pytest.raises(ValueError, match=remedy),
        track(Job(name="walk"), verb="train", output=str(tmp_path / "out")),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("uri", ["sqlite:////data/a:b@c.db", "postgresql://user@host/db", "databricks://profile"])
def test_an_address_without_a_password_is_taken(uri: str) -> None:
    assert tracking_uri(Job(name="walk", tracking=TrackingSpec(uri=uri))) == uri


@pytest.mark.parametrize("uri", ["http://127.0.0.1:9", "bogus://host", "file:///somewhere/mlruns"])
def test_an_unreachable_server_is_a_quick_error_that_says_what_to_do(uri: str) -> None:
    job = Job(name="walk", tracking=TrackingSpec(uri=uri))
    check_tracking(job.model_copy(update={"tracking": TrackingSpec(uri=uri, enabled=False)}))
    start = time.monotonic()
    with pytest.raises(ValueError, match=r"no MLflow at .*tracking\.enabled = false"):
        check_tracking(job)
    assert time.monotonic() - start < 30  # the first one also imports mlflow; by default it would be minutes


def test_a_server_that_never_answers_is_an_error_within_seconds() -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        job = Job(name="walk", tracking=TrackingSpec(uri=f"http://127.0.0.1:{silent.getsockname()[1]}"))
        start = time.monotonic()
        with pytest.raises(ValueError, match="no MLflow"):
            check_tracking(job)
    assert time.monotonic() - start < 30


def test_disabled_tracking_touches_nothing(tmp_path: Path) -> None:
    job = Job(name="walk", tracking=TrackingSpec(enabled=False))
    with track(job, verb="train", output=str(tmp_path / "out")) as run:
        run.log_metrics({"loss": 1.0})
        run.log_image("a", np.zeros((2, 2, 3), np.uint8))
    sender = MetricSender(run.run_id, run.tracking_uri)
    sender.log({"loss": 1.0}, 1)
    assert sender.close() == 0
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_dies_in_the_middle_does_not_stop_the_job_and_gets_everything_when_it_is_back(
    server: Server, tmp_path: Path
) -> None:
    job = Job(name="walk", tracking=TrackingSpec(uri=server.uri))
    with track(job, verb="train", output=str(tmp_path / "out")) as run:
        run.log_metrics({"loss": 3.0}, step=1)
        server.stop()
        start = time.monotonic()
        for step in range(2, 40):
            run.log_metrics({"loss": 3.0 / step}, step=step)
        run.log_image("pictures/0", np.full((4, 6, 3), 9, np.uint8))
        assert time.monotonic() - start < 30
        assert len(Path(run.journal).read_text().splitlines()) == 39
        server.start()
    history = client(server.uri).get_metric_history(run.run_id, "loss")
    assert sorted(point.step for point in history) == list(range(1, 40))
    assert client(server.uri).get_run(run.run_id).info.status == "FINISHED"
    assert any(item.path.endswith(".png") for item in client(server.uri).list_artifacts(run.run_id, "images"))
    assert not Path(run.journal).exists()


def test_a_server_that_stays_away_leaves_a_journal_that_the_next_start_sends(server: Server, tmp_path: Path) -> None:
    job = Job(name="walk", tracking=TrackingSpec(uri=server.uri))
    with track(job, verb="train", output=str(tmp_path / "out")) as run:
        server.stop()
        run.log_metrics({"loss": 3.0}, step=1)
    assert Path(run.journal).exists()
    server.start()
    with track(job, verb="train", output=str(tmp_path / "out")) as again:
        pass
    assert again.run_id == run.run_id
    assert client(server.uri).get_metric_history(run.run_id, "loss")[0].value == 3.0
    assert not Path(run.journal).exists()


def test_the_sender_delivers_every_point_once_in_batches(job: Job, tmp_path: Path) -> None:
    with track(job, verb="train", output=str(tmp_path)) as run:
        sender = MetricSender(run.run_id, run.tracking_uri)
        for step in range(1500):
            sender.log({"loss": 1.0 / (step + 1)}, step)
        assert sender.close(timeout=30) == 0
    history = client(run.tracking_uri).get_metric_history(run.run_id, "loss")
    assert [point.step for point in history] == list(range(1500))


def record(points: PointLog, steps: range) -> None:
    for step in steps:
        points.log({"loss": 1.0 / step, "val/iou/a,b": 0.5}, step=step)


def steps_of(run: Run, key: str) -> list[int]:
    return sorted(point.step for point in client(run.tracking_uri).get_metric_history(run.run_id, key))


def test_a_curve_recorded_while_the_server_was_away_is_whole_in_the_end(server: Server, tmp_path: Path) -> None:
    job, folder = Job(name="walk", tracking=TrackingSpec(uri=server.uri)), str(tmp_path / "out")
    with track(job, verb="train", output=folder) as run:
        sender = MetricSender(run.run_id, run.tracking_uri)
        points = PointLog(folder, from_step=0, sender=sender)
        record(points, range(1, 50))
        while steps_of(run, "loss") != list(range(1, 50)):
            time.sleep(0.01)
        server.stop()
        start = time.monotonic()
        record(points, range(50, 200))
        assert time.monotonic() - start < 1, "training never waits for the server"
        assert sender.close(timeout=5) == 300
        run.log_curve(read_points(folder))  # the server is still away
        server.start()
    assert steps_of(run, "loss") == steps_of(run, "val/iou/a_b") == list(range(1, 200))
    history = client(run.tracking_uri).get_metric_history(run.run_id, "loss")
    recorded = {point["step"]: (point["loss"], point["time_ms"]) for point in read_points(folder)}
    assert {point.step: (point.value, point.timestamp) for point in history} == recorded


def test_a_curve_of_a_killed_worker_or_of_another_machine_is_whole_in_the_end(job: Job, tmp_path: Path) -> None:
    folder = str(tmp_path / "out")
    with track(job, verb="train", output=folder) as run:
        record(PointLog(folder, from_step=0), range(1, 10))  # nothing of these was sent
        sender = MetricSender(run.run_id, run.tracking_uri)
        resumed = PointLog(folder, from_step=5, sender=sender)
        record(resumed, range(6, 1200))
        resumed.close()
        assert steps_of(run, "loss") == list(range(1, 1200)), "with those that the killed one had recorded"
        for _ in range(2):
            run.log_curve(read_points(folder))
    assert steps_of(run, "loss") == list(range(1, 1200))


def test_a_worker_that_does_not_see_the_database_file_does_not_make_another(tmp_path: Path) -> None:
    sender = MetricSender("abc", f"sqlite:///{tmp_path}/elsewhere/mlflow.db")
    sender.log({"loss": 1.0}, 1)
    sender.close()
    assert not (tmp_path / "elsewhere").exists()


def test_a_step_that_the_server_has_keeps_its_first_point_when_its_machine_took_the_journal_along(
    job: Job, tmp_path: Path
) -> None:
    with track(job, verb="train", output=str(tmp_path / "out")) as run:
        first, second = (
            PointLog(str(tmp_path / name), from_step=0, sender=sender_of(run)) for name in ("dead", "next")
        )
        for points, loss in ((first, 1.0), (second, 2.0)):
            for step in (1, 2, 3) if points is first else (2, 3, 4):
                points.log({"loss": loss}, step=step)
            points.close()
    history = client(run.tracking_uri).get_metric_history(run.run_id, "loss")
    assert sorted((point.step, point.value) for point in history) == [(1, 1.0), (2, 1.0), (3, 1.0), (4, 2.0)]


def sender_of(run: Run) -> MetricSender:
    return MetricSender(run.run_id, run.tracking_uri)


# -- a server that comes late ----------------------------------------------------------------------------------------


def test_a_job_may_begin_without_its_server_and_its_run_is_whole_when_that_has_come(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.opening.TRY_EVERY_S", 0.1)
    job = Job(name="walk", tracking=TrackingSpec(uri=server.uri, required=False))
    folder = str(tmp_path / "out")
    server.stop()
    check_tracking(job, output=folder)
    with track(job, verb="train", output=folder) as run:
        assert run.run_id == ""
        run.log_metrics({"val/miou": 0.5}, step=3)
        points = PointLog(folder, from_step=0, sender=MetricSender("", run.tracking_uri, output=folder))
        record(points, range(1, 50))
        server.start()
        deadline = time.monotonic() + 60
        while not run.run_id and time.monotonic() < deadline:
            time.sleep(0.05)
        points.close()
    found = client(server.uri).get_run(run.run_id)
    assert (found.info.status, found.info.run_name, found.data.metrics["val/miou"]) == ("FINISHED", "walk", 0.5)
    assert steps_of(run, "loss") == list(range(1, 50))
    assert not Path(run.journal).exists()


def test_a_job_whose_server_never_came_ends_well_and_the_same_command_tells_it_later(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    job = Job(name="walk", tracking=TrackingSpec(uri=server.uri, required=False))
    folder = str(tmp_path / "out")
    server.stop()
    with track(job, verb="train", output=folder) as run:
        record(PointLog(folder, from_step=0), range(1, 4))
    assert "when the server is back, the same command sends them" in caplog.text
    deliver(job, verb="train", output=folder, curve=read_points(folder))
    server.start()
    deliver(job, verb="train", output=folder, curve=read_points(folder))
    note = json.loads((tmp_path / "out" / "mlflow.json").read_text())
    found = client(server.uri).get_run(note["run_id"])
    assert (found.info.status, found.info.run_name) == ("FINISHED", "walk")
    assert steps_of(Run(note["run_id"], server.uri, None), "loss") == [1, 2, 3]
    assert not Path(run.journal).exists()


def test_a_job_that_was_tracked_before_goes_on_while_its_server_is_away(server: Server, tmp_path: Path) -> None:
    job, folder = Job(name="walk", tracking=TrackingSpec(uri=server.uri)), str(tmp_path / "out")
    with track(job, verb="train", output=folder) as first:
        pass
    server.stop()
    with pytest.raises(ValueError, match="no MLflow"):
        check_tracking(job, output=str(tmp_path / "other"))
    check_tracking(job, output=folder)
    with track(job, verb="train", output=folder) as again:
        again.log_metrics({"loss": 1.0}, step=1)
        server.start()
    assert again.run_id == first.run_id
    assert steps_of(again, "loss") == [1]


def test_points_that_do_not_fit_the_queue_are_counted_as_not_sent() -> None:
    from jobs.outbox import BackgroundSender

    def away(entry: Any) -> None:
        raise ConnectionError("away")

    sender = BackgroundSender("run", send=away, max_points=3)
    for step in range(5):
        sender.put([["loss", 1.0, 0, step]])
    assert sender.close(timeout=5) == 5


# -- a job that has ended --------------------------------------------------------------------------------------------


def test_an_ended_job_delivers_its_journal_its_curve_and_its_status(server: Server, tmp_path: Path) -> None:
    job, folder = Job(name="walk", tracking=TrackingSpec(uri=server.uri)), str(tmp_path / "out")
    with track(job, verb="train", output=folder) as run:
        server.stop()
        record(PointLog(folder, from_step=0), range(1, 4))
        run.log_metrics({"val/miou": 0.5}, step=3)
    deliver(job, verb="train", output=folder, curve=read_points(folder))  # the server is still away: no error
    assert Path(run.journal).exists()
    server.start()
    deliver(job.model_copy(update={"tracking": TrackingSpec(enabled=False)}), verb="train", output=folder)
    assert Path(run.journal).exists(), "tracking is off"
    deliver(job, verb="train", output=folder, curve=read_points(folder))
    found = client(server.uri).get_run(run.run_id)
    assert (found.info.status, found.data.metrics["val/miou"]) == ("FINISHED", 0.5)
    assert steps_of(run, "loss") == [1, 2, 3]
    assert not Path(run.journal).exists()
    deliver(job, verb="train", output=folder, curve=read_points(folder))
    again = client(server.uri).get_run(run.run_id)
    assert (again.info.end_time, steps_of(run, "loss")) == (found.info.end_time, [1, 2, 3])


def test_the_run_of_a_driver_that_was_killed_after_its_last_word_becomes_finished(job: Job, tmp_path: Path) -> None:
    folder = str(tmp_path / "out")
    killed = track(job, verb="train", output=folder)
    run = killed.__enter__()
    assert client(run.tracking_uri).get_run(run.run_id).info.status == "RUNNING"
    deliver(job, verb="train", output=folder)
    assert client(run.tracking_uri).get_run(run.run_id).info.status == "FINISHED"
    killed.__exit__(None, None, None)


def test_nothing_is_delivered_for_a_job_that_was_not_tracked_or_whose_database_is_gone(tmp_path: Path) -> None:
    job = Job(name="walk")
    deliver(job, verb="train", output=str(tmp_path))
    note = {"run_id": "a", "tracking_uri": f"sqlite:///{tmp_path}/gone/mlflow.db"}
    (tmp_path / "mlflow.json").write_text(json.dumps(note))
    deliver(job, verb="train", output=str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.json"]


def test_what_the_server_refuses_is_said_and_not_kept(
    job: Job, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with track(job, verb="train", output=str(tmp_path)) as run:
        run.log_metrics({"k" * 400: 2.0})
        run.log_metrics({"loss": 1.0})
    assert "refused metrics" in caplog.text
    assert not Path(run.journal).exists()
    assert client(run.tracking_uri).get_run(run.run_id).data.metrics == {"loss": 1.0}


def test_one_entry_that_always_fails_does_not_hold_back_the_others(tmp_path: Path) -> None:
    from jobs.journal import Entry, Journal

    journal = Journal(tmp_path / "pending.jsonl")
    for name in ("a", "bad", "b", "c"):
        journal.append(Entry("run", "image", {"name": name, "png": b"\x00\xff"}))
    sent = []

    def send(entry: Entry) -> None:
        if entry.payload["name"] == "bad":
            raise OSError("disk full")
        sent.append(entry.payload["name"])

    assert journal.replay(send) == 3
    assert sent == ["a", "b", "c"]
    assert [entry.payload for entry in journal.entries()] == [{"name": "bad", "png": b"\x00\xff"}]


def test_a_journal_cut_in_the_middle_of_a_line_gives_what_was_whole(tmp_path: Path) -> None:
    from jobs.journal import Entry, Journal

    journal = Journal(tmp_path / "pending.jsonl")
    journal.append(Entry("run", "tags", {"tags": {"a": "1"}}))
    with journal.path.open("a") as file:
        file.write('{"run_id": "run", "ki')
    assert journal.entries() == [Entry("run", "tags", {"tags": {"a": "1"}})]


def test_a_journal_that_cannot_be_written_loses_the_entry_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from jobs.journal import Entry, Journal

    (tmp_path / "file").write_text("")
    Journal(tmp_path / "file" / "pending.jsonl").append(Entry("run", "tags", {"tags": {}}))
    assert "lost for tracking" in caplog.text
