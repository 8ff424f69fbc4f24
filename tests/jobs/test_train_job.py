"""`segray train`: checks before work, Ray Train with one and two workers, a killed worker, a finished run."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file

from jobs import train
from jobs.evaluate import log_evaluation
from jobs.specs import TrainData, TrainJob, ValidationSplit
from jobs.tracked_run import Run
from jobs.tracking import _client, track
from jobs.training.launch import launch
from jobs.training.plan import TrainPlan
from jobs.training.points import PointLog
from jobs.training.resources import Allocation, Node, allocate
from jobs.training.work import check_job
from jobs.training.worker import note_failure, read_failure, run_worker
from pipelines import storage
from pipelines.labels import LabelSpace
from pipelines.samples import Part, build_index
from pipelines.schema import ShardKey
from seg_models.checkpoints import load_model
from seg_models.predictor import PredictorSpec
from seg_models.recipes.recipe import LossSpec
from tests.jobs.tiny_training import TINY_PSPNET, plan_of, tiny_recipe, train_alone
from tests.tiny_data import SPACE, add_labels, write_dataset

SLOW_MACHINE = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("data")
    write_dataset(root, shard_sizes=(6, 6))
    return str(root)


def job_of(dataset: str, output: Path, **changes: Any) -> TrainJob:
    settings: dict[str, Any] = {
        "name": "tiny",
        "recipe": tiny_recipe(model=TINY_PSPNET),
        "data": (TrainData(dataset=dataset),),
        "output": str(output),
        "checkpoint_every": 3,
        "log_every": 2,
        "tracking": {"enabled": False},
        "device": "cpu",
    }
    return TrainJob(**(settings | changes))


# -- before anything starts ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nodes", "workers", "device", "expected"),
    [
        ([Node(2)], 1, "auto", ("cpu", 1.0, 1, 1)),
        ([Node(2)], 2, "cpu", ("cpu", 0.5, 1, 1)),
        ([Node(1)], 1, "cpu", ("cpu", 1.0, 1, 1)),
        ([Node(16)], 1, "auto", ("cpu", 15.0, 15, 3)),
        ([Node(16)], 4, "auto", ("cpu", 3.0, 3, 1)),
        ([Node(4), Node(4), Node(4)], 3, "cpu", ("cpu", 3.0, 3, 1)),
        ([Node(0), Node(4), Node(4)], 2, "cpu", ("cpu", 3.0, 3, 1)),
        ([Node(64), Node(32, gpus=4)], 4, "auto", ("cuda", 8.0, 8, 8)),
        ([Node(32, gpus=4)], 4, "cuda", ("cuda", 7.0, 7, 7)),
        ([Node(32, gpus=4)], 4, "cpu", ("cpu", 7.0, 7, 1)),
        ([Node(8, gpus=1)], 2, "auto", ("cpu", 3.0, 3, 1)),
    ],
)
def test_workers_share_the_cpus_and_leave_one_for_the_data_stages(
    nodes: list[Node], workers: int, device: Any, expected: tuple[str, float, int, int]
) -> None:
    found = allocate(nodes, workers=workers, device=device, threads=None)
    assert (found.device, found.cpus, found.threads, found.data_threads) == expected
    total = sum(node.cpus for node in nodes)
    assert total == 1 or total - found.cpus * workers >= 1


@pytest.mark.parametrize(
    ("nodes", "workers", "data_workers", "cpus"),
    [
        ([Node(16)], 4, 3, 3.0),  # and one CPU for the data stages
        ([Node(2)], 1, 1, 1.0),
        ([Node(3)], 2, 2, 0.5),
        ([Node(8, gpus=1), Node(8)], 1, 10, 5.0),
    ],
)
def test_data_workers_take_a_cpu_each(nodes: list[Node], workers: int, data_workers: int, cpus: float) -> None:
    found = allocate(nodes, workers=workers, device="auto", threads=None, data_workers=data_workers)
    assert found.cpus == cpus
    assert found.text().endswith(f"{data_workers} data workers")


def test_data_workers_that_leave_nothing_are_refused(dataset: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data_workers = 4: each takes a CPU, and of 4 CPUs none would be left"):
        allocate([Node(4)], workers=1, device="cpu", threads=None, data_workers=4)
    with pytest.raises(ValueError, match="data_workers = 1: each of 2 workers needs one of its own"):
        job_of(dataset, tmp_path, workers=2, data_workers=1)


@pytest.mark.parametrize(("gpus", "message"), [(0, "there is no GPU"), (1, "there are 1 GPUs")])
def test_gpus_that_are_not_there_are_refused(gpus: int, message: str) -> None:
    with pytest.raises(ValueError, match=f"device = 'cuda' with workers = 2: {message}"):
        allocate([Node(8, gpus=gpus)], workers=2, device="cuda", threads=None)


def test_a_dry_run_says_what_would_happen_and_leaves_nothing_behind(
    dataset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = train.run(job_of(dataset, tmp_path / "runs", workers=3, accumulate=2), dry_run=True)["plan"]
    assert not (tmp_path / "runs").exists()
    printed = capsys.readouterr().out
    assert "workers = 3 does not divide 4 lanes and a global batch of 4 with accumulate = 2: 2 train, 1 idle" in printed
    assert json.loads(printed[printed.index("{") :])["plan"] == json.loads(json.dumps(plan))
    assert (plan["samples"], plan["steps"], plan["epochs"], plan["classes"]) == (12, 6, 2.0, 3)
    assert (plan["workers"], plan["images_per_worker_and_pass"]) == (2, 1)
    assert plan["data"][0]["rows"] == 12
    parameters = sum(p.numel() for p in tiny_recipe(model=TINY_PSPNET).model.build(3).parameters())
    assert plan["parameters"] == parameters
    assert plan["checkpoint_mb"] == round(8 * parameters / 1e6, 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": (TrainData(dataset="no/such/place"),)}, "no such folder"),
        ({"data": "split"}, "^data: .*did you mean 'train'"),
        ({"validate_on": "split"}, "^validate_on: .*did you mean 'train'"),
        ({"accumulate": 3}, "accumulate = 3 does not divide"),
        ({"init_from": "no/such/model"}, "init_from: no/such/model holds no model"),
        ({"device": "cuda"}, "device = 'cuda' with workers = 1: there is no GPU"),
    ],
)
def test_a_job_that_cannot_work_is_refused_before_anything_is_written(
    dataset: str, tmp_path: Path, changes: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    misspelt = TrainData(dataset=dataset, split="trian")
    if changes.get("data") == "split":
        changes = {"data": (misspelt,)}
    if changes.get("validate_on") == "split":
        changes = {"validate_on": ValidationSplit(dataset=dataset, split="trian")}
    job = job_of(dataset, tmp_path / "runs", **changes)
    with pytest.raises(ValueError, match=message):
        train.run(job, dry_run=True)
    assert not (tmp_path / "runs").exists()


def test_a_validation_set_of_other_classes_is_refused(dataset: str, tmp_path: Path) -> None:
    other = write_dataset(tmp_path / "other", space=LabelSpace(names=("sky", "sea", "sand")))
    with pytest.raises(ValueError, match="validate_on: the class list"):
        train.run(job_of(dataset, tmp_path, validate_on=ValidationSplit(dataset=other.root)), dry_run=True)


def test_weighed_scales_of_a_network_that_weighs_none_are_refused(dataset: str, tmp_path: Path) -> None:
    looks = ValidationSplit(dataset=dataset, predictor=PredictorSpec(hierarchical=True))
    with pytest.raises(ValueError, match=r"^validate_on\.predictor\.hierarchical = true: .* does not weigh scales"):
        train.run(job_of(dataset, tmp_path, validate_on=looks), dry_run=True)


def test_weights_that_are_not_there_are_named_before_anything_starts(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "ray_session", lambda _: pytest.fail("Ray was started"))
    changes: tuple[dict[str, Any], ...] = ({"weights": str(tmp_path / "resnet18.pth")}, {"pretrained": True})
    local, published = ({**TINY_PSPNET, "backbone": {**TINY_PSPNET["backbone"], **change}} for change in changes)
    for dry_run in (True, False):
        with pytest.raises(ValueError, match=r"'resnet18.pth' are missing: put the file at .*/resnet18.pth"):
            train.run(job_of(dataset, tmp_path / "runs", recipe=tiny_recipe(model=local)), dry_run=dry_run)

    def offline(repo: str, _: str) -> str:
        raise ConnectionError("offline")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    job = job_of(dataset, tmp_path / "runs", recipe=tiny_recipe(model=published))
    train.run(job, dry_run=True)  # fetches nothing
    with pytest.raises(ValueError, match=r"cannot be fetched \(offline\): copy 'model.safetensors'"):
        train.run(job)
    assert not (tmp_path / "runs").exists()


def test_a_background_weight_for_classes_without_background_is_refused(tmp_path: Path) -> None:
    plain = write_dataset(tmp_path / "plain", space=LabelSpace(names=("sky", "sea", "sand")))
    job = job_of(plain.root, tmp_path, recipe=tiny_recipe(loss=LossSpec(background_weight=0.1)))
    with pytest.raises(ValueError, match=r"background_weight .* takes no effect"):
        train.run(job, dry_run=True)


def test_an_output_that_cannot_be_written_is_named_and_no_database_is_made(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "ray_session", lambda _: pytest.fail("Ray was started"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="file/runs/tiny: cannot be written"):
        train.run(job_of(dataset, tmp_path / "file" / "runs", tracking={}))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("fails", [False, True])
def test_mlflow_gets_the_whole_curve_and_the_result_before_the_run_counts_as_done(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mlflow_database: str, fails: bool
) -> None:
    def launch_elsewhere(plan: TrainPlan, allocation: Allocation, **_: Any) -> dict[str, Any]:
        points = PointLog(plan.run, from_step=0)  # its worker could send nothing
        for step in (2, 4, 6):
            points.log({"train/loss": 1.0 / step}, step=step)
        points.close()
        if fails:
            raise ValueError("the loss is nan")
        return {"steps": 6, "seconds": 1.0, "images_per_s": 24.0, "workers": 1, "transfer": None, "reason": ""}

    def write(uri: str, text: str) -> None:
        told.append(uri)
        storage.write_bytes(uri, text.encode())

    told: list[str] = []
    result = str(tmp_path / "runs" / "tiny" / "result.json")
    monkeypatch.setattr(train, "launch", launch_elsewhere)
    monkeypatch.setattr("pipelines.storage.write_text", write)
    monkeypatch.setattr(Run, "log_dict", lambda _, value, name: told.append(f"MLflow {name}"))
    job = job_of(dataset, tmp_path / "runs", tracking={"uri": mlflow_database})
    work, allocation = check_job(job), Allocation(workers=1, device="cpu", cpus=1.0, threads=1, data_threads=1)
    ending = pytest.raises(ValueError, match="nan") if fails else contextlib.nullcontext()
    with ending, track(job, verb="train", output=work.run) as tracked:
        train.train(work, allocation, tracked)
    assert [step for step, _ in _tracked_losses(tracked.address)] == [2, 4, 6]
    assert [name for name in told if name.endswith("result.json")] == ([] if fails else ["MLflow result.json", result])


def test_a_restarted_worker_hands_back_the_error_of_the_user(dataset: str, tmp_path: Path) -> None:
    plan = plan_of(build_index([Part(dataset=dataset)]), tmp_path, tiny_recipe())
    note_failure(plan.run, "abc", "the label is torn")
    note_failure(plan.run, "abc", "a consequence of it")
    settings = {"plan": pickle.dumps(plan), "attempt": "abc", "device": "cpu"}
    assert run_worker(settings) == {"failure": "the label is torn"}
    assert read_failure(plan.run, "another attempt") is None


# -- on Ray ----------------------------------------------------------------------------------------------------------


@SLOW_MACHINE
@pytest.mark.usefixtures("ray_local")
def test_one_worker_trains_evaluates_and_is_tracked_and_a_second_call_only_ends_its_run(
    dataset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_of(
        dataset,
        tmp_path / "runs",
        validate_on=ValidationSplit(dataset=dataset),
        tracking={"uri": f"sqlite:///{tmp_path}/mlflow.db"},
    )
    run = tmp_path / "runs" / "tiny"

    def tell(*arguments: Any, **settings: Any) -> None:
        assert not (run / "result.json").exists(), "a driver killed here must not count as done"
        log_evaluation(*arguments, **settings)

    monkeypatch.setattr(train, "log_evaluation", tell)
    result = train.run(job)
    assert result == json.loads((run / "result.json").read_text())
    assert TrainJob.model_validate_json((run / "job.json").read_bytes()) == job
    assert (result["steps"], result["workers"], result["resumed_from"]) == (6, 1, 0)
    assert [step for step, _ in result["curve"]] == [2, 4, 6]
    assert result["loss"] == result["curve"][-1][1]
    assert 0 <= result["miou"] <= 1
    assert result["evaluated"] == 12
    loaded = load_model(run / "model")
    assert loaded.info["provenance"]["step"] == 6
    assert LabelSpace.model_validate(loaded.label_space).names == ("ground", "red", "green")
    steps, losses = zip(*result["curve"], strict=True)
    tracked = _tracked_losses(result["mlflow"])
    assert tuple(step for step, _ in tracked) == steps
    assert tuple(loss for _, loss in tracked) == pytest.approx(losses)
    assert not list(run.glob("failure*"))
    _same_as_without_ray(run, dataset, tmp_path)

    client = _client(result["mlflow"]["tracking_uri"])
    client.update_run(result["mlflow"]["run_id"], status="RUNNING")  # as a driver leaves it that is killed at the end
    files = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    assert train.run(job, dry_run=True) == result
    assert client.get_run(result["mlflow"]["run_id"]).info.status == "RUNNING"
    assert train.run(job) == result
    assert client.get_run(result["mlflow"]["run_id"]).info.status == "FINISHED"
    assert _tracked_losses(result["mlflow"]) == tracked
    assert "finished, 6 steps; nothing to do" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == files
    changed = job.model_copy(update={"recipe": tiny_recipe(model=TINY_PSPNET, seed=1)})
    with pytest.raises(ValueError, match=r"recipe\.seed: now 1, there 0"):
        train.run(changed)


def _tracked_losses(address: dict[str, str]) -> list[tuple[int, float]]:
    history = _client(address["tracking_uri"]).get_metric_history(address["run_id"], "train/loss")
    return sorted((point.step, point.value) for point in history)


def _same_as_without_ray(run: Path, dataset: str, tmp_path: Path) -> None:
    recipe = tiny_recipe(model=TINY_PSPNET)
    alone, _ = train_alone(plan_of(build_index([Part(dataset=dataset)]), tmp_path / "alone", recipe))
    found = load_file(run / "model" / "model.safetensors")
    assert all(torch.equal(found[name], value) for name, value in alone.state_dict().items())


@SLOW_MACHINE
@pytest.mark.usefixtures("ray_local")
def test_two_workers_train_on_human_and_teacher_labels_together(dataset: str, tmp_path: Path) -> None:
    mixed = write_dataset(tmp_path / "mixed", shard_sizes=(4, 3))
    numbers = {ShardKey("train", 0): range(4), ShardKey("train", 1): range(4, 7)}
    add_labels(mixed, "teacher", space=SPACE, shards=numbers)
    parts = (TrainData(dataset=dataset), TrainData(dataset=mixed.root, labels="teacher"))
    # Without dropout, which draws differently on two workers, both see the same global batches.
    recipe = tiny_recipe(model={**TINY_PSPNET, "dropout": 0.0})
    result = train.run(job_of(dataset, tmp_path / "runs", workers=2, data=parts, recipe=recipe))
    assert (result["workers"], result["samples"]) == (2, 19)
    index = build_index([Part(**part.model_dump()) for part in parts])
    alone, _ = train_alone(plan_of(index, tmp_path / "alone", recipe))
    found = load_file(tmp_path / "runs" / "tiny" / "model" / "model.safetensors")
    for name, value in alone.state_dict().items():
        torch.testing.assert_close(found[name], value, atol=2e-3, rtol=2e-2)


@SLOW_MACHINE
@pytest.mark.faults
@pytest.mark.usefixtures("ray_local")
def test_a_killed_worker_costs_only_the_steps_since_the_last_checkpoint(dataset: str, tmp_path: Path) -> None:
    recipe = tiny_recipe(model=TINY_PSPNET, steps=60)
    job = job_of(dataset, tmp_path / "runs", recipe=recipe, checkpoint_every=5)
    run = tmp_path / "runs" / "tiny"
    killed: list[int] = []
    killer = threading.Thread(target=_kill_after_a_checkpoint, args=(run, killed), daemon=True)
    killer.start()
    result = train.run(job)
    killer.join(timeout=5)
    assert killed, "the worker was not found in time"
    assert result["resumed_from"] >= 5
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(2, 61, 2))
    alone = plan_of(build_index([Part(dataset=dataset)]), tmp_path / "alone", recipe)
    model, _ = train_alone(alone)
    found = load_file(run / "model" / "model.safetensors")
    assert all(torch.equal(found[name], value) for name, value in model.state_dict().items())


def _kill_after_a_checkpoint(run: Path, killed: list[int]) -> None:
    """Kill -9 the training worker among our descendants once the first checkpoint is whole."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and not list(run.glob("checkpoints/step-*/manifest.json")):
        time.sleep(0.01)
    for process in _descendants(os.getpid()):
        if "RayTrainWorker" in Path(f"/proc/{process}/cmdline").read_text():
            os.kill(process, signal.SIGKILL)
            killed.append(process)


def _descendants(root: int) -> list[int]:
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
    found = [root]
    for process in found:
        found += [child for child, parent in parents.items() if parent == process]
    return found[1:]


@SLOW_MACHINE
@pytest.mark.usefixtures("ray_local")
def test_a_sample_that_cannot_be_read_ends_the_run_with_its_name(tmp_path: Path) -> None:
    broken = write_dataset(tmp_path / "data", shard_sizes=(4,), damaged=(2,))
    with pytest.raises(ValueError, match="row 2 id 'scene-0002'"):
        train.run(job_of(broken.root, tmp_path / "runs", max_failures=0))
    run = tmp_path / "runs" / "tiny"
    assert not (run / "result.json").exists()
    assert not (run / "model").exists()
    assert not list(run.glob("failure*"))


@SLOW_MACHINE
@pytest.mark.usefixtures("ray_local")
def test_a_run_stopped_from_outside_counts_as_interrupted_and_not_as_done(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.training.launch._Trainer.fit", lambda self: SimpleNamespace(return_value=None))
    with pytest.raises(KeyboardInterrupt):
        train.run(job_of(dataset, tmp_path / "runs"))
    assert not (tmp_path / "runs" / "tiny" / "result.json").exists()


@SLOW_MACHINE
@pytest.mark.usefixtures("ray_local")
def test_resources_that_never_come_end_the_run_with_a_message(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "1")
    plan: TrainPlan = plan_of(build_index([Part(dataset=dataset)]), tmp_path, tiny_recipe())
    greedy = Allocation(workers=1, device="cpu", cpus=64.0, threads=1, data_threads=1)
    with pytest.raises(RuntimeError, match=r"Ray could not start 1 x 64 CPU, .* within 3 x 1 s"):
        launch(plan, greedy, name="greedy", max_failures=0)
