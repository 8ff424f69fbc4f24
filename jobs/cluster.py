"""One Ray session for a job: the cluster it was sent to, or a local Ray of its own."""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import ray

from pipelines.shards import ComputeSpec

OBJECT_STORE_BYTES = 512 * 1024**2  # addresses and receipts travel, pixels do not
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "120",
    "RAY_DEDUP_LOGS": "0",
}


@contextlib.contextmanager
def ray_session(compute: ComputeSpec, *, num_cpus: int | None = None) -> Iterator[None]:
    """Make sure that Ray runs for the length of the block.

    A Ray that runs in this process already is used as it is. Otherwise the job joins the cluster named by
    `compute.address` or RAY_ADDRESS, and without one it starts a local Ray, which ends with the block.

    Raises:
        ValueError: the cluster named does not answer.
    """
    if ray.is_initialized():
        yield
        return
    for key, value in _ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    address = compute.address or os.environ.get("RAY_ADDRESS")
    if address:
        _connect(address)
    else:
        _start_local(num_cpus)
    try:
        yield
    finally:
        ray.shutdown()


def _connect(address: str) -> None:
    try:
        ray.init(address=address, log_to_driver=True, logging_level=logging.WARNING)
    except (ConnectionError, RuntimeError) as error:
        text = str(error).splitlines()[0]
        raise ValueError(f"compute.address: no Ray cluster answers at {address!r} ({text})") from error


def _start_local(num_cpus: int | None) -> None:
    # Short, because Unix socket paths end at 107 characters; per user, because others may run Ray here.
    folder = Path(os.environ.get("RAY_TMPDIR", tempfile.gettempdir())) / f"segray-{os.getuid()}"
    folder.mkdir(parents=True, exist_ok=True)
    # Ray turns token authentication on for a local cluster by itself; it need not say so in every run.
    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
    ray.init(
        address="local",
        num_cpus=num_cpus,
        include_dashboard=False,
        object_store_memory=OBJECT_STORE_BYTES,
        _temp_dir=str(folder),
        log_to_driver=True,
        logging_level=logging.WARNING,
        configure_logging=True,
    )
