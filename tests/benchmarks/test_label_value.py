"""The worth of labels that no person drew: what is drawn from the data, kept, compared and told, and a tiny walk."""

from __future__ import annotations

import statistics
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.label_value import __main__ as command
from benchmarks.label_value.arms import ARMS, AUTO_LABELS, EIGHTH, PSSL
from benchmarks.label_value.coarse import GROUPS, coarse_of_class, coarse_space, write_coarse_labels
from benchmarks.label_value.frames import copy_frames
from benchmarks.label_value.label_quality import compare_labels
from benchmarks.label_value.page import BEGIN, END, write_section
from benchmarks.label_value.pretraining import IMAGES
from benchmarks.label_value.results import Results
from benchmarks.label_value.settings import Settings
from benchmarks.label_value.stages import FRAMES, Stages
from benchmarks.label_value.tables import class_table, comparison, gain, spread
from benchmarks.label_value.teachers import Merged
from pipelines import schema
from pipelines.codecs import decode_label, encode_label
from pipelines.labels import with_background
from pipelines.tables import Dataset, write_shard
from seg_models.outputs import SegModel, SemanticOutput, SemanticTarget
from seg_models.parts.losses import upsampled_cross_entropy
from tests.tiny_data import write_dataset
from tests.tiny_frames import write_frames, write_images


def test_every_eighth_training_frame_is_labelled_and_the_others_are_the_rest(tmp_path: Path) -> None:
    for split, count in (("train", 17), ("val", 2), ("test", 3)):
        write_frames(tmp_path / "from" / split, count=count)
    assert copy_frames(tmp_path / "from", tmp_path / "to") == {"eighth": 3, "rest": 14, "val": 2, "test": 3}
    assert names(tmp_path / "to/eighth/images") == ["00", "08", "16"]
    everything = names(tmp_path / "to/eighth/labels") + names(tmp_path / "to/rest/labels")
    assert sorted(everything) == [f"{number:02d}" for number in range(17)]


def test_an_arm_is_measured_again_where_what_it_depends_on_has_changed_and_not_else() -> None:
    settings = Settings()
    before = {name: arm.fingerprint(settings, seed=0) for name, arm in ARMS.items()}
    changed = {
        "crop": set(ARMS),
        "steps": {arm.name for arm in AUTO_LABELS},
        "begin_steps": {arm.name for arm in PSSL},
        "threshold": {"self", "cityscapes"},
        "teacher_scales": {"self"},
        "human_share": {"self", "cityscapes"},
        "pretrain_steps": {name for name, arm in ARMS.items() if arm.pssl is not None},
    }
    values: dict[str, Any] = {"crop": (32, 32), "steps": 7, "begin_steps": 7, "threshold": 0.9, "pretrain_steps": 7}
    values |= {"teacher_scales": (1.0,), "human_share": 0.1}
    for key, expected in changed.items():
        other = replace(settings, **{key: values[key]})
        assert {name for name, arm in ARMS.items() if arm.fingerprint(other, seed=0) != before[name]} == expected
    assert len({*before.values(), EIGHTH.fingerprint(settings, seed=1)}) == len(ARMS) + 1


def test_records_with_other_settings_do_not_count_and_writers_lose_nothing(tmp_path: Path) -> None:
    def write(number: int) -> None:
        Results(tmp_path / "r.json", lock=tmp_path / "lock").add(f"arm/{number}", {"fingerprint": "a", "miou": number})

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(24)))
    results = Results(tmp_path / "r.json", lock=tmp_path / "lock")
    assert [results.get(f"arm/{number}", fingerprint="a") for number in range(24)] == [
        {"fingerprint": "a", "miou": number} for number in range(24)
    ]
    assert results.get("arm/3", fingerprint="b") is None
    assert results.get("arm/24") is None


def test_means_deviations_and_gains_are_those_of_the_statistics_module() -> None:
    mine = {0: {"miou": 0.50}, 1: {"miou": 0.54}, 2: {"miou": 0.55}}
    theirs = {0: {"miou": 0.49}, 1: {"miou": 0.51}, 3: {"miou": 0.9}}
    differences = [1.0, 3.0]
    assert gain(mine, theirs) == f"+{statistics.mean(differences):.2f} ± {statistics.stdev(differences):.2f}"
    assert spread([0.5]) == "50.00"
    assert spread([]) == "–"
    assert gain({0: {"miou": 0.4}}, {0: {"miou": 0.41}}) == "-1.00"


def test_the_tables_tell_what_was_measured_with_these_settings_and_that_the_rest_was_not(tmp_path: Path) -> None:
    results, settings = Results(tmp_path / "r.json", lock=tmp_path / "lock"), Settings()
    for arm, base in ((EIGHTH, 0.4), (ARMS["self"], 0.42)):
        for seed in range(2):
            scores = {"miou": base + seed / 10, "pixel_accuracy": 0.8, "iou": {"Sky": base, "Car": None}}
            results.add(f"{arm.name}/{seed}", {"fingerprint": arm.fingerprint(settings, seed=seed), **scores})
    results.add("all/0", {"fingerprint": "of other settings", "miou": 0.9})
    text = comparison(AUTO_LABELS, results, settings, seeds=range(3), baselines=[EIGHTH])
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()[2:]]
    assert lines[0][1:] == ["45.00 ± 7.07", "–", "40.00, 50.00", "80.00 ± 0.00"]
    assert lines[1][1:] == ["47.00 ± 7.07", "+2.00 ± 0.00", "42.00, 52.00", "80.00 ± 0.00"]
    assert lines[3] == ["all labels", "–", "–", "not measured", "–"]
    assert "| Car | – | – | – | – |" in class_table(AUTO_LABELS, results, settings, seeds=range(3))
    assert "| Sky | 40.0 | 42.0 | – | – |" in class_table(AUTO_LABELS, results, settings, seeds=range(3))


def test_a_section_is_written_between_its_marks_alone(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}old\n{END}after\n")
    for text in ("first\n", "second\n"):
        write_section(text, page)
        assert page.read_text() == f"before\n{BEGIN}\n{text}\n{END}after\n"
    page.write_text("no marks")
    with pytest.raises(ValueError, match="has no lines <!-- label_value"):
        write_section("text", page)


class _Scores(SegModel):
    """Says the same scores (1, C, h, w) of every image."""

    def __init__(self, scores: Tensor) -> None:
        super().__init__()
        self.scores, self.num_classes = scores, scores.shape[1]

    def forward(self, images: Tensor) -> SemanticOutput:
        return SemanticOutput(self.scores)

    def loss(self, output: SemanticOutput, target: SemanticTarget) -> dict[str, Tensor]:
        return {"ce": upsampled_cross_entropy(output.logits, target.labels, void=target.void)}


def test_the_probability_of_a_group_is_the_sum_over_its_classes() -> None:
    scores = torch.randn(1, 5, 3, 4, generator=torch.Generator().manual_seed(0)) * 3
    merged = Merged(_Scores(scores), groups=(2, 0, 1, 0, 2), num_classes=3)
    found = merged(torch.zeros(1, 3, 12, 16)).logits.softmax(1)
    parts = scores.softmax(1)
    expected = torch.stack([parts[:, 1] + parts[:, 3], parts[:, 2], parts[:, 0] + parts[:, 4]], dim=1)
    torch.testing.assert_close(found, expected)


def test_every_class_of_imagenet_is_in_one_group_and_background_stays() -> None:
    table, space = coarse_of_class(), coarse_space()
    assert len(table) == 1001
    assert table[1000] == space.background
    assert set(table[:1000]) == set(range(len(GROUPS) + 1))
    known = {1: "fish", 207: "dog", 281: "cat", 340: "hoofed animal", 817: "car", 671: "cycle", 497: "building"}
    assert {index: space.names[table[index]] for index in known} == known


def test_coarse_labels_are_the_fine_ones_with_groups_for_classes(tmp_path: Path) -> None:
    fine = with_background([f"class {number}" for number in range(1000)])
    dataset = write_dataset(tmp_path / "data", labels="fine", space=fine, bad_labels=(1,))
    for _ in range(2):  # the second finds all shards there
        assert write_coarse_labels(dataset.root, "fine", labels="coarse") == {"groups": len(GROUPS) + 1}
    table = coarse_of_class()
    for file in dataset.labels("fine").files():
        before = dataset.labels("fine").read(file.key).to_pylist()
        after = dataset.labels("coarse").read(file.key).to_pylist()
        for ours, theirs in zip(after, before, strict=True):
            assert (ours["id"], ours["reason"]) == (theirs["id"], theirs["reason"])
            if theirs["label"] is not None:
                np.testing.assert_array_equal(decode_label(ours["label"]), table[decode_label(theirs["label"])])
    assert dataset.labels("coarse").label_space == coarse_space()
    assert dataset.labels("coarse").counts().rejected == 1


def test_labels_are_compared_where_they_have_a_class(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "data", shard_sizes=(3,))
    human = dataset.labels("human")
    (file,) = human.files()
    rows = human.read(file.key).to_pylist()
    truths = [decode_label(row["label"]) for row in rows]
    guesses = [np.random.default_rng(number).choice([0, 1, 2, 255], truth.shape) for number, truth in enumerate(truths)]
    write_labels(dataset, "guess", rows, guesses)
    found = compare_labels(dataset.root, "guess", truth="human", split="train")
    guess, truth = np.stack(guesses), np.stack(truths)
    known = guess != 255
    unions = [((guess == k) | (truth == k)) & known for k in range(3)]
    ious = [((guess == k) & (truth == k)).sum() / unions[k].sum() for k in range(3)]
    assert found["kept"] == pytest.approx(known.mean(), abs=1e-4)
    assert found["miou"] == pytest.approx(np.mean(ious), abs=1e-4)
    assert found["pixel_accuracy"] == pytest.approx((guess == truth)[known].mean(), abs=1e-4)


def test_a_folder_without_the_data_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"datasets/camvid-11: no such folder; name that of the data with --data"):
        stages_in(tmp_path).prepare()


def stages_in(folder: Path) -> Stages:
    results = Results(folder / "r.json", lock=folder / "lock")
    return Stages(Settings(), data=folder, output=folder / "out", results=results)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("ray_local")
def test_arms_are_measured_once_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split, count in (("train", 88), ("val", 1), ("test", 2)):  # in the eighth there is one for each class
        write_frames(tmp_path / FRAMES / split, count=count)
    write_images(tmp_path / IMAGES, count=4)
    page = tmp_path / "page.md"
    page.write_text(f"{BEGIN}{END}")
    places = ["--data", str(tmp_path), "--output", str(tmp_path / "out"), "--results", str(tmp_path / "r.json")]
    small = "--steps 3 --begin-steps 2 --pretrain-steps 2 --batch 2 --crop 32 32 --pretrain-crop 32 32 --short-side 40"
    what = "--only eighth self random-coarse --seeds 1 --uniform-share 1 --tile 16 --threshold 0.1"
    arguments = [*places, "--page", str(page), *small.split(), *what.split()]
    assert command.main(arguments) == 0
    first = capsys.readouterr().out
    table = page.read_text()
    assert first.count("trained ") == 4  # three arms and a pre-training
    assert table.count("not measured") == 2 + 7
    assert command.main(arguments) == 0
    assert "trained " not in capsys.readouterr().out
    assert page.read_text() == table


def write_labels(dataset: Dataset, name: str, rows: list[dict[str, Any]], labels: list[Any]) -> None:
    """Another label set of the dataset's only shard."""
    human = dataset.labels("human")
    (file,) = human.files()
    table = dataset.create_labels(name, label_space=human.label_space, plan={})
    coded = [encode_label(label.astype(np.uint8)) for label in labels]
    columns = {"id": [row["id"] for row in rows], "label": coded, "reason": [None] * len(rows)}
    table.commit([write_shard(table.uri, file.key, schema.shard_rows(columns, columns_of=schema.LABELS))])


def names(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.iterdir())
