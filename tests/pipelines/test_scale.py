"""A label set of ImageNet's size: what is left to do is known in seconds and in little memory."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.labels import LabelSpace
from pipelines.pssl import plan_pssl
from pipelines.pssl_spec import EnsembleSpec, PsslSpec
from pipelines.schema import Receipt, ShardKey
from pipelines.tables import Dataset, DatasetInfo, Table

SHARDS, ROWS = 5_005, 256  # 1,281,280 ids
RANDOM = PsslSpec.model_validate({"explainer": {"kind": "random"}})  # a plan without weights

# In a process of its own, as a resumed job is. VmHWM is the most memory this process ever had; getrusage would also
# count what the process that started it had.
_RESUME = """
import json, sys, time
start = time.perf_counter()
from pathlib import Path
from pipelines.pssl import plan_pssl
from pipelines.pssl_spec import EnsembleSpec, PsslSpec
imported = time.perf_counter() - start
work = plan_pssl(sys.argv[1], labels="pssl", ensemble=EnsembleSpec(),
                 pssl=PsslSpec.model_validate({"explainer": {"kind": "random"}}))
table = work.open()
done = table.committed()
left = [shard for shard in work.shards if shard.key not in done]
counts = table.counts(split=work.split)
high = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print(json.dumps({"images": work.num_images, "left": len(left), "first": str(left[0].key), "rows": counts.rows,
                  "rejected": counts.rejected, "seconds": time.perf_counter() - start, "imported": imported,
                  "peak_bytes": int(high.split()[1]) * 1024}))
"""


def commit(table: Table, keys: range, *, together: int, rejected: int = 0) -> None:
    """Commit shards without files: whoever reads a shard file before the work starts fails here."""
    receipts = []
    for number in keys:
        digest = hashlib.sha256(f"{table.uri} {number}".encode()).hexdigest()
        path = f"split=train/shard={number}/{digest}.parquet"
        receipts.append(Receipt(ShardKey("train", number), path, 28_000_000, ROWS, rejected, digest))
    for first in range(0, len(receipts), together):
        table.commit(receipts[first : first + together])


@pytest.fixture
def imagenet(tmp_path: Path) -> Dataset:
    """All images, and labels of half of them in commits of 13 shards: one every ten seconds on a GPU."""
    space = LabelSpace(names=tuple(f"class {index}" for index in range(1000)))
    dataset = Dataset.create(str(tmp_path), DatasetInfo(name="imagenet", label_space=space, splits=("train",)))
    commit(dataset.images, range(SHARDS), together=64)
    work = plan_pssl(dataset.root, labels="pssl", pssl=RANDOM, ensemble=EnsembleSpec())
    commit(work.open(), range(SHARDS // 2), together=13, rejected=1)
    return dataset


def test_a_million_ids_are_planned_and_compared_in_seconds_and_less_than_a_gigabyte(imagenet: Dataset) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _RESUME, imagenet.root], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    half = SHARDS // 2
    assert (found["images"], found["left"], found["first"]) == (1_281_280, SHARDS - half, f"train/{half:05d}")
    assert (found["rows"], found["rejected"]) == (half * ROWS, half)
    assert found["seconds"] - found["imported"] < 30
    assert found["peak_bytes"] < 1e9
