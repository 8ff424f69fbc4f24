"""Places and files on local disk."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipelines import storage


def test_relative_paths_start_at_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert storage.normalise("a/b") == str(tmp_path / "a" / "b")
    assert storage.normalise("file:///x/y") == "/x/y"
    assert storage.normalise("s3://bucket/prefix/") == "s3://bucket/prefix"


def test_an_unknown_scheme_is_refused() -> None:
    with pytest.raises(ValueError, match="scheme 'gopher' is not supported"):
        storage.normalise("gopher://x")


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
