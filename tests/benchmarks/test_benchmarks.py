"""Every benchmark runs and writes entries of the promised shape; how fast anything is, no test says."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import (
    codec,
    colors,
    confusion,
    criss_cross,
    data_path,
    deciles,
    eval_path,
    fastfcn,
    gpu,
    hmsa,
    position_attention,
    prediction,
    ray_pssl_loop,
    run,
    smoothgrad,
    train_step,
    upsample_ce,
)
from benchmarks.measure import Effort, Entries, Measured, Skipped, median_pair, write
from benchmarks.networks import random_network
from benchmarks.processes import family
from benchmarks.resident import peak_bytes

ROOT = Path(__file__).resolve().parents[2]

TINY = Effort(pairs=1, tiny=True)
NAMES = {
    deciles: {f"deciles_{peer}{ending}" for peer in ("torch", "numpy") for ending in ("", "_224", "_float64")},
    codec: {"label_codec_bytes", "label_codec_encode", "label_codec_decode"},
    colors: {"colors_torchvision"},
    confusion: {"confusion_numpy", "confusion_mmseg", "confusion_torchmetrics"},
    eval_path: {"eval_path_memory", "eval_path_time"},
    position_attention: {"pam_time", "pam_memory"},
    criss_cross: {
        "cca_time",
        "cca_memory",
        "cca_nonlocal_time",
        "cca_nonlocal_block_time",
        "cca_nonlocal_memory",
    },
    smoothgrad: {
        "smoothgrad_resnet50_fp32",
        "smoothgrad_efficientnet_b0_fp32",
        "smoothgrad_resnet50_bf16",
        "smoothgrad_resnet50_loop",
    },
    upsample_ce: {
        f"upsample_ce{ending}_{what}" for ending in ("", "_weighted", "_ohem", "_150") for what in ("time", "memory")
    },
    prediction: {
        "prediction_windows_time",
        "prediction_windows_memory",
        "prediction_scales_time",
        "prediction_network_memory",
    },
    fastfcn: {"fastfcn_dilated_time", "fastfcn_dilated_gmac"},
    hmsa: {"hmsa_pair_gmac"},
}


def check_shape(entry: dict[str, Any]) -> None:
    """`{ours, peer, ratio, unit}` with the ratio as promised, or `{skipped}` with a reason."""
    if set(entry) == {"skipped"}:
        assert entry["skipped"]
        return
    assert set(entry) == {"ours", "peer", "ratio", "unit"}
    assert entry["ours"] > 0
    assert entry["peer"] > 0
    better = entry["ours"] / entry["peer"] if "/" in entry["unit"] else entry["peer"] / entry["ours"]
    assert math.isclose(entry["ratio"], better)


def written(entries: Entries, folder: Path) -> dict[str, dict[str, Any]]:
    write(entries, folder / "out" / "bench.json")
    found: dict[str, dict[str, Any]] = json.loads((folder / "out" / "bench.json").read_text())
    return found


@pytest.mark.parametrize("benchmark", NAMES, ids=lambda module: module.__name__.rpartition(".")[2])
def test_every_benchmark_writes_entries_of_the_promised_names_and_shape(benchmark: Any, tmp_path: Path) -> None:
    found = written(benchmark.entries(TINY), tmp_path)
    assert set(found) == NAMES[benchmark]
    for entry in found.values():
        check_shape(entry)


def test_the_suite_runs_every_benchmark() -> None:
    with_processes = {module.entries for module in (ray_pssl_loop, data_path, train_step)}
    assert {*run.SUITE} == {module.entries for module in NAMES} | with_processes


@pytest.mark.cluster
@pytest.mark.slow
def test_the_data_path_is_measured_both_ways_on_made_pictures(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ray_local: None
) -> None:
    monkeypatch.setenv("SEGRAY_DATA", str(tmp_path))
    found = written(data_path.entries(TINY), tmp_path)
    assert set(found) == {"data_path_dataloader", "data_path_dataloader_threads"}
    for entry in found.values():
        check_shape(entry)


@pytest.mark.slow
def test_a_training_step_is_measured_against_a_plain_script(tmp_path: Path) -> None:
    found = written(train_step.entries(TINY), tmp_path)
    assert set(found) == {"train_step_ddp"}
    check_shape(found["train_step_ddp"])


@pytest.mark.slow
def test_a_process_that_predicts_2048_by_4096_pixels_stays_under_the_limit_it_was_told() -> None:
    grown = peak_bytes("benchmarks.prediction:prepare_ours", *prediction.Case(network=1))
    assert 0.1e9 < grown < prediction.LIMIT_GB * 1e9


def test_a_benchmark_is_a_command_that_prints_and_writes(tmp_path: Path) -> None:
    output = tmp_path / "bench.json"
    arguments = ["-m", "benchmarks.codec", "--tiny", "--pairs", "1", "--output", str(output)]
    done = subprocess.run([sys.executable, *arguments], check=True, capture_output=True, text=True, cwd=ROOT)
    found = json.loads(output.read_text())
    assert [line.split()[0] for line in done.stdout.splitlines()] == list(found)
    assert f"{found['label_codec_bytes']['ratio']:.2f} x" in done.stdout


def test_the_ratio_says_how_many_times_better_ours_is() -> None:
    assert Measured(2.0, 6.0, "s").ratio == 3
    assert Measured(6.0, 2.0, "images/s", more_is_better=True).ratio == 3


def test_the_median_pair_is_one_that_was_measured() -> None:
    pairs = [(1.0, 9.0), (2.0, 4.0), (5.0, 5.0)]
    found = median_pair(pairs, unit="s")
    assert (found.ours, found.peer, found.ratio) == (2.0, 4.0, 2.0)
    reversed_ = median_pair(pairs, unit="images/s", more_is_better=True)
    assert (reversed_.ours, reversed_.peer) == (2.0, 4.0)


def test_the_maps_that_are_timed_are_alike() -> None:
    entry = smoothgrad.entries(TINY)["smoothgrad_resnet50_fp32"]
    assert isinstance(entry, Measured)
    assert float(entry.note.rpartition("cosine ")[2]) > 0.9999


def test_a_processor_without_bfloat16_skips_it_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smoothgrad, "fast_bfloat16", lambda: False)
    found = smoothgrad.entries(TINY)
    skipped, loop = found["smoothgrad_resnet50_bf16"], found["smoothgrad_resnet50_loop"]
    assert isinstance(skipped, Skipped)
    assert "bf16" in skipped.reason
    assert isinstance(loop, Measured)
    assert "float32" in loop.note


def test_without_the_photographs_the_loop_is_skipped_and_says_what_it_needs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SEGRAY_DATA", str(tmp_path))
    entry = ray_pssl_loop.entries(TINY)["ray_pssl_loop"]
    assert isinstance(entry, Skipped)
    assert "imagenet-sample-1000" in entry.reason


@pytest.mark.real
@pytest.mark.cluster
def test_ray_and_the_loop_make_the_same_labels(
    monkeypatch: pytest.MonkeyPatch, shared_data: Path, tmp_path: Path
) -> None:
    monkeypatch.setenv("SEGRAY_DATA", str(shared_data))
    check_shape(written(ray_pssl_loop.entries(TINY), tmp_path)["ray_pssl_loop"])


def test_a_family_of_processes_counts_what_its_children_spend() -> None:
    work = "import time\nwhile time.process_time() < 0.3: pass\nprint('spent', flush=True)\ninput()"
    child = subprocess.Popen([sys.executable, "-c", work], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "spent\n"
        found = family(os.getpid())
        assert found[child.pid].parent == os.getpid()
        assert 0.25 <= found[child.pid].cpu_s < 5
        assert work.splitlines()[0] in found[child.pid].command
    finally:
        child.communicate("\n")
    assert child.pid not in family(os.getpid())


def test_the_gpu_set_runs_without_ray_and_mlflow(tmp_path: Path) -> None:
    code = "import sys; sys.modules.update(dict.fromkeys(('ray', 'mlflow', 'captum')))\n"
    code += "from benchmarks.gpu import main; main()"
    output = tmp_path / "gpu.json"
    arguments = ["--device", "cpu", "--smoke", "--output", str(output)]
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, cwd=ROOT)
    found = json.loads(output.read_text())
    assert {"images_per_s_paper", "imagenet_hours_paper", "imagenet_hours_fast", "peak_share_test_resnet"} <= set(found)
    check_shape(found["smoothgrad_test_resnet_captum"])
    assert all(entry.get("value", 1) > 0 for entry in found.values())


def test_the_gpu_set_is_skipped_with_a_reason_where_there_is_no_gpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    output = tmp_path / "gpu.json"
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu", "--output", str(output)])
    gpu.main()
    found = json.loads(output.read_text())
    assert set(found) == set(gpu.MAIN_ENTRIES)
    assert {entry["skipped"] for entry in found.values()} == {"torch sees no CUDA device"}


def test_our_own_tunnel_stands_in_for_captums() -> None:
    network = random_network("test_resnet", size=32)
    image = torch.randn(1, 3, 32, 32)
    captums, title = gpu.captum_peer(network, samples=3)
    assert title == "Captum"
    torch.manual_seed(0)
    theirs = captums(image)
    torch.manual_seed(0)
    ours = gpu.own_tunnel(network, image, samples=3)
    assert np.allclose(theirs.detach(), ours, rtol=1e-4, atol=1e-6)


def test_memory_is_that_of_the_work_however_large_this_process_is() -> None:
    held = np.ones(400_000_000, np.uint8)
    grown = peak_bytes("tests.benchmarks.test_benchmarks:hold_megabytes", 100)
    assert 90e6 < grown < 200e6 < held.nbytes


def hold_megabytes(number: int) -> Callable[[], object]:
    return lambda: np.ones(number * 1_000_000, np.uint8)
