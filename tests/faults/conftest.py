"""What the training runs that tests interfere with have in common."""

from __future__ import annotations

import pytest

from tests.faults.training import STEPS, recipe_of, undisturbed
from tests.tiny_data import write_dataset


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Thirteen images in two shards."""
    root = tmp_path_factory.mktemp("data")
    write_dataset(root, shard_sizes=(7, 6))
    return str(root)


@pytest.fixture(scope="session")
def calm(dataset: str, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The weights of two ranks after 60 undisturbed steps."""
    folder = tmp_path_factory.mktemp("calm")
    return undisturbed(dataset, folder, recipe_of(steps=STEPS, brake=folder / "brake"), world=2)
