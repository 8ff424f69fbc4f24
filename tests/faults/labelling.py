"""A small PSSL job for tests that interfere with it: dataset, weights, and `segray pssl` as a process of its own."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from pipelines import schema
from pipelines.labels import LabelSpace
from pipelines.schema import ShardKey
from pipelines.tables import Dataset, DatasetInfo, write_shard

ROOT = Path(__file__).resolve().parents[2]


def write_dataset(root: str, *, shards: int = 8, rows: int = 4) -> Dataset:
    """Noise of three shapes in two classes; one image is torn and one has no class. Equal wherever it is written."""
    space = LabelSpace(names=("a", "b"))
    dataset = Dataset.create(root, DatasetInfo(name="tiny", label_space=space, splits=("train",)))
    images = dataset.images
    columns = pa.schema([field for field in schema.IMAGES if field.name not in schema.PARTITION_BY])
    receipts = []
    for shard in range(shards):
        table = pa.Table.from_pylist([_row(shard * rows + number) for number in range(rows)], columns)
        receipts.append(write_shard(images.uri, ShardKey("train", shard), table))
    images.commit(receipts)
    return dataset


def _row(number: int) -> dict[str, Any]:
    buffer = io.BytesIO()
    height, width = ((48, 64), (64, 48), (48, 64), (50, 50))[number % 4]
    pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    data = buffer.getvalue()[:200] if number == 1 else buffer.getvalue()
    given = None if number == 6 else number % 2
    return {"id": f"i{number}", "image": data, "height": height, "width": width, "class": given}


def write_weights(folder: Path) -> Path:
    """A classifier trained on nothing."""
    torch.manual_seed(0)
    path = folder / "classifier.safetensors"
    save_file(timm.create_model("test_resnet", num_classes=2).state_dict(), path)
    return path


def settings(dataset: str, weights: Path, *, samples: int, chunk: int = 1, **compute: Any) -> dict[str, Any]:
    """The job file of `segray pssl`."""
    classifier = {"name": "test_resnet", "weights": str(weights), "num_classes": 2, "size": 64}
    return {
        "dataset": dataset,
        "ensemble": {"classifiers": [classifier]},
        "pssl": {"explainer": {"kind": "smoothgrad", "samples": samples}, "numerics": {"chunk": chunk}},
        "tracking": {"enabled": False},
        "compute": {"actors": 1, "cpus": 0.5, **compute},
    }


# The real command line, with every receipt committed at once, so that there is something to interrupt. With a gate
# (a folder), drivers that have seen what is committed wait there for each other. Without Ray, shards run in the driver.
_DRIVER = """
import contextlib, os, sys, time
from pathlib import Path
from jobs import cli, label_job
from pipelines import label_run, shards
from tests.inline_shards import run_inline
def buffer(commit):
    if gate:
        Path(gate, str(os.getpid())).touch()
        end = time.monotonic() + 120  # the other may have ended
        while len(os.listdir(gate)) < 2 and time.monotonic() < end:
            time.sleep(0.05)
    return shards.CommitBuffer(commit, max_receipts=1)
*arguments, gate, engine = sys.argv[1:]
label_run.CommitBuffer = buffer
if engine == "inline":
    label_run.run_shards, label_job.preflight = run_inline, lambda job: None
    label_job.ray_session = lambda compute: contextlib.nullcontext()
cli.main(arguments)
"""


def start(
    job: Mapping[str, Any], file: Path, *, gate: Path | str = "", engine: Literal["ray", "inline"] = "ray"
) -> subprocess.Popen[bytes]:
    """`segray pssl` on a job; what it prints goes beside the job file, see `printed`."""
    file.write_text(json.dumps(job))
    with file.with_suffix(".log").open("wb") as log:
        command = [sys.executable, "-c", _DRIVER, "pssl", str(file), str(gate), engine]
        return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, cwd=ROOT)


def printed(file: Path) -> str:
    """What the job of this file has printed."""
    return file.with_suffix(".log").read_text()


def wait_for_shards(driver: subprocess.Popen[bytes], dataset: Dataset, *, least: int = 1) -> None:
    """Wait until a driver has committed some shards."""
    deadline = time.monotonic() + 120
    while committed(dataset) < least:
        assert driver.poll() is None, "the driver ended before it could be interfered with"
        assert time.monotonic() < deadline, "no shard was committed"
        time.sleep(0.05)


def committed(dataset: Dataset) -> int:
    """Committed shards of the label set."""
    return len(dataset.labels("pssl").files()) if "pssl" in dataset.label_sets() else 0
