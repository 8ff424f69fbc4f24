"""Kill -9 of the driver half-way: the next run continues and ends with equal bytes."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.faults.labelling import committed, printed, settings, start, wait_for_shards, write_dataset, write_weights

SHARDS, SAMPLES = 8, 20


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_driver_killed_half_way_continues_to_equal_bytes(tmp_path: Path) -> None:
    weights = write_weights(tmp_path)
    calm, killed = (write_dataset(str(tmp_path / name), shards=SHARDS) for name in ("calm", "killed"))
    job, file = settings(killed.root, weights, samples=SAMPLES), tmp_path / "killed.json"
    undisturbed = start(settings(calm.root, weights, samples=SAMPLES), tmp_path / "calm.json", engine="inline")
    driver = start(job, file)
    wait_for_shards(driver, killed)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    halfway = committed(killed)
    assert 0 < halfway < SHARDS
    assert undisturbed.wait(timeout=180) == 0
    assert start(job | {"compute": {"actors": 2, "cpus": 0.5, "fetch": 8}}, file).wait(timeout=180) == 0
    assert f"{halfway} of {SHARDS} shards committed by earlier runs" in printed(file)
    assert killed.labels("pssl").fingerprint() == calm.labels("pssl").fingerprint()
    assert killed.labels("pssl").label_digest() == calm.labels("pssl").label_digest()
