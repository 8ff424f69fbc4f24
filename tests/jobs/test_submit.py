"""Sending jobs to a cluster: the package and the words on the way."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import pytest
import ray
import yaml

from jobs import cli, submit

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def job_file(tmp_path: Path) -> str:
    path = tmp_path / "job.toml"
    path.write_text('checkpoint = "s3://b/c"\ndataset = "s3://b/d"\n')
    return str(path)


def test_the_package_holds_code_and_job_and_nothing_else(tmp_path: Path) -> None:
    size = submit.build_package(tmp_path / "p", job_json="{}", code=True)
    assert {path.name for path in (tmp_path / "p").iterdir()} == {"job.json", "jobs", "pipelines", "seg_models"}
    assert not list((tmp_path / "p").rglob("__pycache__"))
    assert size < 3e6


def test_without_code_only_the_job_travels(tmp_path: Path) -> None:
    submit.build_package(tmp_path / "p", job_json='{"a": 1}', code=False)
    assert [path.name for path in (tmp_path / "p").iterdir()] == ["job.json"]


def test_a_package_that_is_too_large_names_its_largest_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit, "MAX_PACKAGE_MB", 0.01)
    with pytest.raises(ValueError, match=r"over the limit of 0.01 MB; largest: .*\.(py|txt)"):
        submit.build_package(tmp_path / "p", job_json="{}", code=True)


def test_a_dry_run_shows_the_resolved_job_and_sends_nothing(
    job_file: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submit, "_send", lambda *_: pytest.fail("sent"))
    arguments = ["submit", "evaluate", job_file, "--address", "http://127.0.0.1:1", "--dry-run", "--predictor.flip"]
    assert cli.run(arguments) == 0
    first, _, text = capsys.readouterr().out.partition("\n")
    assert "to http://127.0.0.1:1, package" in first
    assert json.loads(text)["predictor"]["flip"] is True


def test_no_cluster_named_is_an_error_with_the_remedy(
    job_file: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    assert cli.run(["submit", "evaluate", job_file]) == 2
    assert "no cluster named: give --address" in capsys.readouterr().err


def test_a_cluster_that_does_not_answer_is_an_error(job_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["submit", "evaluate", job_file, "--address", "http://127.0.0.1:9"]) == 2
    assert "the cluster does not take the job" in capsys.readouterr().err


def test_verbs_that_make_no_sense_on_a_cluster_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["submit", "models"]) == 2
    assert "cannot submit 'models'" in capsys.readouterr().err


def test_paths_travel_absolute_and_the_same_job_has_the_same_id(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    texts = []
    for _ in range(2):
        assert cli.run(["submit", "check", "--dataset", "d", "--address", "http://127.0.0.1:1", "--dry-run"]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]
    assert json.loads(texts[0].partition("\n")[2])["dataset"] == str(tmp_path / "d")


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        ({}, ("id", False)),
        ({"id": "RUNNING"}, ("id", True)),
        ({"id": "PENDING"}, ("id", True)),
        ({"id": "FAILED"}, ("id-2", False)),
        ({"id": "SUCCEEDED", "id-2": "STOPPED", "other": "RUNNING"}, ("id-3", False)),
        ({"id": "FAILED", "id-2": "RUNNING"}, ("id-2", True)),
    ],
)
def test_a_job_that_runs_is_followed_and_one_that_ended_gets_a_new_id(
    known: dict[str, str], expected: tuple[str, bool]
) -> None:
    assert submit.choose_id("id", known) == expected


class Cluster:
    """Stands for Ray's job client: every time it is asked for the log it sends the next of `logs`, from the start."""

    def __init__(self, logs: list[list[str]], states: list[str]) -> None:
        self.logs, self.states = logs, states

    async def tail_job_logs(self, chosen: str) -> AsyncIterator[str]:
        for text in self.logs.pop(0):
            if text == "lost":
                raise RuntimeError("connection lost")
            yield text

    def get_job_info(self, chosen: str) -> SimpleNamespace:
        return SimpleNamespace(status=SimpleNamespace(value=self.states.pop(0)), message="no such module")


def test_a_log_that_broke_off_goes_on_where_it_was(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submit, "POLL_S", 0.0)
    client = Cluster([["one\n", "two\n", "lost"], ["one\ntwo\nthr", "ee\n"]], ["RUNNING", "SUCCEEDED"])
    assert submit.follow(client, "x") == 0
    assert capsys.readouterr().out == "one\ntwo\nthree\njob x: succeeded\n"


def test_a_job_that_failed_before_its_log_began_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    assert submit.follow(Cluster([[]], ["FAILED"]), "x") == 1
    assert "segray: error: no such module" in capsys.readouterr().err


def test_cluster_yaml_fits_rays_own_schema() -> None:
    config: dict[str, Any] = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    jsonschema.validate(config, schema)
    assert config["head_node_type"] in config["available_node_types"]
    starts = " ".join(config["head_start_ray_commands"] + config["worker_start_ray_commands"])
    assert starts.count("RAY_AUTH_MODE=token") == 2
    for source in config["file_mounts"].values():
        assert source.startswith("~") or (ROOT / source).exists(), source
