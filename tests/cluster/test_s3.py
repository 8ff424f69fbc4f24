"""Datasets in an object store."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipelines import storage
from pipelines.codecs import encode_label
from pipelines.labels import LabelSpace
from pipelines.schema import LABELS, Receipt, ShardKey, shard_rows
from pipelines.tables import ConcurrentWriteError, Dataset, DatasetInfo, Table, write_shard
from tests.s3_server import s3_bucket

__all__ = ["s3_bucket"]

SPACE = LabelSpace(names=("a", "b"))


def shard(table: Table, number: int) -> Receipt:
    columns: dict[str, list[object]] = {
        "id": [f"i{number}"],
        "label": [encode_label(np.full((4, 4), number, np.uint8))],
    }
    rows = shard_rows(columns, columns_of=LABELS)
    return write_shard(table.uri, ShardKey("train", number), rows)


@pytest.mark.cluster
def test_a_dataset_in_an_object_store_behaves_like_one_on_disk(s3_bucket: str, tmp_path: Path) -> None:
    digests = []
    for root in (f"{s3_bucket}/data", str(tmp_path / "data")):
        info = DatasetInfo(name="x", label_space=SPACE, splits=("train",))
        table = Dataset.create(root, info).create_labels("human", label_space=SPACE, plan={"p": 1})
        late = Table.open(table.uri)
        assert table.commit([shard(table, 0), shard(table, 1)]) == 2
        with pytest.raises(ConcurrentWriteError):
            late.commit([shard(table, 2)])
        again = Dataset.open(root)
        assert again.label_sets() == ["human"]
        assert again.labels("human").committed() == {ShardKey("train", 0), ShardKey("train", 1)}
        digests.append(again.labels("human").label_digest())
    assert digests[0] == digests[1]
    assert storage.local_copy(f"{s3_bucket}/data/dataset.json").read_bytes() == storage.read_bytes(
        f"{s3_bucket}/data/dataset.json"
    )
    storage.check_writable(f"{s3_bucket}/fresh")
    with pytest.raises(ValueError, match=r"no such folder .did you mean 'data'"):
        storage.list_files(f"{s3_bucket}/dta")
