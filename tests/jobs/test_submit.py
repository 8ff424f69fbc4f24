"""Sending jobs to a cluster: the package and the words on the way."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import pytest
import ray
import yaml
from ray.autoscaler._private.util import prepare_config

from jobs import cli, submit
from tests.tiny_data import write_dataset

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


def test_code_of_ones_own_travels_beside_it(tmp_path: Path) -> None:
    (tmp_path / "acme" / "__pycache__").mkdir(parents=True)
    (tmp_path / "acme" / "nets.py").write_text("")
    (tmp_path / "lone.py").write_text("")
    include = [tmp_path / "acme", tmp_path / "lone.py"]
    submit.build_package(tmp_path / "p", job_json="{}", code=False, include=include)
    found = {str(path.relative_to(tmp_path / "p")) for path in (tmp_path / "p").rglob("*") if path.is_file()}
    assert found == {"job.json", "acme/nets.py", "lone.py"}


def test_a_linked_package_travels_under_the_name_that_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, job_file: str
) -> None:
    (tmp_path / "acme-1.2").mkdir()
    (tmp_path / "acme-1.2" / "nets.py").touch()
    (tmp_path / "acme").symlink_to("acme-1.2")
    monkeypatch.chdir(tmp_path)
    sent: list[str] = []

    def send(verb: str, package: Path, options: submit.SubmitOptions) -> int:
        sent.extend(path.name for path in package.iterdir())
        return 0

    monkeypatch.setattr(submit, "_send", send)
    arguments = ["evaluate", job_file, "--address", "http://127.0.0.1:1", "--include", "acme", "--no-code"]
    assert submit.submit_command(arguments) == 0
    assert sorted(sent) == ["acme", "job.json"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("acne", r"--include: 'acne' is neither a folder nor a \.py file .did you mean 'acme'"),
        ("jobs", "would take the place of segray's own 'jobs'"),
        ("pipelines.py", "would take the place of segray's own 'pipelines'"),
        ("other/acme", "'other/acme' would take the place of '.*/acme'; give one of them another name"),
    ],
)
def test_what_cannot_be_included_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    job_file: str,
    name: str,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "acme").mkdir()
    (tmp_path / "jobs").mkdir()
    (tmp_path / "other" / "acme").mkdir(parents=True)
    (tmp_path / "pipelines.py").touch()
    included = ["--include", "acme", "--include", name]
    arguments = ["submit", "evaluate", job_file, "--address", "http://127.0.0.1:1", *included, "--dry-run"]
    assert cli.run(arguments) == 2
    assert re.search(message, capsys.readouterr().err)


def test_a_package_that_is_too_large_names_its_largest_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit, "MAX_PACKAGE_MB", 0.01)
    with pytest.raises(ValueError, match=r"over the limit of 0.01 MB; largest: .*\.(py|txt)"):
        submit.build_package(tmp_path / "p", job_json="{}", code=True)


def test_a_folder_of_data_is_refused_before_it_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").mkdir()
    with (tmp_path / "mine" / "data.bin").open("wb") as file:
        file.truncate(80_000_000)
    monkeypatch.setattr(shutil, "copy2", lambda *_: pytest.fail("copied"))
    with pytest.raises(ValueError, match=r"package of 80 MB .*; largest: mine/data\.bin 80\.0 MB"):
        submit.build_package(tmp_path / "p", job_json="{}", code=False, include=[tmp_path / "mine"])


def test_a_dry_run_shows_the_resolved_job_and_sends_nothing(
    job_file: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submit, "_send", lambda *_: pytest.fail("sent"))
    arguments = ["submit", "evaluate", job_file, "--address", "http://127.0.0.1:1", "--dry-run", "--predictor.flip"]
    assert cli.run(arguments) == 0
    first, _, text = capsys.readouterr().out.partition("\n")
    assert "to http://127.0.0.1:1, package" in first
    assert json.loads(text)["predictor"]["flip"] is True


def test_a_dry_run_counts_what_the_places_hold(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    dataset = write_dataset(tmp_path / "data", shard_sizes=(3,), split="test")
    arguments = ["--dataset", dataset.root, "--compute.actors", "500", "--address", "http://127.0.0.1:1", "--dry-run"]
    assert cli.run(["submit", "check", *arguments]) == 0
    plan = json.loads(capsys.readouterr().out.partition("\n")[2])["plan"]
    assert plan["images"] == 3
    assert plan["compute"]["where"] == "http://127.0.0.1:1"
    assert "RAY_ADDRESS" not in os.environ


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


@pytest.mark.parametrize("verb", ["models", "recipes", "weights"])
def test_verbs_that_make_no_sense_on_a_cluster_are_refused(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["submit", verb]) == 2
    assert f"cannot submit '{verb}'" in capsys.readouterr().err


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

    def __init__(self, logs: list[list[str]], states: list[str], code: int | None = None) -> None:
        self.logs, self.states, self.code = logs, states, code
        """A state `lost` stands for a cluster that does not answer."""

    async def tail_job_logs(self, chosen: str) -> AsyncIterator[str]:
        for text in self.logs.pop(0):
            if text == "lost":
                raise RuntimeError("connection lost")
            yield text

    def get_job_info(self, chosen: str) -> SimpleNamespace:
        status = SimpleNamespace(value=self.states.pop(0))
        if status.value == "lost":
            raise ConnectionError("connection refused")
        return SimpleNamespace(status=status, message="no such module", driver_exit_code=self.code)


def test_a_log_that_broke_off_goes_on_where_it_was(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submit, "POLL_S", 0.0)
    client = Cluster([["one\n", "two\n", "lost"], ["one\ntwo\nthr", "ee\n"]], ["RUNNING", "SUCCEEDED"])
    assert submit.follow(client, "x") == 0
    assert capsys.readouterr().out == "one\ntwo\nthree\njob x: succeeded\n"


def test_a_cluster_that_is_away_for_a_while_is_asked_again(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submit, "POLL_S", 0.0)
    client = Cluster([["one\n", "lost"], ["lost"], ["one\ntwo\n"]], ["lost", "lost", "SUCCEEDED"])
    assert submit.follow(client, "x") == 0
    shown = capsys.readouterr()
    assert shown.out == "one\ntwo\njob x: succeeded\n"
    assert shown.err.count("trying again") == 1
    monkeypatch.setattr(submit, "GIVE_UP_S", 0.0)
    with pytest.raises(RuntimeError, match=r"no answer about job x .*connection refused.*; it may run on"):
        submit.follow(Cluster([["lost"], ["lost"]], ["lost", "lost"]), "x")


def test_a_job_that_failed_before_its_log_began_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    assert submit.follow(Cluster([[]], ["FAILED"]), "x") == 1
    assert "segray: error: no such module" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("state", "code", "expected"),
    [
        ("SUCCEEDED", 0, 0),
        ("FAILED", 2, 2),
        ("FAILED", 1, 1),
        ("FAILED", -9, 137),
        ("FAILED", None, 1),
        ("STOPPED", None, 1),
    ],
)
def test_submit_ends_with_the_exit_code_of_the_job(state: str, code: int | None, expected: int) -> None:
    assert submit.follow(Cluster([["log\n"]], [state], code), "x") == expected


def test_variables_of_stores_and_tracking_travel_and_those_of_this_machine_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    travel = {
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_SESSION_TOKEN": "c",
        "AWS_ENDPOINT_URL_S3": "http://s3",
        "AWS_ALLOW_HTTP": "true",
        "MLFLOW_TRACKING_TOKEN": "d",
        "MLFLOW_S3_ENDPOINT_URL": "http://s3",
    }
    stay = [
        "AWS_PROFILE",
        "AWS_DEFAULT_PROFILE",
        "AWS_CONFIG_FILE",
        "AWS_SHARED_CREDENTIALS_FILE",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_ROLE_ARN",
        "AWS_CA_BUNDLE",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
        "AWS_EC2_METADATA_DISABLED",
        "MLFLOW_TRACKING_CLIENT_CERT_PATH",
        "PATH",
        "HOME",
    ]
    database = {"MLFLOW_TRACKING_URI": "sqlite:///mlflow.db"}
    passed = submit.passed_on({**travel, **database, **dict.fromkeys(stay, "x")})
    assert passed == {**travel, "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}


@pytest.fixture(scope="module")
def cluster_yaml() -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    return config


def test_every_node_type_says_its_image_and_profile_in_words_ec2_knows(cluster_yaml: dict[str, Any]) -> None:
    session, validate = importlib.import_module("botocore.session"), importlib.import_module("botocore.validate")
    shape = session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape
    for name, node_type in cluster_yaml["available_node_types"].items():
        node = node_type["node_config"]
        unknown = validate.ParamValidator().validate({**node, "MinCount": 1, "MaxCount": 1}, shape)
        assert not unknown.has_errors(), f"{name}: {unknown.generate_report()}"
        assert re.fullmatch(r"ami-[0-9a-f]+|resolve:ssm:/aws/service/\S+", node["ImageId"]), name
        assert node["IamInstanceProfile"], name


def test_ray_adds_nothing_of_its_own_to_the_set_up(cluster_yaml: dict[str, Any]) -> None:
    prepared = prepare_config(cluster_yaml)
    assert prepared["head_setup_commands"] == prepared["worker_setup_commands"] == cluster_yaml["setup_commands"]


def test_the_lock_holds_what_ray_up_needs() -> None:
    locked = dict(line.split("==") for line in (ROOT / "requirements.lock").read_text().split() if "==" in line)
    assert locked["boto3"].split(".")[:2] == locked["botocore"].split(".")[:2]


def test_cluster_yaml_fits_rays_own_schema(cluster_yaml: dict[str, Any]) -> None:
    config = cluster_yaml
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    jsonschema.validate(config, schema)
    assert config["head_node_type"] in config["available_node_types"]
    starts = " ".join(config["head_start_ray_commands"] + config["worker_start_ray_commands"])
    assert starts.count("RAY_AUTH_MODE=token") == 2
    for source in config["file_mounts"].values():
        assert source.startswith("~") or (ROOT / source).exists(), source
