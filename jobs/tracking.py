"""MLflow: one run per job, opened by the driver. The only file that imports mlflow.

Only the client API is used: the fluent one keeps its state in threads and processes. Before work starts an unreachable
server is an error, unless `tracking.required` is false or this very run was tracked there before; after that it never
stops the job: what cannot be sent goes to a journal and is sent again later. The journal of a training curve is the
curve's own file.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import json
import logging
import os
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from jobs.identity import identity_of, tags_of
from jobs.journal import Entry, Journal
from jobs.opening import Opening
from jobs.outbox import BATCH_METRICS, BackgroundSender, Outbox, Refused, Send, first_line
from jobs.tracked_run import DatasetRecord, Run, curve_points, metric_key, points_of
from pipelines import storage

if TYPE_CHECKING:  # a training worker that sends metrics need not load what jobs are made of
    from jobs.specs import Job

log = logging.getLogger(__name__)

BATCH_PARAMS = 100  # MLflow's limit for one call
CHECK_TIMEOUT_S = 3
DEFAULT_DATABASE = "out/mlflow.db"
__all__ = ["MetricSender", "Run", "check_tracking", "deliver", "metric_key", "track", "tracking_uri"]
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ASYNC_LOGGING": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
}


def tracking_uri(job: Job) -> str:
    """Where the run of a job goes: its setting, else MLFLOW_TRACKING_URI, else `out/mlflow.db` in the current folder.

    Raises:
        ValueError: the address holds a password, which reports, results and settings would publish.
    """
    given = {"tracking.uri": job.tracking.uri, "MLFLOW_TRACKING_URI": os.environ.get("MLFLOW_TRACKING_URI")}
    for key, uri in given.items():
        if uri:
            _refuse_password(key, uri)
            return uri
    return f"sqlite:///{os.path.abspath(DEFAULT_DATABASE)}"


def _refuse_password(key: str, uri: str) -> None:
    scheme, _, rest = uri.partition("://")
    user, at, place = rest.rpartition("@")
    if not at or scheme.startswith("sqlite"):
        return
    if scheme in ("http", "https"):
        remedy = "give them in MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
    elif ":" in user:
        remedy = "give the password where the database's client looks for it (such as ~/.pgpass)"
    else:
        return  # a user's name alone is no secret, and a database client asks for it here
    raise ValueError(f"{key}: {scheme}://…@{place} holds a user name or password, which would be published; {remedy}")


def check_tracking(job: Job, *, dry_run: bool = False, output: str | None = None) -> None:
    """Make sure, within seconds, that the tracking server answers. A dry run makes no database file.

    Args:
        output: where the job's run may have been noted; one that was tracked before goes on without the server.

    Raises:
        ValueError: it does not, or its address holds a password; the message says what to do.
    """
    if not (job.tracking.enabled or job.tracking.uri):  # an address that is not used is still published
        return
    uri = tracking_uri(job)
    if job.tracking.enabled and not (dry_run and _is_missing_file(uri)):
        try:
            _connect(uri)
        except ValueError:
            noted = None if output is None else _read_note(storage.normalise(output))
            if job.tracking.required and (noted is None or noted["tracking_uri"] != uri):
                raise


def deliver(job: Job, *, verb: str, output: str, curve: Sequence[Mapping[str, Any]] = ()) -> None:
    """Complete the run of a job that has ended: what its server did not take, the rest of its curve, its status.

    Never raises for a reason on the server's side: the job is done, and the next call tries again.

    Args:
        verb: what the job did.
        output: the job's folder or object-store prefix, whose `mlflow.json` names the run.
        curve: see `Run.log_curve`.
    """
    place = storage.normalise(output)
    if not job.tracking.enabled:
        return
    try:
        run = _ended_run(job, verb, place)
        if run is None:
            return
        run.drain()
        run.log_curve(curve)
        if _client(run.tracking_uri).get_run(run.run_id).info.status != "FINISHED":
            run.close("FINISHED")
    except Exception as error:  # mlflow, sqlalchemy and requests each raise their own kinds
        log.warning(
            "MLflow: the run of %s may be incomplete there (%s); the same command completes it",
            output,
            first_line(error),
        )


def _ended_run(job: Job, verb: str, output: str) -> Run | None:
    """The run of a job that has ended, made now if its server was never there; None where nothing was tracked."""
    note = _read_note(output)
    if note is None and not _journal_path(output).exists():
        return None
    uri = tracking_uri(job) if note is None else note["tracking_uri"]
    if note is not None and _is_missing_file(uri):
        return None
    client = _connect(uri)
    if note is not None:
        return Run(note["run_id"], uri, _outbox(functools.partial(_apply, client), output))
    opening = _opening(job, verb, output)
    opening.open()
    return Run(opening.run_id, uri, _outbox(opening, output))


@contextlib.contextmanager
def track(
    job: Job, *, verb: str, output: str, dataset: DatasetRecord | Sequence[DatasetRecord] | None = None
) -> Iterator[Run]:
    """The MLflow run of a job, for the length of the block; FAILED when the block raises, else FINISHED.

    The same job with the same output continues its run, whose id is kept in `<output>/mlflow.json`.

    Args:
        verb: what the job does; becomes a tag.
        output: the job's folder or object-store prefix.
        dataset: what the job reads.

    Raises:
        ValueError: the tracking server does not answer.
    """
    if not job.tracking.enabled:
        yield Run("", "", None)
        return
    opening = _opening(job, verb, storage.normalise(output))
    run = _open_run(job, opening, verb=verb, output=storage.normalise(output))
    for record in [dataset] if isinstance(dataset, Mapping) else dataset or ():
        run.log_dataset(record)
    try:
        yield run
    except BaseException as error:
        opening.close()
        run.close("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        raise
    opening.close()
    run.close("FINISHED")


class MetricSender:
    """Sends metrics from a training worker in the background; `log` never waits for the server.

    Points carry their own time, so sending one twice stores it once, and a step that the server has keeps its first
    point. What cannot be sent is left to the driver, which compares the curve's file with the server in the end
    (`Run.log_curve`).
    """

    def __init__(self, run_id: str, tracking_uri: str, *, output: str | None = None) -> None:
        """
        Args:
            run_id: empty where the driver has not reached the server yet, or nothing is tracked.
            tracking_uri: empty where nothing is tracked.
            output: where the driver will note the id when it has it.
        """
        lost = not tracking_uri or _is_missing_file(tracking_uri) or (not run_id and output is None)
        send = _CurveSender(tracking_uri, run_id=run_id, output=output)
        self._sender = None if lost else BackgroundSender(run_id, send=send)

    def catch_up(self, curve: Sequence[Mapping[str, Any]]) -> None:
        """Queue what an earlier process recorded: points with `step`, `time_ms` and numbers."""
        if self._sender is not None:
            self._sender.put_first(curve_points(curve))

    def log(self, metrics: Mapping[str, float], step: int, time_ms: int | None = None) -> None:
        """Queue the numbers of one step."""
        if self._sender is not None:
            self._sender.put(points_of(metrics, step, time_ms))

    def close(self, timeout: float = 10.0) -> int:
        """Send what is queued, for at most `timeout` seconds; return how many points were never sent."""
        return self._sender.close(timeout) if self._sender is not None else 0


def _beside(output: str) -> str:
    place = storage.normalise(output)
    return os.getcwd() if storage.is_remote(place) else storage.parent(place)


def _connect(uri: str) -> Any:
    """A client whose server has answered within CHECK_TIMEOUT_S.

    Raises:
        ValueError: it has not.
    """
    _set_environment()
    limits = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": str(CHECK_TIMEOUT_S)}
    before = {key: os.environ[key] for key in limits}
    os.environ.update(limits)
    try:
        client = _client(uri)
        with _quiet():
            client.search_experiments(max_results=1)
    except Exception as error:  # mlflow, sqlalchemy and requests each raise their own kinds
        raise ValueError(_unreachable(uri, error)) from error
    finally:
        os.environ.update(before)
    return client


def _set_environment() -> None:
    for key, value in _ENVIRONMENT.items():
        os.environ.setdefault(key, value)


@functools.lru_cache(maxsize=16)
def _client(uri: str) -> Any:
    """An MLflow client; making the first one of a SQLite file creates its tables (a second or two)."""
    _set_environment()
    with _quiet():
        from mlflow import MlflowClient

        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)
        return MlflowClient(uri, registry_uri=uri)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Importing mlflow and opening a store raise deprecation warnings of their dependencies."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class _CurveSender:
    """Sends points of which the server has no step yet; it is asked once for what it has of a number."""

    def __init__(self, uri: str, *, run_id: str, output: str | None) -> None:
        self._uri, self._run_id, self._output = uri, run_id, output
        self._there: dict[str, set[int]] = {}

    def __call__(self, entry: Entry) -> None:
        client, run_id = _client(self._uri), self._id()  # the first call loads mlflow, in the sender's thread
        points = entry.payload["points"]
        for key in {point[0] for point in points} - set(self._there):
            self._there[key] = {point.step for point in client.get_metric_history(run_id, key)}
        new = [point for point in points if point[3] not in self._there[point[0]]]
        if new:
            _apply(client, Entry(run_id, "metrics", {"points": new}))

    def _id(self) -> str:
        if not self._run_id:
            note = None if self._output is None else _read_note(self._output)
            if note is None:
                raise ConnectionError(f"no run at {self._uri} yet")
            self._run_id = note["run_id"]
        return self._run_id


def _is_missing_file(uri: str) -> bool:
    """Whether the database file is not on this machine: it would be made empty."""
    return uri.startswith("sqlite:///") and not os.path.exists(_sqlite_file(uri))


def _outbox(send: Send, output: str) -> Outbox:
    return Outbox(send, journal=Journal(_journal_path(output)))


def _unreachable(uri: str, error: Exception) -> str:
    return (
        f"tracking.uri: no MLflow at {uri} ({first_line(error).strip()}); start the server, correct tracking.uri or "
        "MLFLOW_TRACKING_URI (a file: sqlite:////path/mlflow.db), or set tracking.enabled = false"
    )


def _opening(job: Job, verb: str, output: str) -> Opening:
    """The run of a job, not yet opened. One of an earlier process of the same job keeps its id."""
    uri, identity = tracking_uri(job), identity_of(job, verb)
    noted = _own_note(output, uri, identity)

    def open_run() -> str:
        client = _connect(uri)
        try:
            run_id = _remembered(client, _own_note(output, uri, identity)) or _create(client, job, uri, output)
        except Exception as error:
            raise ValueError(_unreachable(uri, error)) from error
        note = {"run_id": run_id, "tracking_uri": uri, "experiment": job.tracking.experiment, "identity": identity}
        storage.write_text(_note_place(output), json.dumps(note, indent=2))
        return run_id

    def send(entry: Entry) -> None:
        _apply(_client(uri), entry)

    return Opening(open_run, send, run_id="" if noted is None else noted["run_id"])


def _open_run(job: Job, opening: Opening, *, verb: str, output: str) -> Run:
    uri = tracking_uri(job)
    run = Run(opening.run_id, uri, _outbox(opening, output))
    try:
        opening.open()
    except ValueError as error:
        if job.tracking.required and not opening.run_id:
            raise
        log.warning("%s; the job begins without it, what it logs waits in %s", first_line(error), run.journal)
        if not opening.run_id:
            storage.delete(_note_place(output))  # of another job's run: workers would send to that

        def then() -> None:
            run.run_id = opening.run_id
            run.drain()

        opening.keep_trying(then)
    else:
        run.run_id = opening.run_id
        run.drain()  # what an earlier process of this job could not send
    run.set_tags(tags_of(job, verb))
    settings = job.model_dump(mode="json")
    run.log_params(settings)
    run.log_dict(settings, "job.json")
    return run


def _journal_path(output: str) -> Path:
    if not storage.is_remote(output):
        return Path(output) / "mlflow-pending.jsonl"
    name = hashlib.sha256(output.encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"segray-mlflow-{name}.jsonl"


def _note_place(output: str) -> str:
    """Where a job notes which run it is."""
    return storage.join(output, "mlflow.json")


def _read_note(output: str) -> dict[str, str] | None:
    place = _note_place(output)
    if not storage.exists(place):
        return None
    note: dict[str, str] = json.loads(storage.read_bytes(place))
    return note


def _own_note(output: str, uri: str, identity: str) -> dict[str, str] | None:
    """What this very job noted of its run on this server."""
    note = _read_note(output)
    return note if note is not None and (note["tracking_uri"], note["identity"]) == (uri, identity) else None


def _remembered(client: Any, note: dict[str, str] | None) -> str | None:
    """The id of this job's own earlier run, if the server still has it; it is running again."""
    if note is None:
        return None
    from mlflow.exceptions import MlflowException

    try:
        found = client.get_run(note["run_id"])
    except MlflowException:
        return None
    if found.info.lifecycle_stage != "active":
        return None
    client.update_run(note["run_id"], status="RUNNING")
    return str(note["run_id"])


def _create(client: Any, job: Job, uri: str, output: str) -> str:
    name = job.tracking.experiment
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        from mlflow.exceptions import MlflowException

        try:
            identifier = client.create_experiment(name, artifact_location=_artifact_root(uri, output, name))
        except MlflowException:  # another job made it a moment ago
            identifier = client.get_experiment_by_name(name).experiment_id
    else:
        identifier = experiment.experiment_id
    return str(client.create_run(identifier, run_name=job.name).info.run_id)


def _artifact_root(uri: str, output: str, experiment: str) -> str | None:
    """Beside the database file; a server decides itself."""
    if urlsplit(uri).scheme in ("http", "https", "databricks"):
        return None
    folder = os.path.dirname(_sqlite_file(uri)) if uri.startswith("sqlite:///") else _beside(output)
    return os.path.join(folder, "mlflow-artifacts", re.sub(r"[^A-Za-z0-9_.-]", "_", experiment))


def _sqlite_file(uri: str) -> str:
    return os.path.abspath(uri.removeprefix("sqlite:///"))


def _apply(client: Any, entry: Entry) -> None:
    """Send one entry.

    Raises:
        Refused: the server will never take it.
        Exception: anything else; it can be tried again.
    """
    from mlflow.exceptions import MlflowException

    try:
        _SENDERS[entry.kind](client, entry.run_id, entry.payload)
    except MlflowException as error:
        if error.error_code in ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_DOES_NOT_EXIST", "INVALID_STATE"):
            raise Refused(str(error)) from error
        raise
    except (TypeError, FileNotFoundError) as error:
        raise Refused(str(error)) from error


def _send_metrics(client: Any, run_id: str, payload: dict[str, Any]) -> None:
    from mlflow.entities import Metric

    client.log_batch(run_id, metrics=[Metric(*point) for point in payload["points"]])


def _send_curve(client: Any, run_id: str, payload: dict[str, Any]) -> None:
    """The points of which the server has no step yet; a step that was trained twice keeps its first point."""
    keys = {point[0] for point in payload["points"]}
    there = {key: {point.step for point in client.get_metric_history(run_id, key)} for key in keys}
    missing = [point for point in payload["points"] if point[3] not in there[point[0]]]
    for start in range(0, len(missing), BATCH_METRICS):
        _send_metrics(client, run_id, {"points": missing[start : start + BATCH_METRICS]})


def _send_params(client: Any, run_id: str, payload: dict[str, Any]) -> None:
    from mlflow.entities import Param

    there = client.get_run(run_id).data.params
    new = [Param(key, value) for key, value in payload["params"].items() if key not in there]
    for start in range(0, len(new), BATCH_PARAMS):
        client.log_batch(run_id, params=new[start : start + BATCH_PARAMS])
    changed = {f"changed.{key}": value for key, value in payload["params"].items() if there.get(key, value) != value}
    _send_tags(client, run_id, {"tags": changed})


def _send_tags(client: Any, run_id: str, payload: dict[str, Any]) -> None:
    from mlflow.entities import RunTag

    client.log_batch(run_id, tags=[RunTag(key, value) for key, value in payload["tags"].items()])


def _send_image(client: Any, run_id: str, payload: dict[str, Any]) -> None:
    pixels = np.asarray(Image.open(io.BytesIO(payload["png"])))
    client.log_image(run_id, pixels, key=payload["key"], step=payload["step"], timestamp=payload["timestamp"])


def _send_dataset(client: Any, run_id: str, payload: dict[str, Any]) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    scheme = urlsplit(payload["source"]).scheme or "local"
    source = json.dumps({"uri": payload["source"]})
    digest = payload["fingerprint"][:36]  # as many characters as MLflow stores; the tag holds all
    dataset = Dataset(payload["name"], digest, scheme, source)
    context = InputTag("mlflow.data.context", payload.get("context", "input"))
    client.log_inputs(run_id, datasets=[DatasetInput(dataset, tags=[context])])


_SENDERS: dict[str, Callable[[Any, str, dict[str, Any]], None]] = {
    "metrics": _send_metrics,
    "curve": _send_curve,
    "params": _send_params,
    "tags": _send_tags,
    "text": lambda client, run_id, payload: client.log_text(run_id, payload["text"], payload["name"]),
    "file": lambda client, run_id, payload: client.log_artifact(run_id, payload["path"], payload["folder"]),
    "image": _send_image,
    "dataset": _send_dataset,
    "status": lambda client, run_id, payload: client.set_terminated(run_id, payload["status"], payload["end_time"]),
}
