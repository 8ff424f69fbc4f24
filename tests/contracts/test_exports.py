"""Every architecture as the files that `segray export` hands out, which it compares with the eager model itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from seg_models.export import export_model
from seg_models.spec import ARCHITECTURES, ModelSpec
from tests.contracts.test_architectures import SMALL, build, switched_on


def fewest_parts(arch: str) -> ModelSpec:
    """The small settings whose network has the fewest modules: tracing takes time for each, not for their width."""
    return min((spec for spec in SMALL.values() if spec.arch == arch), key=num_modules)


def num_modules(spec: ModelSpec) -> int:
    return sum(1 for _ in build(spec).modules())


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_exported_files_give_the_scores_of_the_model(arch: str, tmp_path: Path) -> None:
    model = switched_on(build(fewest_parts(arch)))
    results = export_model(model, directory=tmp_path, formats=("pt2", "onnx"), size=(40, 56), tolerance=1e-4)
    assert [result.path.name for result in results] == ["model.pt2", "model.onnx"]
    assert all(result.max_rel_diff <= 1e-4 for result in results)
    assert all(result.path.stat().st_size == result.size_bytes > 0 for result in results)
