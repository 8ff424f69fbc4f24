"""`segray train` with sampling settings: what is refused, what a dry run shows, what is found on Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jobs import train
from jobs.specs import TrainData, TrainJob
from jobs.training.plan import sample_order
from jobs.training.sampling_table import sampling_table
from jobs.training.work import check_job, look_at_labels
from seg_models.recipes.recipe import AugmentSpec
from tests.jobs.tiny_training import tiny_recipe
from tests.tiny_data import write_dataset

UNIFORM: dict[str, Any] = {"class_uniform": {"share": 0.5, "tile": 16}}
AUTO: dict[str, Any] = {"parts": [{"part": "auto", "centroids_of": ["red"], "until": 0.5}]}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainData, TrainData]:
    root = tmp_path_factory.mktemp("data")
    write_dataset(root / "fine", shard_sizes=(6, 6))
    write_dataset(root / "coarse", shard_sizes=(20,))
    return TrainData(dataset=str(root / "fine")), TrainData(dataset=str(root / "coarse"), name="auto")


def job_of(data: tuple[TrainData, ...], output: Path, sampling: dict[str, Any], **changes: Any) -> TrainJob:
    recipe = tiny_recipe(sampling=sampling, steps=12, **changes)
    settings = {"name": "tiny", "recipe": recipe, "data": data, "output": str(output), "device": "cpu"}
    return TrainJob.model_validate({**settings, "tracking": {"enabled": False}, "compute": {"actors": 1, "cpus": 0.5}})


@pytest.mark.parametrize(
    ("sampling", "changes", "message"),
    [
        (UNIFORM | {"parts": [{"part": "otto", "until": 0.5}]}, {}, r"name 'otto' \(did you mean 'auto'\?\)"),
        (
            {"class_uniform": {"share": 0.05, "tile": 16}},
            {},
            r"class_uniform\.share = 0\.05 takes no effect: an epoch of 32 samples has less than one for each of 3",
        ),
        ({}, {"augment": AugmentSpec(crop_around=("rde",))}, r"crop_around: no class 'rde' \(did you mean 'red'\?\)"),
    ],
)
def test_settings_that_do_not_fit_the_data_are_refused_before_work(
    data: tuple[TrainData, TrainData], tmp_path: Path, sampling: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        train.run(job_of(data, tmp_path, sampling, **changes), dry_run=True)


def test_weights_are_a_property_of_the_run(data: tuple[TrainData, TrainData], tmp_path: Path) -> None:
    weighted = tuple(part.model_copy(update={"weight": weight}) for part, weight in zip(data, (1.0, 3.0), strict=True))
    work = check_job(job_of(weighted, tmp_path, {}))
    assert work.identity != check_job(job_of(data, tmp_path, {})).identity
    plan = train.run(work.job, dry_run=True)["plan"]
    assert [(row["share"], row["epochs"]) for row in plan["sampling"][0]["parts"]] == [(0.25, 1.0), (0.75, 1.8)]
    with pytest.raises(ValueError, match=r"data\.1\.weight: is needed"):
        check_job(job_of((weighted[0], data[1]), tmp_path, {}))
    with pytest.raises(ValueError, match=r"data\.0\.weight = 1\.0 takes no effect"):
        check_job(job_of(weighted[:1], tmp_path, {}))


@pytest.mark.usefixtures("ray_local")
def test_labels_are_looked_at_on_ray_and_a_dry_run_then_knows_the_shares(
    data: tuple[TrainData, TrainData], tmp_path: Path
) -> None:
    job = job_of(data, tmp_path / "runs", UNIFORM | AUTO)
    planned = train.run(job, dry_run=True)["plan"]["sampling"]
    assert [(phase["steps"], [(row["drawn"], row["share"]) for row in phase["parts"]]) for phase in planned] == [
        ([0, 6], [("0.5 by class", None), ("around centroids only", None)]),
        ([6, 12], [("0.5 by class", None)]),
    ]
    work = look_at_labels(check_job(job))
    plan = train.run(job, dry_run=True)["plan"]
    assert plan["sampling"] == sampling_table(job.recipe, work.index)
    assert plan["epochs"] == 4.0  # of the 12 fine images: what is met around centroids makes no epoch longer
    first, second = plan["sampling"]
    assert sum(row["share"] for row in first["parts"]) == pytest.approx(1, abs=1e-3)
    assert 0 < first["parts"][1]["share"] < 0.5
    assert [row["share"] for row in second["parts"]] == [1.0]
    assert [row["per_epoch"] for row in first["classes"]] == [2, 2, 2]  # floor(0.5 * 12 / 3)
    assert first["classes"][1]["centroids"] > second["classes"][1]["centroids"]
    assert first["classes"][2]["centroids"] == second["classes"][2]["centroids"]
    order = sample_order(job.recipe, work.index)
    drawn = [sample.part for step in range(3) for sample in order.samples(step, global_batch=4)]  # the first epoch
    assert drawn.count(1) / 12 == pytest.approx(first["parts"][1]["share"], abs=1e-3)
    assert not (tmp_path / "runs").exists()
