"""Fixtures of the job tests."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def mlflow_database(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Tracking URI of one database file for all tests: making its tables takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('tracking')}/mlflow.db"
