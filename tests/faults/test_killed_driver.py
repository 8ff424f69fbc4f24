"""Kill -9 of the driver half-way: the next run continues and ends with equal bytes."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from pipelines import schema
from pipelines.labels import LabelSpace
from pipelines.schema import ShardKey
from pipelines.tables import Dataset, DatasetInfo, write_shard

SHARDS, ROWS = 8, 4


def write_dataset(root: Path) -> None:
    space = LabelSpace(names=("a", "b"))
    images = Dataset.create(str(root), DatasetInfo(name="tiny", label_space=space, splits=("train",))).images
    columns = pa.schema([field for field in schema.IMAGES if field.name not in schema.PARTITION_BY])
    for shard in range(SHARDS):
        rows = []
        for number in range(shard * ROWS, (shard + 1) * ROWS):
            pixels = np.random.default_rng(number).integers(0, 256, (48, 64, 3)).astype(np.uint8)
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "PNG")
            size = {"height": 48, "width": 64}
            rows.append({"id": f"i{number}", "image": buffer.getvalue(), **size, "class": number % 2})
        images.commit([write_shard(images.uri, ShardKey("train", shard), pa.Table.from_pylist(rows, columns))])


def start(dataset: Path, weights: Path) -> subprocess.Popen[bytes]:
    job = {
        "dataset": str(dataset),
        "ensemble": {"classifiers": [{"name": "test_resnet", "weights": str(weights), "num_classes": 2, "size": 64}]},
        "pssl": {"explainer": {"kind": "smoothgrad", "samples": 150}, "numerics": {"chunk": 1}},
        "tracking": {"enabled": False},
        "compute": {"actors": 1, "cpus": 0.5},
    }
    file = dataset.parent / f"{dataset.name}.json"
    file.write_text(json.dumps(job))
    return subprocess.Popen(
        [sys.executable, "-c", _DRIVER, "pssl", str(file)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


# The real command line, with every receipt committed at once, so that there is something to interrupt.
_DRIVER = """
import sys
from pipelines import label_run, shards
label_run.CommitBuffer = lambda commit: shards.CommitBuffer(commit, max_receipts=1)
from jobs.cli import main
main(sys.argv[1:])
"""


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_driver_killed_half_way_continues_to_equal_bytes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_file(timm.create_model("test_resnet", num_classes=2).state_dict(), tmp_path / "w.safetensors")
    for name in ("calm", "killed"):
        write_dataset(tmp_path / name)
    assert start(tmp_path / "calm", tmp_path / "w.safetensors").wait(timeout=180) == 0
    driver = start(tmp_path / "killed", tmp_path / "w.safetensors")
    killed = Dataset.open(str(tmp_path / "killed"))
    deadline = time.monotonic() + 120
    while not (0 < committed(killed) < SHARDS):
        assert driver.poll() is None, "the driver ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    halfway = committed(killed)
    assert 0 < halfway < SHARDS
    assert start(tmp_path / "killed", tmp_path / "w.safetensors").wait(timeout=180) == 0
    again, calm = killed.labels("pssl"), Dataset.open(str(tmp_path / "calm")).labels("pssl")
    assert again.counts().rows == SHARDS * ROWS
    assert again.label_digest() == calm.label_digest()


def committed(dataset: Dataset) -> int:
    return len(dataset.labels("pssl").files()) if "pssl" in dataset.label_sets() else 0
