"""The example job files are whole and right."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.cli import VERBS, parse_verb

EXAMPLES = sorted((Path(__file__).resolve().parents[2] / "jobs" / "examples").glob("*.toml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_is_a_valid_job_of_its_verb(path: Path) -> None:
    job, _ = parse_verb(path.stem.partition("_")[0], [str(path)])
    assert type(job).__name__ == VERBS[path.stem.partition("_")[0]].job


def test_there_is_an_example_for_every_verb_that_takes_a_file() -> None:
    shown = {path.stem.partition("_")[0] for path in EXAMPLES}
    assert shown == {
        "ingest",
        "check",
        "pssl",
        "train",
        "autolabel",
        "evaluate",
        "compare",
        "predict",
        "export",
        "import",
        "unpack",
    }


def test_checkpoints_that_examples_begin_with_are_made_by_examples_with_the_same_network() -> None:
    jobs = [parse_verb("train", [str(path)])[0] for path in EXAMPLES if path.stem.startswith("train_")]
    by_name = {job.name: job for job in jobs}
    begun = [job for job in jobs if job.init_from is not None and job.init_from.startswith("out/runs/")]
    assert begun
    for job in begun:
        teacher = by_name[job.init_from.split("/")[2]]
        assert (teacher.recipe.model.arch, teacher.recipe.model.backbone) == (
            job.recipe.model.arch,
            job.recipe.model.backbone,
        )
