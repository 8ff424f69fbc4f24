"""A real S3 server (SeaweedFS) for tests, on ports and in a folder of its own."""

from __future__ import annotations

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

import pytest

KEY, SECRET, BUCKET = "segray-test", "segray-secret", "segray-bucket"


def free_port() -> int:
    """A port whose gRPC neighbour (port + 10000) is free too."""
    while True:
        with socket.socket() as first:
            first.bind(("127.0.0.1", 0))
            port = int(first.getsockname()[1])
        if port < 50_000:
            return port


def start(folder: Path) -> tuple[subprocess.Popen[bytes], str]:
    """Start the server and wait until it answers; its process and endpoint."""
    weed = shutil.which("weed", path=str(Path(sys.executable).parent)) or "weed"
    (folder / "data").mkdir(parents=True)
    actions = ["Admin", "Read", "Write", "List", "Tagging"]
    credentials = [{"accessKey": KEY, "secretKey": SECRET}]
    identities = {"identities": [{"name": "test", "credentials": credentials, "actions": actions}]}
    (folder / "identities.json").write_text(json.dumps(identities))
    master, volume, filer, s3 = (free_port() for _ in range(4))
    command = [weed, "server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={folder / 'data'}"]
    command += [f"-master.port={master}", f"-volume.port={volume}", "-volume.max=20", "-master.volumeSizeLimitMB=64"]
    command += ["-filer", f"-filer.port={filer}", "-s3", f"-s3.port={s3}", f"-s3.config={folder / 'identities.json'}"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    endpoint = f"http://127.0.0.1:{s3}"
    deadline = time.monotonic() + 60
    while not _answers(endpoint):
        assert process.poll() is None, "the S3 server ended at its start"
        assert time.monotonic() < deadline, "the S3 server does not answer"
        time.sleep(0.3)
    return process, endpoint


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
    settings = {"AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET}
    for name, value in {**settings, "AWS_REGION": "us-east-1"}.items():
        monkeypatch.setenv(name, value)
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    filesystem = s3fs.S3FileSystem(endpoint_url=endpoint)
    deadline = time.monotonic() + 60
    while True:
        try:
            filesystem.mkdir(BUCKET)
            filesystem.pipe_file(f"{BUCKET}/ready", b"x")
            break
        except OSError:
            assert time.monotonic() < deadline, "the S3 server takes no objects"
            time.sleep(0.5)
    yield f"s3://{BUCKET}"
    s3fs.S3FileSystem.clear_instance_cache()
    process.kill()
    process.wait(timeout=20)
