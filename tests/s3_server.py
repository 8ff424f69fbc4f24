"""A real S3 server (SeaweedFS) for tests, on ports and in a folder of its own."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

KEY, SECRET, BUCKET = "segray-test", "segray-secret", "segray-bucket"


def free_ports(count: int) -> list[int]:
    """Different ports, each free together with its gRPC neighbour (port + 10000)."""
    ports: list[int] = []
    with contextlib.ExitStack() as held:  # held until all are found, so that none is found twice
        while len(ports) < count:
            first, second = (held.enter_context(socket.socket()) for _ in range(2))
            first.bind(("127.0.0.1", 0))
            port = int(first.getsockname()[1])
            with contextlib.suppress(OSError, OverflowError):
                second.bind(("127.0.0.1", port + 10_000))
                ports.append(port)
    return ports


class Ended(RuntimeError):
    """The server ended while it started: somebody took one of its ports in between."""


def start(folder: Path) -> tuple[subprocess.Popen[bytes], str]:
    """Start the server, on what an earlier one left in the folder, and wait until it answers; process and endpoint."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    actions = ["Admin", "Read", "Write", "List", "Tagging"]
    credentials = [{"accessKey": KEY, "secretKey": SECRET}]
    identities = {"identities": [{"name": "test", "credentials": credentials, "actions": actions}]}
    (folder / "identities.json").write_text(json.dumps(identities))
    for _ in range(3):
        with contextlib.suppress(Ended):
            return _start_once(folder)
    raise Ended(f"the S3 server ended at its start: {(folder / 'log').read_text()[-2000:]}")


def _start_once(folder: Path) -> tuple[subprocess.Popen[bytes], str]:
    weed = shutil.which("weed", path=str(Path(sys.executable).parent)) or "weed"
    master, volume, filer, s3 = free_ports(4)
    command = [weed, "server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={folder / 'data'}"]
    command += [f"-master.port={master}", f"-volume.port={volume}", "-volume.max=20", "-master.volumeSizeLimitMB=64"]
    command += ["-filer", f"-filer.port={filer}", "-s3", f"-s3.port={s3}", f"-s3.config={folder / 'identities.json'}"]
    # Services beside S3 have fixed ports, on which two servers would meet.
    command += ["-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    endpoint = f"http://127.0.0.1:{s3}"
    deadline = time.monotonic() + 60
    try:
        while not _answers(endpoint):
            if process.poll() is not None:
                raise Ended
            assert time.monotonic() < deadline, "the S3 server does not answer"
            time.sleep(0.3)
    except BaseException:
        stop(process)
        raise
    return process, endpoint


def stop(process: subprocess.Popen[bytes]) -> None:
    """End the server."""
    process.kill()
    process.wait(timeout=20)


def _answers(endpoint: str) -> bool:
    try:
        urllib.request.urlopen(endpoint, timeout=1).close()
    except urllib.error.HTTPError as error:
        error.close()
        return error.code == 403  # unsigned requests are refused: it is up
    except OSError:
        return False
    return True


@pytest.fixture
def s3_bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An empty bucket as `s3://…`, with AWS_* set for it."""
    process, endpoint = start(tmp_path / "s3")
    try:
        with bucket_at(endpoint, monkeypatch):
            yield f"s3://{BUCKET}"
    finally:
        stop(process)


@contextlib.contextmanager
def bucket_at(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Set AWS_* for an endpoint and make the bucket there."""
    settings = {"AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET}
    for name, value in {**settings, "AWS_REGION": "us-east-1"}.items():
        monkeypatch.setenv(name, value)
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    try:
        make_bucket(s3fs.S3FileSystem(endpoint_url=endpoint))
        yield
    finally:
        s3fs.S3FileSystem.clear_instance_cache()


def make_bucket(filesystem: Any) -> None:
    """Make the bucket and wait until it takes objects: the server answers before its volumes are ready."""
    deadline = time.monotonic() + 60
    while True:
        try:
            if not filesystem.exists(BUCKET):
                filesystem.mkdir(BUCKET)
            filesystem.pipe_file(f"{BUCKET}/ready", b"x")
            return
        except OSError:
            assert time.monotonic() < deadline, "the S3 server takes no objects"
            time.sleep(0.5)
