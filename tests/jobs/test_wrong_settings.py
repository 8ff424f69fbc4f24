"""Settings of a training or evaluation that cannot be meant: each is refused in one line, with its key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from jobs.load import load_job, parse_flags
from jobs.specs import EvaluateJob, TrainJob
from seg_models.recipes.recipe import AugmentSpec, OhemSpec, OptimizerSpec, Recipe, ScheduleSpec
from tests.jobs.tiny_training import tiny_recipe

VALIDATED = {"validate_on": {"dataset": "d", "split": "val"}}


def job_of(**changes: Any) -> dict[str, Any]:
    """A job of six steps."""
    return {"name": "x", "recipe": tiny_recipe().model_dump(mode="json"), "data": [{"dataset": "d"}]} | changes


def refusal(kind: type[TrainJob] | type[EvaluateJob], path: Path, table: dict[str, Any], *flags: str) -> str:
    path.write_text(json.dumps(table))
    with pytest.raises(ValueError, match=r".") as caught:
        load_job(kind, path=str(path), flags=parse_flags(flags))
    return str(caught.value)


@pytest.mark.parametrize("name", ["../elsewhere", "", "a/b", "a b", ".hidden"])
def test_a_runs_name_is_the_name_of_one_folder(tmp_path: Path, name: str) -> None:
    told = refusal(TrainJob, tmp_path / "job.json", job_of(name=name))
    assert told.startswith(f"{tmp_path}/job.json: name: found {name!r}; string should match pattern")
    evaluation = {"name": name, "checkpoint": "c", "dataset": "d"}
    assert f"name: found {name!r}" in refusal(EvaluateJob, tmp_path / "job.json", evaluation)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"threads": 0}, "threads: found 0; input should be greater than 0"),
        ({"max_failures": -1}, "max_failures: found -1; input should be greater than or equal to 0"),
        ({"save_timeout_s": float("inf")}, "save_timeout_s: found inf; input should be a finite number"),
        (VALIDATED | {"validate_every": 6}, "validate_every = 6 takes no effect: the run has 6 steps (recipe.steps)"),
        (
            VALIDATED | {"validate_every": 2, "patience": 2},
            "patience = 2 takes no effect: with validate_every = 2, 6 steps have 2 validations before the last step, "
            "and the run could end after 3 at the earliest",
        ),
        ({"workers": 0}, "workers: found 0; input should be greater than 0"),
        ({"workers": {"min": 1}}, "workers.max: is needed and not given"),
        ({"workers": {"min": 2, "max": 1}}, "workers: min = 2 is more than max = 1"),
        ({"keep_best": True}, "keep_best = True takes no effect without validate_every"),
    ],
)
def test_a_setting_of_the_job_that_cannot_be_meant_is_one_line_that_names_the_file(
    tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    assert refusal(TrainJob, tmp_path / "job.json", job_of(**changes)) == f"{tmp_path}/job.json: {told}"


def test_a_flag_that_takes_no_effect_is_not_blamed_on_the_file(tmp_path: Path) -> None:
    told = refusal(TrainJob, tmp_path / "job.json", job_of(), "--patience", "2")
    assert told == "flags: patience = 2 takes no effect without validate_every"


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--data", "out/mine"), "data: found 'out/mine'; should be a list, in [ ]"),
        (("--data", "[3]"), "data.0: found 3; should be a table of keys, in { }"),
        (("--recipe.optimizer", "3"), "recipe.optimizer: found 3; should be a table of keys, in { }"),
    ],
)
def test_what_should_be_a_list_or_a_table_is_told_in_the_words_of_the_file_and_blamed_on_the_flag(
    tmp_path: Path, flags: tuple[str, ...], told: str
) -> None:
    assert refusal(TrainJob, tmp_path / "job.json", job_of(), *flags) == f"flags: {told}"


@pytest.mark.parametrize(
    ("kind", "settings", "told"),
    [
        (AugmentSpec, {"crop": (0, 24)}, r"crop must be positive, found \(0, 24\)"),
        (AugmentSpec, {"short_side": 0}, "greater than 0"),
        (AugmentSpec, {"scale": (1.0, float("inf"))}, "finite number"),
        (OptimizerSpec, {"lr": float("inf")}, "finite number"),
        (OptimizerSpec, {"weight_decay": 0, "head_decay_factor": 2}, r"head_decay_factor = 2\.0 takes no effect"),
        (
            OptimizerSpec,
            {"weight_decay": 0, "decay_norms_and_biases": False},
            "decay_norms_and_biases = False takes no effect with weight_decay = 0",
        ),
        (ScheduleSpec, {"warmup_factor": 0.5}, r"warmup_factor = 0\.5 takes no effect without `warmup_steps` or"),
        (OhemSpec, {"threshold": 1}, "less than 1"),
        (OhemSpec, {"min_kept": 0, "sample_every": 4}, "sample_every = 4 takes no effect with min_kept = 0"),
        (Recipe, {"model": tiny_recipe().model, "seed": 2**70}, "less than 9223372036854775808"),
        (
            Recipe,
            {"model": tiny_recipe().model, "augment": {"crop": (240, 320)}, "loss": {"ohem": {}}},
            "min_kept = 100000 keeps all 76800 pixels of a crop of 240 x 320; a sixteenth of them is 4800",
        ),
    ],
)
def test_a_setting_of_the_recipe_that_cannot_be_meant_is_refused(
    kind: Any, settings: dict[str, Any], told: str
) -> None:
    with pytest.raises(ValueError, match=told):
        kind(**settings)


@pytest.mark.parametrize(
    ("predictor", "told"),
    [({"scales": [1.0, 1.0]}, "scales names one twice"), ({"scales": [float("nan")]}, "finite number")],
)
def test_scales_that_cannot_be_meant_are_refused(tmp_path: Path, predictor: dict[str, Any], told: str) -> None:
    table = {"checkpoint": "c", "dataset": "d", "predictor": predictor}
    assert told in refusal(EvaluateJob, tmp_path / "job.json", table)
