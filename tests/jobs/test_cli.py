"""The command line as a person meets it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jobs import cli
from jobs.load import load_job, parse_flags
from jobs.specs import EvaluateJob, IngestJob, PsslJob, TrainJob
from seg_models.recipes import list_recipes


def failing(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    code = cli.run(arguments)
    return code, capsys.readouterr().err


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_a_misspelt_verb_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    code, text = failing(["ingset"], capsys)
    assert code == 2
    assert "unknown verb 'ingset' (did you mean 'ingest'?)" in text


def test_a_misspelt_key_names_file_key_and_the_nearest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = write(tmp_path / "job.toml", 'checkpoint = "c"\ndataset = "d"\n[predictor]\nflp = true\n')
    code, text = failing(["evaluate", job], capsys)
    assert code == 2
    assert text.splitlines()[0].startswith(
        f"segray: error: {job}: predictor.flp: unknown key (did you mean 'flip'?); allowed: average, flip, "
    )


@pytest.mark.parametrize("named", ['preset = "pspnet_resnet50"', 'arch = "pspnet"'])
@pytest.mark.parametrize("base", ["", 'base = "danet_resnet50_voc"'])
def test_a_misspelt_key_of_a_model_is_answered_with_its_architectures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], named: str, base: str
) -> None:
    table = f'name = "x"\n[recipe]\n{base}\n[recipe.model]\n{named}\nhead_channel = 3\n[[data]]\ndataset = "d"\n'
    job = write(tmp_path / "job.toml", table)
    code, text = failing(["train", job], capsys)
    assert code == 2
    assert f"{job}: recipe.model.head_channel: unknown key (did you mean 'head_channels'?); allowed: arch," in text


def test_a_misspelt_key_inside_a_model_is_answered_with_that_tables(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = '[recipe.model]\npreset = "hmsa_w48"\ninner = {arch = "pspnet", bin = [1]}\n[[data]]\ndataset = "d"\n'
    code, text = failing(["train", write(tmp_path / "job.toml", f'name = "x"\n{table}')], capsys)
    assert code == 2
    assert "recipe.model.inner.bin: unknown key (did you mean 'bins'?); allowed: arch, aux_channels" in text


@pytest.mark.parametrize(
    ("recipe", "key", "told"),
    [
        ('base = "cft_mit_b2_ade20k"', "model.wdth", "unknown key (did you mean 'width'?); allowed: arch,"),
        ('base = "cft_mit_b2_ade20k"', "model.backbone.outputstride", "unknown key (did you mean 'output_stride'?)"),
        ('base = "cft_mit_b2_ade20k"', "model.backbone.output_stride", "found 3"),
        ('base = "hmsa_w48_cityscapes"', "model.inner.key_chanels", "unknown key (did you mean 'key_channels'?)"),
        ('model = {preset = "hmsa_w48"}', "model.inner.key_chanels", "unknown key (did you mean 'key_channels'?)"),
        (
            'base = "cft_mit_b2_ade20k"',
            "model",
            "a model is a preset's name or a table with `arch` or `preset`, found 3",
        ),
    ],
)
def test_a_wrong_setting_of_the_model_that_a_name_stands_for_is_told_by_its_own_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], recipe: str, key: str, told: str
) -> None:
    job = write(tmp_path / "job.toml", f'name = "x"\nrecipe = {{{recipe}}}\n[[data]]\ndataset = "d"\n')
    code, text = failing(["train", job, f"--recipe.{key}", "3"], capsys)
    assert code == 2
    assert f"flags: recipe.{key}: {told}" in text


def test_a_recipe_that_is_a_number_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = write(tmp_path / "job.toml", 'name = "x"\nrecipe = 5\n[[data]]\ndataset = "d"\n')
    code, text = failing(["train", job], capsys)
    assert (code, text.strip()) == (2, f"segray: error: {job}: recipe: a recipe is a name or a table, found 5")


def test_every_problem_of_a_file_is_named_at_once(tmp_path: Path) -> None:
    path = write(tmp_path / "job.toml", 'dataset = 3\nsplitt = "x"\n')
    with pytest.raises(ValueError, match="checkpoint: is needed") as caught:
        load_job(EvaluateJob, path=path, flags={})
    assert len(str(caught.value).splitlines()) == 3


def test_an_unknown_value_names_what_is_allowed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"source\.kind: found 'foldr' \(did you mean 'folder'\?\); allowed: folder"):
        load_job(IngestJob, path=None, flags={"dataset": "d", "source": {"kind": "foldr"}})


def test_an_unknown_device_names_what_is_allowed() -> None:
    flags = {"name": "x", "recipe": "pspnet_resnet50_voc", "data": [{"dataset": "d"}], "device": "gpu"}
    with pytest.raises(ValueError, match=r"device: found 'gpu'.*allowed: auto, cpu or cuda"):
        load_job(TrainJob, path=None, flags=flags)


def test_an_unknown_recipe_names_the_nearest() -> None:
    flags = {"name": "x", "recipe": "pspnet_resnet50_vco", "data": [{"dataset": "d"}]}
    with pytest.raises(ValueError, match="did you mean 'pspnet_resnet50_voc'"):
        load_job(TrainJob, path=None, flags=flags)


def test_flags_win_over_the_file_key_by_key(tmp_path: Path) -> None:
    path = write(
        tmp_path / "job.toml",
        'name = "x"\n[recipe]\nbase = "pspnet_resnet50_voc"\n[recipe.optimizer]\nlr = 0.5\nmomentum = 0.8\n'
        '[[data]]\ndataset = "d"\n',
    )
    job = load_job(TrainJob, path=path, flags=parse_flags(["--recipe.optimizer.lr", "0.02", "--no-report"]))
    assert (job.recipe.optimizer.lr, job.recipe.optimizer.momentum, job.report) == (0.02, 0.8, False)


@pytest.mark.parametrize(
    ("arguments", "table"),
    [
        (["--a.b", "1e-3"], {"a": {"b": 1e-3}}),
        (["--crop", "240", "320"], {"crop": [240, 320]}),
        (["--name=x=y"], {"name": "x=y"}),
        (["--keep-checkpoints", "3"], {"keep_checkpoints": 3}),
        (["--flag", "--no-other"], {"flag": True, "other": False}),
        (["--path", "s3://bucket/x"], {"path": "s3://bucket/x"}),
        (["--recipe", "p", "--recipe.steps", "2"], {"recipe": {"base": "p", "steps": 2}}),
        (["--recipe.steps", "2", "--recipe", "p"], {"recipe": {"base": "p", "steps": 2}}),
        (["--data", '[{dataset = "d"}]', "--data.0.labels", "t"], {"data": [{"dataset": "d", "labels": "t"}]}),
        (["--data.0.labels", "t"], {"data": {"0": {"labels": "t"}}}),
    ],
)
def test_flags_become_settings(arguments: list[str], table: dict[str, object]) -> None:
    assert parse_flags(arguments) == table


def test_a_stray_word_is_refused() -> None:
    with pytest.raises(ValueError, match="unexpected argument 'x'"):
        parse_flags(["x"])


def test_the_resolved_job_can_be_submitted_again_unchanged(tmp_path: Path) -> None:
    flags = {"dataset": "d", "ensemble": "efficientnet_lite", "pssl": {"explainer": {"kind": "random"}}}
    job = load_job(PsslJob, path=None, flags=flags)
    path = write(tmp_path / "job.json", job.model_dump_json())
    assert load_job(PsslJob, path=path, flags={}) == job


def test_a_missing_job_file_names_the_nearest(tmp_path: Path) -> None:
    write(tmp_path / "train.toml", "")
    with pytest.raises(ValueError, match=r"no such job file .did you mean .train.toml."):
        load_job(EvaluateJob, path=str(tmp_path / "trian.toml"), flags={})


def test_broken_toml_names_line_and_column(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot be read as TOML: .*line 1"):
        load_job(EvaluateJob, path=write(tmp_path / "x.toml", "a = = 1\n"), flags={})


@pytest.mark.parametrize("verb", sorted(cli.VERBS))
def test_every_verb_has_help_with_its_settings(verb: str) -> None:
    text = cli.verb_help(verb)
    assert text.startswith(f"usage: segray {verb}")
    assert "  --" in text


def test_help_is_there_at_once() -> None:
    start = time.process_time()
    result = subprocess.run([sys.executable, "-m", "jobs", "--help"], capture_output=True, text=True, check=True)
    assert all(verb in result.stdout for verb in [*cli.VERBS, "submit"])
    imported = subprocess.run(
        [sys.executable, "-c", "import sys, jobs.cli; print('torch' in sys.modules, 'ray' in sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert imported.stdout.split() == ["False", "False"]
    assert time.process_time() - start < 5


def test_models_are_listed_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["models", "--json", "--model", "pspnet_resnet50", "--num_classes", "19"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["params_main"], row["params_aux"]) == (46_610_803, 2_364_691)


def test_recipes_are_listed_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["recipes", "--json", "--like", "pspnet_resnet50_c"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["name"], row["model"], row["steps"], row["crop"]) == (
        *("pspnet_resnet50_cityscapes", "pspnet"),
        *(80_000, [512, 1024]),
    )


def test_the_table_of_recipes_has_a_line_for_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["recipes"]) == 0
    _, *lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list_recipes()
    assert not [line for line in lines if not line.endswith(".")], "a recipe without a sentence about it"


def test_no_recipe_of_that_name_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    code, text = failing(["recipes", "--like", "nothing"], capsys)
    assert (code, text) == (
        2,
        f"segray: error: no name of the {len(list_recipes())} recipes holds 'nothing'\n",
    )


def test_a_job_that_breaks_ends_with_one_line_and_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("the disk is on fire")

    monkeypatch.setattr("jobs.models.run", broken)
    code, text = failing(["models"], capsys)
    assert code == 1
    assert text.splitlines()[0] == "segray: error: RuntimeError: the disk is on fire"
    assert "Traceback" not in text


def test_an_interrupt_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("jobs.models.run", interrupted)
    code, text = failing(["models"], capsys)
    assert code == 130
    assert "run the same command again to continue" in text
