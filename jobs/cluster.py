"""One Ray session for a job: the cluster it was sent to, or a local Ray of its own."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import secrets
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import ray
from ray._private.authentication import authentication_token_setup as ray_tokens

from pipelines.shards import ComputeSpec

OBJECT_STORE_BYTES = 512 * 1024**2  # addresses and receipts travel; pixels only where training has data workers
CONNECT_TIMEOUT_S = 5
MAX_TEMP_CHARS = 40  # Unix socket paths end at 107 characters, and Ray appends up to 66
THREADS = {"OMP_WAIT_POLICY": "PASSIVE"}
"""Threads that spin while they wait take the core from the thread they wait for, wherever another process runs beside
them: a training step on two busy cores took 2.7 times as long."""
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_DEDUP_LOGS": "0",
    **THREADS,
}


@contextlib.contextmanager
def ray_session(compute: ComputeSpec, *, num_cpus: int | None = None, pixels_bytes: int = 0) -> Iterator[None]:
    """Make sure that Ray runs for the length of the block.

    A Ray that runs in this process already is used as it is. Otherwise the job joins the cluster named by
    `compute.address` or RAY_ADDRESS, and without one it starts a local Ray, which ends with the block.

    Args:
        num_cpus: Of a local Ray; default: those of the machine.
        pixels_bytes: Room for pixels in the object store of a local Ray, beside that for addresses and receipts.

    Raises:
        ValueError: the cluster named does not answer, or refuses our token.
    """
    if ray.is_initialized():
        yield
        return
    for key, value in _ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    if compute.cluster is not None:
        _connect(compute.cluster)
    else:
        _start_local(num_cpus, OBJECT_STORE_BYTES + pixels_bytes)
    with sigterm_as_interrupt():
        try:
            yield
        finally:
            ray.shutdown()


@contextlib.contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """Let SIGTERM end the job like Ctrl-C; Ray's own handler prints addresses of its code, and may end with an abort.

    Batch systems, `timeout` and `ray job stop` send it. Call it when Ray has put its handler in place. Once is enough:
    workers save when Ray ends, and a second one is ignored until then.
    """
    over = threading.Event()
    deaf = threading.Thread(target=_ignore_sigterm, args=(over,), daemon=True)

    def interrupt(number: int, frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        deaf.start()
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        over.set()
        if deaf.ident is not None:
            deaf.join()
        signal.signal(signal.SIGTERM, before)


def _ignore_sigterm(over: threading.Event) -> None:
    """Ray, as it shuts down, makes SIGTERM deadly again, a second and more before its processes have ended."""
    libc = ctypes.CDLL(None)
    libc.signal.argtypes, libc.signal.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
    while not over.wait(0.01):
        libc.signal(signal.SIGTERM, int(signal.SIG_IGN))  # Python lets only the main thread say this


def use_token(*, from_home: bool) -> None:
    """Use the token given by the environment; Ray itself would want RAY_AUTH_MODE=token beside it.

    Args:
        from_home: else take the one in the home folder (`~/.ray/auth_token`), which a local Ray may have left there.
    """
    _silence(ray_tokens.logger)
    if from_home or {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & set(os.environ):
        ray_tokens.maybe_enable_token_auth_if_token_available(warn_if_disabled=False)


def _connect(address: str) -> None:
    _check_port(address)
    use_token(from_home=False)
    try:
        ray.init(address=address, log_to_driver=True, logging_level=logging.WARNING)
    except (ConnectionError, RuntimeError, ray.exceptions.RayError) as error:
        text = str(error).strip().splitlines()[0]
        raise ValueError(
            f"compute.address: the Ray cluster at {address!r} does not let this job in ({text}); where it uses tokens, "
            "set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to its token"
        ) from error


def _check_port(address: str) -> None:
    """Ray itself tries for minutes where nobody listens."""
    host, _, port = address.rpartition(":")
    if not (host and port.isdigit()) or "/" in host:
        return  # "auto", a file or an address with a scheme
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise ValueError(f"compute.address: nobody answers at {address!r} ({error.strerror or error})") from error


def _start_local(num_cpus: int | None, object_store_bytes: int) -> None:
    # Ray turns token authentication on for a local cluster by itself. Give it a token, else it writes one into the
    # home folder; and it need not say so in every run.
    _silence(ray_tokens.logger)
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    # A token read earlier (by a submit in this process, say) would be sent to a cluster that knows only the new one.
    ray_tokens.AuthenticationTokenLoader.instance().reset_cache()
    for attempts_left in (1, 0):
        try:
            ray.init(
                address="local",
                num_cpus=num_cpus,
                include_dashboard=False,
                object_store_memory=object_store_bytes,
                _temp_dir=str(_temp_dir()),
                log_to_driver=True,
                logging_level=logging.WARNING,
            )
            return
        except Exception as error:  # Ray raises a bare Exception when its processes are not up within 30 s
            ray.shutdown()
            if not attempts_left or "timed out during startup" not in str(error):
                raise


def _temp_dir() -> Path:
    """A folder of our own for Ray's sessions: short, and per user, because others may run Ray on this machine."""
    above = os.environ.get("RAY_TMPDIR", tempfile.gettempdir())
    name = f"segray-{os.getuid()}"
    folder = Path(above if len(above) + len(name) < MAX_TEMP_CHARS else "/tmp") / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _silence(logger: logging.Logger) -> None:
    logger.setLevel(logging.ERROR)
