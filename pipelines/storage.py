"""Places and filesystems: the only file that knows fsspec, s3fs and pyarrow.fs.

A place is an absolute local path or an `s3://bucket/key` address, always as text. Endpoint and credentials come from
the AWS_* environment, for every library alike.
"""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

import fsspec
import pyarrow.fs
from botocore.exceptions import BotoCoreError  # type: ignore[import-untyped]
from botocore.exceptions import ConnectionError as NoConnection

from seg_models.spec import did_you_mean

REMOTE_SCHEMES = ("s3",)
DENIED = frozenset({"AccessDenied", "403", "InvalidObjectState"})
"""Codes of an object store that speak of one object; other refusals are about credentials or the clock."""
TAKEN = frozenset({"PreconditionFailed", "ConditionalRequestConflict"})
"""Codes of an object store that does not create an object, because it is there or another writes it just now."""
MAX_ATTEMPTS = 12
"""Tries of one call, where AWS_MAX_ATTEMPTS says nothing else: a store that is away for 40 s stops no job."""
CONNECT_TIMEOUT_S, READ_TIMEOUT_S, DELTA_PATIENCE_S = 10, 30, 60
CHECK = "check the bucket name and the AWS_* variables"


class StorageError(OSError):
    """An object store that cannot be reached or does not let us in."""


@dataclass(frozen=True, slots=True)
class FileInfo:
    """One file of a listing."""

    uri: str
    relative: str
    """Path below the listed folder, with `/`."""
    size_bytes: int
    tag: str = ""
    """Time of the last change, or the store's content tag (ETag): a replaced file has another."""


def is_remote(uri: str) -> bool:
    """Whether the place lies in an object store."""
    return uri.startswith(tuple(f"{scheme}://" for scheme in REMOTE_SCHEMES))


def normalise(uri: str | Path) -> str:
    """Absolute local path (relative ones start at the current folder, `~` is the home), or the address unchanged.

    Raises:
        ValueError: a scheme that is not supported, or an address without a bucket.
    """
    text = str(uri)
    scheme = urlsplit(text).scheme if "://" in text else ""
    if scheme in REMOTE_SCHEMES:
        if not urlsplit(text).netloc:
            raise ValueError(f"{text}: no bucket; write s3://bucket/prefix")
        return text.rstrip("/")
    if scheme == "file":
        text = text.removeprefix("file://")
    elif scheme:
        raise ValueError(f"{text}: scheme {scheme!r} is not supported; use a local path or s3://bucket/prefix")
    return os.path.abspath(os.path.expanduser(text))


def join(uri: str, *parts: str) -> str:
    """A place below `uri`."""
    return posixpath.join(uri, *parts)


def parent(uri: str) -> str:
    """The folder a place lies in."""
    return posixpath.dirname(uri)


def _endpoint() -> str | None:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")


def _region() -> str | None:
    """The region that requests are signed for; a server of one's own has none, and any will do."""
    named = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    return named or ("us-east-1" if _endpoint() else None)


def max_attempts() -> int:
    """Tries of one call to an object store.

    Raises:
        ValueError: AWS_MAX_ATTEMPTS is no positive number.
    """
    text = os.environ.get("AWS_MAX_ATTEMPTS", str(MAX_ATTEMPTS))
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"AWS_MAX_ATTEMPTS = {text!r}: a number of tries is needed, 1 or more")
    return int(text)


def _status(error: BaseException | None) -> int:
    """The HTTP status in an error of botocore; 0 where there is none."""
    response = getattr(error, "response", None) or {}
    return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _may_pass(error: Exception) -> bool:
    """Whether a call may succeed when it is made again. s3fs itself gives up on 503 with another text than AWS's."""
    return isinstance(error, NoConnection) or _status(error) >= 500


def _is_outage(error: Exception) -> bool:
    """Whether an error that came through all tries says that the store is away."""
    from s3fs.core import S3_RETRYABLE_ERRORS

    return isinstance(error, S3_RETRYABLE_ERRORS) or _status(error.__cause__) >= 500


def _s3() -> Any:
    """The filesystem of the object store. One layer repeats calls: s3fs, which also repeats an answer that breaks off;
    botocore's own tries would multiply with them."""
    import s3fs.core  # not at the top: jobs on local disk need not wait for it

    s3fs.core.set_custom_error_handler(_may_pass)
    options: dict[str, Any] = {"endpoint_url": _endpoint()} if _endpoint() else {}
    if _region():
        options["client_kwargs"] = {"region_name": _region()}  # botocore itself reads AWS_DEFAULT_REGION alone
    timeouts = {"connect_timeout": CONNECT_TIMEOUT_S, "read_timeout": READ_TIMEOUT_S}
    config = {**timeouts, "retries": {"total_max_attempts": 1}}
    # Listings must show what others wrote a moment ago.
    found = fsspec.filesystem("s3", use_listings_cache=False, config_kwargs=config, **options)
    found.retries = max_attempts()
    return found


@contextmanager
def _filesystem(uri: str) -> Iterator[tuple[Any, str]]:
    """The fsspec filesystem of a place and its path there.

    Raises:
        StorageError: no credentials, or ones that do not hold; nothing answers at the endpoint (botocore's errors are
            no OSError), or only errors do.
        PermissionError: the store denies this one object.
    """
    if not is_remote(uri):
        yield fsspec.filesystem("file"), normalise(uri)
        return
    try:
        yield _s3(), uri.removeprefix("s3://")
    except (BotoCoreError, PermissionError) as error:
        if isinstance(error, PermissionError) and _error_code(error) in DENIED:
            raise
        raise StorageError(f"{uri}: {error}; {CHECK}") from error
    except Exception as error:
        if not _is_outage(error):
            raise
        raise unavailable(uri, getattr(error, "strerror", None) or str(error) or type(error).__name__) from error


def unavailable(uri: str, reason: str) -> StorageError:
    """The error of a store that stayed away for as long as we try."""
    return StorageError(f"{uri}: the object store does not answer ({reason}); when it is back, run this again")


def _error_code(error: OSError) -> str:
    """The store's own code, which s3fs leaves in the cause."""
    response = getattr(error.__cause__, "response", None) or {}
    return str(response.get("Error", {}).get("Code", ""))


def arrow_filesystem(uri: str) -> tuple[pyarrow.fs.FileSystem, str]:
    """The pyarrow filesystem of a place and its path there."""
    if not is_remote(uri):
        return pyarrow.fs.LocalFileSystem(), normalise(uri)
    options: dict[str, Any] = {}
    endpoint = _endpoint()
    if endpoint:
        parts = urlsplit(endpoint)
        options = {"endpoint_override": parts.netloc, "scheme": parts.scheme}
    if _region():
        options["region"] = _region()
    return pyarrow.fs.S3FileSystem(**options), uri.removeprefix("s3://")


def delta_options(uri: str) -> dict[str, str]:
    """Storage options of a place for Delta tables; empty on local disk. Everything else it reads from AWS_*."""
    endpoint, region = _endpoint(), _region()
    if not is_remote(uri) or not endpoint or not region:
        return {}
    options = {"AWS_ENDPOINT_URL": endpoint, "AWS_REGION": region}
    options |= {"max_retries": str(max_attempts() - 1), "retry_timeout": f"{DELTA_PATIENCE_S}s"}
    if endpoint.startswith("http://"):
        options["AWS_ALLOW_HTTP"] = "true"
    return options


def read_bytes(uri: str) -> bytes:
    """The content of a file.

    Raises:
        ValueError: there is no such file.
        PermissionError: this one file is closed to us.
        StorageError: the object store cannot be reached or does not let us in.
    """
    try:
        if not is_remote(uri):
            return Path(normalise(uri)).read_bytes()
        with _filesystem(uri) as (filesystem, path):
            # One request: s3fs would ask for the size before, and a refusal of that has no error code.
            return bytes(filesystem.cat_file(path, max_concurrency=1))
    except FileNotFoundError as error:
        raise ValueError(f"{uri}: no such file") from error


def read_json(uri: str) -> Any:
    """The content of a JSON file.

    Raises:
        ValueError: there is no such file, or it is damaged.
        StorageError: the object store cannot be reached or does not let us in.
    """
    data = read_bytes(uri)
    try:
        return json.loads(data)
    except ValueError as error:
        raise ValueError(f"{uri}: damaged, no JSON ({error})") from error


def read_range(uri: str, *, offset: int, size_bytes: int) -> bytes:
    """`size_bytes` bytes of a file from `offset`.

    Raises:
        PermissionError: this one file is closed to us.
        StorageError: the object store cannot be reached or does not let us in.
    """
    if not is_remote(uri):
        with open(normalise(uri), "rb") as file:
            file.seek(offset)
            return file.read(size_bytes)
    with _filesystem(uri) as (filesystem, path):
        return bytes(filesystem.cat_file(path, start=offset, end=offset + size_bytes))


def open_input(uri: str) -> IO[bytes]:
    """A file opened for reading."""
    with _filesystem(uri) as (filesystem, path):
        opened: IO[bytes] = filesystem.open(path, "rb")
    return opened


def write_bytes(uri: str, data: bytes) -> None:
    """Write a file so that readers see all of it or nothing."""
    if is_remote(uri):
        with _filesystem(uri) as (filesystem, path):
            filesystem.pipe_file(path, data)
        return
    target = Path(normalise(uri))
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = target.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        with scratch.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, target)
    finally:
        scratch.unlink(missing_ok=True)


def create_bytes(uri: str, data: bytes) -> bool:
    """Write a small file that is not there yet; of several that try at once one does. Returns whether it was this one.

    On local disk the file is there a moment before its content is.
    """
    if not is_remote(uri):
        target = Path(normalise(uri))
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            file = target.open("xb", buffering=0)
        except FileExistsError:
            return False
        with file:
            try:
                file.write(data)
            except OSError:  # a full disk
                target.unlink(missing_ok=True)
                raise
        return True
    with _filesystem(uri) as (filesystem, path):
        try:
            filesystem.pipe_file(path, data, mode="create")
        except OSError as error:
            if _error_code(error) not in TAKEN:
                raise
            # A call whose answer was lost is repeated by s3fs, and then finds what it wrote itself.
            return bool(filesystem.cat_file(path, max_concurrency=1) == data)
    return True


def write_text(uri: str, text: str) -> None:
    """Write a UTF-8 text file so that readers see all of it or nothing."""
    write_bytes(uri, text.encode())


def exists(uri: str) -> bool:
    """Whether there is a file or folder."""
    with _filesystem(uri) as (filesystem, path):
        return bool(filesystem.exists(path))


def is_dir(uri: str) -> bool:
    """Whether there is a folder (in an object store: any key below the prefix)."""
    with _filesystem(uri) as (filesystem, path):
        return bool(filesystem.isdir(path))


def make_dirs(uri: str) -> None:
    """Make a local folder; object stores need none."""
    if not is_remote(uri):
        os.makedirs(normalise(uri), exist_ok=True)


def delete(uri: str) -> None:
    """Remove a file or a folder with everything in it; nothing happens where there is none."""
    with _filesystem(uri) as (filesystem, path):
        if filesystem.exists(path):
            filesystem.rm(path, recursive=True)


def list_files(uri: str, *, recursive: bool = True) -> list[FileInfo]:
    """The files below a folder, sorted by relative path. Names that are no UTF-8 survive (surrogateescape).

    Links to folders are followed, but not round in circles.

    Raises:
        ValueError: no such folder (the message names the nearest one beside it), or one that cannot be listed.
    """
    require_dir(uri)
    if is_remote(uri):
        return _list_remote(uri, recursive=recursive)
    root = normalise(uri)
    found = []
    for folder, subfolders, names in os.walk(root, followlinks=True, onerror=_refuse_folder):
        subfolders[:] = sorted(name for name in subfolders if recursive and not _is_circle(root, folder, name))
        for name in names:
            path = os.path.join(folder, name)
            if os.path.isfile(path):
                status = os.stat(path)
                found.append(FileInfo(path, os.path.relpath(path, root), status.st_size, str(status.st_mtime_ns)))
    return sorted(found, key=lambda file: file.relative)


def _refuse_folder(error: OSError) -> None:
    raise ValueError(f"{error.filename}: cannot be listed ({error.strerror})") from error


def _is_circle(root: str, folder: str, name: str) -> bool:
    """Whether a subfolder is a link to a folder that it lies in, or that the walk from `root` came through."""
    link = os.path.join(folder, name)
    if not os.path.islink(link):
        return False
    target, here = Path(link).resolve(), Path(folder)
    walked = (above.resolve() for above in (here, *here.parents) if above.is_relative_to(root))
    return here.resolve().is_relative_to(target) or target in walked


def _list_remote(uri: str, *, recursive: bool) -> list[FileInfo]:
    with _filesystem(uri) as (filesystem, path):
        entries = filesystem.find(path, detail=True, maxdepth=None if recursive else 1)
    files = [
        FileInfo(f"s3://{name}", name.removeprefix(path).lstrip("/"), int(entry["size"]), str(entry.get("ETag", "")))
        for name, entry in entries.items()
        if entry["type"] == "file" and not name.endswith("/")
    ]
    return sorted(files, key=lambda file: file.relative)


def list_dirs(uri: str) -> list[str]:
    """Names of the folders directly below a folder, sorted."""
    if not is_remote(uri):
        return sorted(entry.name for entry in os.scandir(normalise(uri)) if entry.is_dir())
    with _filesystem(uri) as (filesystem, path):
        entries = filesystem.ls(path, detail=True)
    return sorted(posixpath.basename(entry["name"]) for entry in entries if entry["type"] == "directory")


def require_dir(uri: str) -> None:
    """Make sure that a folder exists.

    Raises:
        ValueError: it does not; the message names the nearest folder beside it.
    """
    if is_dir(uri):
        return
    if exists(uri):
        raise ValueError(f"{uri}: is a file, a folder is needed")
    above = parent(uri)
    try:
        beside = list_dirs(above) if is_dir(above) else []
    except OSError:
        beside = []
    raise ValueError(f"{uri}: no such folder{did_you_mean(posixpath.basename(uri), beside)}")


def check_writable(uri: str) -> None:
    """Make sure that something can be written below a place, by writing and removing a small file.

    Raises:
        ValueError: it cannot, with the reason and what to do.
    """
    folder = uri
    while not is_remote(folder) and not os.path.lexists(folder):  # a refused job leaves no empty folders behind
        folder = os.path.dirname(normalise(folder))
    probe = join(folder, f".segray-write-test-{uuid.uuid4().hex}")
    try:
        write_bytes(probe, b"segray")
        delete(probe)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error.__cause__ or error)
        remedy = CHECK if is_remote(uri) else "choose another folder"
        raise ValueError(f"{uri}: cannot be written ({reason}); {remedy}") from error


def local_copy(uri: str, *, names: Sequence[str] = ()) -> Path:
    """A local path with the content of a file or folder: itself on local disk, else a copy in a cache.

    The cache key holds names, sizes and the store's content tags, so a changed object gets a new copy.

    Args:
        names: of a folder, the only files to copy.

    Raises:
        ValueError: there is nothing at this place, or one of `names` is missing; nothing is copied then.
    """
    if not is_remote(uri):
        return Path(normalise(uri))
    folder = bool(names) or is_dir(uri)
    if names:
        files = [FileInfo(join(uri, name), name, 0) for name in names]
    else:
        files = list_files(uri) if folder else [FileInfo(uri, posixpath.basename(uri), 0)]
    listing = "\n".join(f"{file.relative} {_content_tag(file.uri)}" for file in files)
    key = hashlib.sha256(f"{_endpoint()}\n{uri}\n{listing}".encode()).hexdigest()[:24]
    cache = Path(os.environ.get("SEGRAY_CACHE", Path.home() / ".cache" / "segray")) / key
    target = cache if folder else cache / posixpath.basename(uri)
    if cache.is_dir():
        return target
    cache.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=cache.parent))
    for file in files:
        copy = scratch / file.relative
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(read_bytes(file.uri))
    try:
        scratch.rename(cache)
    except OSError:  # another process was faster
        shutil.rmtree(scratch)
    return target


def _content_tag(uri: str) -> str:
    """Size and content tag (ETag) of an object: another content has another tag."""
    try:
        with _filesystem(uri) as (filesystem, path):
            entry = filesystem.info(path)
    except FileNotFoundError as error:
        raise ValueError(f"{uri}: no such file") from error
    return f"{entry['size']} {entry.get('ETag', '')}"


def upload_dir(folder: Path, uri: str) -> None:
    """Copy a local folder to a place, file by file, in sorted order."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        write_bytes(join(uri, path.relative_to(folder).as_posix()), path.read_bytes())
