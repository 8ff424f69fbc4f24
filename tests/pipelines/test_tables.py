"""Datasets and label sets as tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from deltalake import DeltaTable

from pipelines import storage
from pipelines.codecs import encode_label
from pipelines.labels import LabelSpace
from pipelines.schema import LABELS, Receipt, ShardKey, shard_rows
from pipelines.tables import ConcurrentWriteError, Dataset, DatasetInfo, Table, read_shard_file, write_shard

SPACE = LabelSpace(names=("a", "b"))


def info(**source: Any) -> DatasetInfo:
    return DatasetInfo(name="x", label_space=SPACE, splits=("train", "test"), source=source)


def rows(count: int, *, start: int = 0, rejected: int = 0) -> pa.Table:
    codes = [encode_label(np.full((3, 4), i % 2, np.uint8)) for i in range(count)]
    columns: dict[str, list[Any]] = {
        "id": [f"i{start + i}" for i in range(count)],
        "label": [None if i < rejected else codes[i] for i in range(count)],
        "reason": ["bad" if i < rejected else None for i in range(count)],
    }
    return shard_rows(columns, columns_of=LABELS)


@pytest.fixture
def labels(tmp_path: Path) -> Table:
    return Dataset.create(str(tmp_path / "d"), info()).create_labels("human", label_space=SPACE, plan={"p": 1})


def shard(table: Table, number: int, count: int = 3, rejected: int = 0) -> Receipt:
    return write_shard(table.uri, ShardKey("train", number), rows(count, start=10 * number, rejected=rejected))


def test_a_shard_is_invisible_until_it_is_committed(labels: Table) -> None:
    receipt = shard(labels, 0)
    assert labels.committed() == set()
    assert labels.commit([receipt]) == 1
    assert labels.committed() == {ShardKey("train", 0)}
    assert labels.read(receipt.key).column("id").to_pylist() == ["i0", "i1", "i2"]


def test_committing_twice_adds_nothing(labels: Table) -> None:
    receipt = shard(labels, 0)
    assert [labels.commit([receipt]), labels.commit([receipt, receipt])] == [1, 0]
    assert labels.counts().rows == 3


def test_counts_tell_rejected_rows_without_reading_them(labels: Table) -> None:
    labels.commit([shard(labels, 0, count=5, rejected=2), shard(labels, 1)])
    counts = labels.counts()
    assert (counts.rows, counts.rejected, counts.good) == (8, 2, 6)
    assert labels.reasons() == {"i0": "bad", "i1": "bad"}
    assert labels.counts(split="test").rows == 0


def test_of_two_writers_the_second_stops_with_a_clear_error(labels: Table) -> None:
    late = Table.open(labels.uri)
    labels.commit([shard(labels, 0)])
    for _ in range(2):  # the last receipts are flushed although a commit failed
        with pytest.raises(ConcurrentWriteError, match="another job is writing"):
            late.commit([shard(labels, 1)])
    assert Table.open(labels.uri).committed() == {ShardKey("train", 0)}


def test_of_two_jobs_that_make_one_table_the_second_stops_with_a_clear_error(labels: Table) -> None:
    with pytest.raises(ConcurrentWriteError, match="another job made this table"):
        Table.create(labels.uri, columns=LABELS, info={})
    assert Table.open(labels.uri).info == labels.info


def test_equal_rows_give_an_equal_file(labels: Table) -> None:
    assert shard(labels, 0) == shard(labels, 0)


def test_a_flipped_bit_anywhere_in_a_shard_file_is_noticed(labels: Table) -> None:
    receipt = shard(labels, 0, count=40)
    place = Path(storage.join(labels.uri, receipt.path))
    data = place.read_bytes()
    for position in range(0, len(data), 7):
        damaged = bytearray(data)
        damaged[position] ^= 1 << (position % 8)
        place.write_bytes(damaged)
        with pytest.raises(ValueError, match="damaged shard file"):
            read_shard_file(labels.uri, receipt.path)
    place.write_bytes(data)
    assert read_shard_file(labels.uri, receipt.path).equals(rows(40))


def test_other_readers_find_the_same_rows_in_the_same_schema(labels: Table) -> None:
    labels.commit([shard(labels, 4, rejected=1)])
    found = DeltaTable(labels.uri).to_pyarrow_table()
    assert set(found.column_names) == set(LABELS.names)
    assert (
        found.select(["id", "reason"]).to_pylist()
        == labels.read(ShardKey("train", 4), columns=("id", "reason")).to_pylist()
    )
    assert set(found.column("shard").to_pylist()) == {4}


def test_a_column_that_is_not_there_is_an_error(labels: Table) -> None:
    labels.commit([shard(labels, 0)])
    with pytest.raises(ValueError, match="nope"):
        labels.read(ShardKey("train", 0), columns=("id", "nope"))


def test_a_damaged_log_is_a_clear_error(labels: Table) -> None:
    (Path(labels.uri) / "_delta_log" / f"{0:020d}.json").write_text("junk{")
    with pytest.raises(ValueError, match=r"log .* cannot be read") as caught:
        Table.open(labels.uri)
    assert "\n" not in str(caught.value)


def test_a_deleted_shard_file_is_a_clear_error(labels: Table) -> None:
    receipt = shard(labels, 0)
    labels.commit([receipt])
    storage.delete(storage.join(labels.uri, receipt.path))
    with pytest.raises(ValueError, match="no such file"):
        labels.read(receipt.key)


def test_the_digest_depends_on_ids_labels_and_order_only(tmp_path: Path) -> None:
    digests = []
    for name, order in (("one", [0, 1]), ("two", [1, 0])):
        table = Dataset.create(str(tmp_path / name), info()).create_labels("human", label_space=SPACE, plan={})
        for number in order:
            table.commit([shard(table, number)])
        digests.append(table.label_digest())
    assert digests[0] == digests[1]


def test_the_digest_changes_with_a_label(tmp_path: Path) -> None:
    dataset = Dataset.create(str(tmp_path / "d"), info())
    digests = set()
    for name, rejected in (("one", 0), ("two", 1)):
        table = dataset.create_labels(name, label_space=SPACE, plan={})
        table.commit([shard(table, 0, rejected=rejected)])
        digests.add(table.label_digest())
    assert len(digests) == 2


def test_the_same_dataset_is_opened_and_another_is_refused(tmp_path: Path) -> None:
    root = str(tmp_path / "d")
    Dataset.create(root, info(listing="a"))
    assert Dataset.create(root, info(listing="a")).info.name == "x"
    with pytest.raises(ValueError, match=r'differs in source\.listing: now "b", there "a"'):
        Dataset.create(root, info(listing="b"))
    with pytest.raises(ValueError, match=r'differs in source\.listing: now null, there "a"'):
        Dataset.create(root, info())


def test_a_label_set_with_another_plan_is_refused_with_the_key(tmp_path: Path) -> None:
    dataset = Dataset.create(str(tmp_path / "d"), info())
    dataset.create_labels("pssl", label_space=SPACE, plan={"seed": 1})
    with pytest.raises(ValueError, match=r"plan\.seed: now 2, there 1"):
        dataset.create_labels("pssl", label_space=SPACE, plan={"seed": 2})


def test_a_misspelt_label_set_names_the_nearest(tmp_path: Path) -> None:
    dataset = Dataset.create(str(tmp_path / "d"), info())
    dataset.create_labels("human", label_space=SPACE, plan={})
    with pytest.raises(ValueError, match=r"no label set 'humna' \(did you mean 'human'\?\); there are: human"):
        dataset.labels("humna")


def test_a_folder_without_a_dataset_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="segray ingest"):
        Dataset.open(str(tmp_path))


@pytest.mark.parametrize("name", ["", "../x", "a b", ".hidden", "line\n"])
def test_names_that_cannot_stand_in_a_path_are_refused(tmp_path: Path, name: str) -> None:
    dataset = Dataset.create(str(tmp_path / "d"), info())
    with pytest.raises(ValueError, match="use letters"):
        dataset.labels_uri(name)


def test_the_label_space_of_a_set_comes_back_from_the_table(labels: Table) -> None:
    assert Table.open(labels.uri).label_space == SPACE


def test_rows_and_rejects_are_counted_across_a_checkpoint_of_the_log(labels: Table) -> None:
    for number in range(102):
        labels.commit([shard(labels, number, count=2, rejected=number % 2)])
    assert list((Path(labels.uri) / "_delta_log").glob("*.checkpoint.parquet"))
    again = Table.open(labels.uri)
    assert (len(again.files()), again.counts().rows, again.counts().rejected) == (102, 204, 51)
    assert again.label_digest() == labels.label_digest()


def test_a_label_set_names_its_codecs_and_one_with_an_unknown_codec_is_refused(tmp_path: Path) -> None:
    dataset = Dataset.create(str(tmp_path / "d"), info())
    table = dataset.create_labels("human", label_space=SPACE, plan={})
    assert table.info["codecs"] == {"label": "contour-zstd", "confidence": "pyramid-zstd"}
    message = r"labels/later: column 'label' is coded with 'contour-zstd2' \(did you mean 'contour-zstd'\?\)"
    with pytest.raises(ValueError, match=message):  # it is made, as a later version would, and then opened
        dataset.create_labels("later", label_space=SPACE, plan={}, codecs={"label": "contour-zstd2"})
    with pytest.raises(ValueError, match=message):
        dataset.labels("later")


def test_a_label_set_with_deciles_is_not_continued_without(tmp_path: Path) -> None:
    dataset = Dataset.create(str(tmp_path / "d"), info())
    codecs = {"label": "contour-zstd", "confidence": "pyramid-zstd", "deciles": "nibble-zstd"}
    dataset.create_labels("pssl", label_space=SPACE, plan={}, codecs=codecs)
    with pytest.raises(ValueError, match=r"codecs.deciles: now null, there \"nibble-zstd\""):
        dataset.create_labels("pssl", label_space=SPACE, plan={})


def test_what_a_shard_does_not_give_is_null() -> None:
    found = shard_rows({"id": ["a", "b"], "label": [b"x", None]}, columns_of=LABELS)
    assert found.column_names == ["id", "label", "confidence", "deciles", "reason"]
    assert found.column("deciles").null_count == 2
