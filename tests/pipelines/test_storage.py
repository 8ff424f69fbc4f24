"""Places and files on local disk."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
import s3fs
from botocore.exceptions import ClientError  # type: ignore[import-untyped]  # it has no stubs
from s3fs.errors import translate_boto_error

from pipelines import storage
from pipelines.ingest_worker import read_file
from pipelines.shard_counts import RowError
from tests.s3_server import s3_bucket

__all__ = ["s3_bucket"]


def test_relative_paths_start_at_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert storage.normalise("a/b") == str(tmp_path / "a" / "b")
    assert storage.normalise("file:///x/y") == "/x/y"
    assert storage.normalise("s3://bucket/prefix/") == "s3://bucket/prefix"


def test_an_unknown_scheme_is_refused() -> None:
    with pytest.raises(ValueError, match="scheme 'gopher' is not supported"):
        storage.normalise("gopher://x")


@pytest.mark.parametrize("address", ["s3://", "s3:///key"])
def test_an_address_without_a_bucket_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="no bucket"):
        storage.normalise(address)


def test_written_bytes_read_back_and_leave_no_scratch_file(tmp_path: Path) -> None:
    place = storage.join(str(tmp_path), "deep", "file.bin")
    storage.write_bytes(place, b"abc")
    storage.write_bytes(place, b"abcd")
    assert storage.read_bytes(place) == b"abcd"
    assert os.listdir(tmp_path / "deep") == ["file.bin"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = str(tmp_path / "file.bin")
    storage.write_bytes(place, b"old")

    def broken(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(OSError, match="disk full"):
        storage.write_bytes(place, b"new")
    assert storage.read_bytes(place) == b"old"
    assert os.listdir(tmp_path) == ["file.bin"]


def test_listing_is_sorted_and_deep(tmp_path: Path) -> None:
    for name in ("b/2.txt", "a.txt", "b/1.txt"):
        storage.write_bytes(str(tmp_path / name), b"x")
    assert [file.relative for file in storage.list_files(str(tmp_path))] == ["a.txt", "b/1.txt", "b/2.txt"]
    assert [file.relative for file in storage.list_files(str(tmp_path), recursive=False)] == ["a.txt"]


def test_names_that_are_no_utf8_can_be_listed_and_read(tmp_path: Path) -> None:
    with open(os.fsencode(tmp_path) + b"/bad\xff.jpg", "wb") as file:
        file.write(b"data")
    (found,) = storage.list_files(str(tmp_path))
    assert storage.read_bytes(found.uri) == b"data"


def test_the_longest_name_can_be_written(tmp_path: Path) -> None:
    place = str(tmp_path / ("a" * 255))
    storage.write_bytes(place, b"x")
    assert storage.read_bytes(place) == b"x"


def test_linked_folders_are_listed_but_not_round_in_circles(tmp_path: Path) -> None:
    storage.write_bytes(str(tmp_path / "other" / "c.txt"), b"x")
    root = tmp_path / "root"
    for name in ("a/1.txt", "b/2.txt"):
        storage.write_bytes(str(root / name), b"x")
    for link, target in (
        ("self", root),
        ("a/to_b", root / "b"),
        ("b/to_a", root / "a"),
        ("beside", tmp_path / "other"),
    ):
        (root / link).symlink_to(target)
    found = [file.relative for file in storage.list_files(str(root))]
    assert found == ["a/1.txt", "a/to_b/2.txt", "b/2.txt", "b/to_a/1.txt", "beside/c.txt"]


def test_a_folder_that_cannot_be_listed_is_an_error_and_not_an_empty_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "closed").mkdir()
    real = os.scandir

    def scan(path: str) -> object:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scan)
    with pytest.raises(ValueError, match=r"closed: cannot be listed \(Permission denied\)"):
        storage.list_files(str(tmp_path))


def test_an_object_store_that_does_not_answer_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    for name, value in {**settings, "AWS_MAX_ATTEMPTS": "1", "AWS_REGION": "us-east-1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(storage.StorageError, match=r"Could not connect.*AWS_"):
        storage.exists("s3://bucket/prefix")
    with pytest.raises(ValueError, match=r"s3://bucket/prefix: cannot be written \(Could not connect.*AWS_"):
        storage.check_writable("s3://bucket/prefix")


class Refusing:
    """A filesystem whose store answers every read with one error code."""

    def __init__(self, code: str) -> None:
        self.code = code

    def cat_file(self, *_: object, **__: object) -> bytes:
        answer = {"Error": {"Code": self.code, "Message": "the store's words"}}
        raise translate_boto_error(ClientError(answer, "GetObject"))


def refuse(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Let every read of an object store fail with `code`."""
    monkeypatch.setattr(fsspec, "filesystem", lambda *_, **__: Refusing(code))


READS: dict[str, Callable[[], bytes]] = {
    "whole": lambda: storage.read_bytes("s3://b/a.png"),
    "range": lambda: storage.read_range("s3://b/a.tar", offset=1, size_bytes=2),
}


@pytest.mark.parametrize("read", READS.values(), ids=READS)
@pytest.mark.parametrize(
    "code", ["ExpiredToken", "RequestTimeTooSkewed", "SignatureDoesNotMatch", "InvalidAccessKeyId"]
)
def test_credentials_that_do_not_hold_are_the_stores_error_and_no_files(
    code: str, read: Callable[[], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(monkeypatch, code)
    with pytest.raises(storage.StorageError, match=r"s3://b/a\..*: the store's words; check .* AWS_\*"):
        read()
    with pytest.raises(storage.StorageError):
        read_file(read)


@pytest.mark.parametrize("read", READS.values(), ids=READS)
@pytest.mark.parametrize("code", ["AccessDenied", "403", "InvalidObjectState"])
def test_an_object_that_is_closed_to_us_is_an_unreadable_file_with_the_stores_reason(
    code: str, read: Callable[[], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(monkeypatch, code)
    with pytest.raises(PermissionError, match="the store's words"):
        read()
    with pytest.raises(RowError, match=r"unreadable file \(the store's words\)"):
        read_file(read)


@pytest.mark.parametrize("name", ["AWS_REGION", "AWS_DEFAULT_REGION", None])
def test_every_library_is_given_the_same_region(name: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    region = "us-east-1"
    if name is not None:
        region = "eu-central-1"
        monkeypatch.setenv(name, region)
    seen: dict[str, Any] = {}

    def filesystem(_: str, **options: Any) -> Any:
        seen.update(options)
        return Refusing("AccessDenied")

    monkeypatch.setattr(fsspec, "filesystem", filesystem)
    with pytest.raises(PermissionError):
        storage.read_bytes("s3://b/a")
    assert seen["client_kwargs"] == {"region_name": region}
    assert storage.delta_options("s3://b/t")["AWS_REGION"] == region
    assert storage.arrow_filesystem("s3://b/t")[0].region == region


def test_a_missing_folder_names_the_nearest_one(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    with pytest.raises(ValueError, match=r"no such folder \(did you mean 'images'\?\)"):
        storage.list_files(str(tmp_path / "image"))


def test_a_missing_file_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file"):
        storage.read_bytes(str(tmp_path / "nothing"))


def test_a_place_below_a_file_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="cannot be written"):
        storage.check_writable(str(tmp_path / "file" / "below"))


def test_a_writable_place_is_left_empty(tmp_path: Path) -> None:
    storage.check_writable(str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_ranges_of_a_file_can_be_read(tmp_path: Path) -> None:
    storage.write_bytes(str(tmp_path / "f"), b"0123456789")
    assert storage.read_range(str(tmp_path / "f"), offset=3, size_bytes=4) == b"3456"


@pytest.mark.cluster
@pytest.mark.parametrize("variable", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_a_server_that_refuses_the_credentials_stops_every_read(
    s3_bucket: str, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = f"{s3_bucket}/a.png"
    storage.write_bytes(place, b"abc")
    monkeypatch.setenv(variable, "no longer valid")
    s3fs.S3FileSystem.clear_instance_cache()  # as in a worker that starts now
    with pytest.raises(storage.StorageError, match=r"a\.png: .*check .* AWS_\*"):
        storage.read_bytes(place)
    with pytest.raises(storage.StorageError, match=r"a\.png: .*check .* AWS_\*"):
        storage.read_range(place, offset=0, size_bytes=2)


@pytest.mark.cluster
def test_a_local_copy_follows_an_object_that_changed_and_kept_its_size(
    s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEGRAY_CACHE", str(tmp_path / "cache"))
    folder = f"{s3_bucket}/model"
    for content in (b"old weights", b"new weights"):
        storage.write_bytes(f"{folder}/deep/weights", content)
        assert (storage.local_copy(folder) / "deep" / "weights").read_bytes() == content
        assert storage.local_copy(f"{folder}/deep/weights").read_bytes() == content
    assert storage.local_copy(folder) == storage.local_copy(folder)
    with pytest.raises(ValueError, match="no such file"):
        storage.local_copy(f"{s3_bucket}/nothing")


def _create_one_of_eight(place: str) -> list[bytes]:
    """Eight threads create one file at once; what those wrote who were told that they did."""
    start, won = threading.Barrier(8), list[bytes]()

    def create(number: int) -> None:
        data = f"number {number}".encode()
        start.wait()
        if storage.create_bytes(place, data):
            won.append(data)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return won


def test_of_many_that_create_a_file_at_once_one_does(tmp_path: Path) -> None:
    place = storage.join(str(tmp_path), "deep", "file")
    assert _create_one_of_eight(place) == [storage.read_bytes(place)]


@pytest.mark.cluster
def test_of_many_that_create_an_object_at_once_one_does(s3_bucket: str) -> None:
    place = f"{s3_bucket}/deep/object"
    assert _create_one_of_eight(place) == [storage.read_bytes(place)]
    assert storage.create_bytes(place, storage.read_bytes(place)), "an answer that was lost: it is what we wrote"
