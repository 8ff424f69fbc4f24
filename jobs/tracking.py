"""MLflow: one run per job, opened by the driver. The only file that imports mlflow.

Only the client API is used: the fluent one keeps its state in threads and processes. Before work starts an unreachable
server is an error; after that it never stops the job: what cannot be sent goes to a journal and is sent again later.
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
from jobs.outbox import BackgroundSender, Outbox, Refused, Send, first_line
from jobs.tracked_run import DatasetRecord, Run, metric_key, points_of
from pipelines import storage

if TYPE_CHECKING:  # a training worker that sends metrics need not load what jobs are made of
    from jobs.specs import Job

BATCH_PARAMS = 100  # MLflow's limit for one call
CHECK_TIMEOUT_S = 3
__all__ = ["MetricSender", "Run", "check_tracking", "default_tracking_uri", "metric_key", "track"]
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ASYNC_LOGGING": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
}


def default_tracking_uri(job: Job, output: str) -> str:
    """Where the run of a job goes: its setting, else MLFLOW_TRACKING_URI, else `mlflow.db` beside the output."""
    given = job.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI")
    return given or f"sqlite:///{_beside(output)}/mlflow.db"


def check_tracking(job: Job, output: str, *, dry_run: bool = False) -> None:
    """Make sure, within seconds, that the tracking server answers. A dry run makes no database file.

    Raises:
        ValueError: it does not; the message says what to do.
    """
    uri = default_tracking_uri(job, output)
    new_file = uri.startswith("sqlite:///") and not os.path.exists(_sqlite_file(uri))
    if job.tracking.enabled and not (dry_run and new_file):
        _connect(uri)


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
    run = _open_run(job, verb=verb, output=storage.normalise(output))
    for record in [dataset] if isinstance(dataset, Mapping) else dataset or ():
        run.log_dataset(record)
    try:
        yield run
    except BaseException as error:
        run.close("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        raise
    run.close("FINISHED")


class MetricSender:
    """Sends metrics from a training worker in the background; `log` never waits for the server.

    Points carry their own time, so sending one twice stores it once. What is not sent by the end of `close` goes to
    `journal` (`Run.journal` of the driver, or a file in the temporary folder).
    """

    def __init__(self, run_id: str, tracking_uri: str, *, journal: str = "") -> None:
        self._sender: BackgroundSender | None = None
        if run_id:
            path = journal or os.path.join(tempfile.gettempdir(), f"segray-mlflow-{run_id}.jsonl")
            self._sender = BackgroundSender(run_id, send=_existing(tracking_uri), journal=Journal(Path(path)))

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Queue the numbers of one step."""
        if self._sender is not None:
            self._sender.put(points_of(metrics, step))

    def close(self, timeout: float = 10.0) -> int:
        """Send what is queued, for at most `timeout` seconds; return how many points went to the journal instead."""
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


def _existing(uri: str) -> Send | None:
    """How to send to a server; None where the database file is not on this machine (it would be made empty)."""
    if uri.startswith("sqlite:///") and not os.path.exists(_sqlite_file(uri)):
        return None
    return functools.partial(_apply, _client(uri))


def _unreachable(uri: str, error: Exception) -> str:
    shown = re.sub(r"//[^/@]*@", "//…@", uri)  # no password in a message
    return (
        f"tracking.uri: no MLflow at {shown} ({first_line(error).strip()}); start the server, correct tracking.uri or "
        "MLFLOW_TRACKING_URI (a file: sqlite:////path/mlflow.db), or set tracking.enabled = false"
    )


def _open_run(job: Job, *, verb: str, output: str) -> Run:
    uri = default_tracking_uri(job, output)
    client = _connect(uri)
    identity = identity_of(job, verb)
    try:
        run_id = _remembered(client, uri, output, identity) or _create(client, job, uri, output)
    except Exception as error:
        raise ValueError(_unreachable(uri, error)) from error
    note = {"run_id": run_id, "tracking_uri": uri, "experiment": job.tracking.experiment, "identity": identity}
    storage.write_text(storage.join(output, "mlflow.json"), json.dumps(note, indent=2))
    outbox = Outbox(functools.partial(_apply, client), journal=Journal(_journal_path(output)))
    outbox.drain()  # what an earlier process of this job could not send
    run = Run(run_id, uri, outbox)
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


def _remembered(client: Any, uri: str, output: str, identity: str) -> str | None:
    """The id of this job's own earlier run, if the server still has it; it is running again."""
    place = storage.join(output, "mlflow.json")
    if not storage.exists(place):
        return None
    note = json.loads(storage.read_bytes(place))
    if (note["tracking_uri"], note["identity"]) != (uri, identity):
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
    "params": _send_params,
    "tags": _send_tags,
    "text": lambda client, run_id, payload: client.log_text(run_id, payload["text"], payload["name"]),
    "file": lambda client, run_id, payload: client.log_artifact(run_id, payload["path"], payload["folder"]),
    "image": _send_image,
    "dataset": _send_dataset,
    "status": lambda client, run_id, payload: client.set_terminated(run_id, payload["status"], payload["end_time"]),
}
