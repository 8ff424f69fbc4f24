"""Imports without garbage collection."""

from __future__ import annotations

import gc

import pytest

from jobs.imports import load_for_good, without_collection


def test_collection_is_off_in_the_block_and_on_behind_it_whatever_happens() -> None:
    with pytest.raises(KeyError):
        fail_without_collection()
    assert gc.isenabled()


def fail_without_collection() -> None:
    with without_collection():
        assert not gc.isenabled()
        with without_collection():
            pass
        assert not gc.isenabled(), "the outer block decides"
        raise KeyError


def test_a_module_that_cannot_be_imported_is_told_where_it_is_used() -> None:
    load_for_good("jobs.there_is_no_such_module")
    assert gc.isenabled()
