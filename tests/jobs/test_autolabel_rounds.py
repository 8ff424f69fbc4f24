"""Several rounds of auto-labelling: a student of a teacher's labels becomes the next teacher."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.training.publish import MODEL_FOLDER, copy_weights
from jobs.training.publish import publish as publish_weights
from pipelines.autolabel import AutolabelResult, run_autolabel
from pipelines.autolabel_plan import plan_autolabel
from pipelines.keep import KeepSpec
from pipelines.samples import Part, build_index
from pipelines.shards import ComputeSpec
from pipelines.tables import Dataset
from tests.inline_shards import inline_shards
from tests.jobs.tiny_training import plan_of, tiny_recipe, train_alone
from tests.oracle_model import publish
from tests.tiny_data import write_dataset


def label(dataset: Dataset, teacher: str, *, labels: str) -> AutolabelResult:
    with inline_shards():
        work = plan_autolabel(teacher, dataset=dataset.root, labels=labels, keep=KeepSpec(threshold=0.35))
        return run_autolabel(work, compute=ComputeSpec())


def train_on(dataset: Dataset, labels: str, run: Path) -> str:
    """Train a student; its run's folder."""
    index = build_index([Part(dataset=dataset.root, labels=labels, split="train")])
    plan = plan_of(index, run, tiny_recipe(steps=20))
    model, figures = train_alone(plan)
    publish_weights(plan, copy_weights(model, step=figures["steps"]), folder=MODEL_FOLDER, workers=1)
    return str(run)


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return write_dataset(tmp_path / "data", shard_sizes=(4, 4))


def test_a_student_labels_the_next_round_and_its_label_set_says_what_it_was_trained_on(
    dataset: Dataset, tmp_path: Path
) -> None:
    label(dataset, publish(tmp_path / "first"), labels="round-1")
    student = train_on(dataset, "round-1", tmp_path / "student")
    with pytest.raises(ValueError, match=r"'round-1' was made with other settings \(plan\.teacher\.checkpoint_sha256"):
        label(dataset, student, labels="round-1")
    second = label(dataset, student, labels="round-2")
    third = label(dataset, train_on(dataset, "round-2", tmp_path / "grandchild"), labels="round-3")
    assert (second.labelled, third.labelled) == (8, 8)
    assert second.kept > 0.5
    assert dataset.label_sets() == [
        "human",
        "round-1", "round-1-raw", "round-2", "round-2-raw", "round-3", "round-3-raw",
    ]  # fmt: skip

    def trained_on(labels: str) -> list[str]:
        return [part["labels"] for part in dataset.labels(labels).info["plan"]["teacher"]["trained_on"]]

    assert [trained_on(f"round-{number}") for number in (1, 2, 3)] == [[], ["round-1"], ["round-2"]]
