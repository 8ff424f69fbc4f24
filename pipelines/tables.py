"""Datasets as tables: a Delta table of images and, beside it, one per label set, cut into the same shards.

    <root>/dataset.json        name, label space, splits, where it came from
    <root>/images/             Delta table, partitioned by split and shard
    <root>/labels/<set>/       Delta table, same shards, same rows in the same order

A shard is one Parquet file named by its SHA-256. A worker writes it and returns a receipt; only the driver commits. A
file that no commit names is invisible. Every commit carries an application transaction, so that of two drivers on one
table one stops with a ConcurrentWriteError. This is the only file that knows deltalake.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import posixpath
import re
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from deltalake import CommitProperties, DeltaTable, Transaction
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError
from deltalake.transaction import AddAction
from pydantic import Field

from pipelines import schema, storage
from pipelines.ahead import ahead
from pipelines.codecs import LABEL_CODECS, check_codecs
from pipelines.labels import LabelSpace
from pipelines.schema import Receipt, ShardKey
from seg_models.spec import Spec, did_you_mean

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
CHECKPOINT_EVERY = 100  # commits between Delta log checkpoints
READ_THREADS = 16  # an object store answers many at once
REPEAT_S = 20.0  # for so long a call is made again whose answer broke off
WRITER = "segray.writer"
"""Key of a commit's metadata that says which attempt made it."""
WRITER_HISTORY = 20  # newest commits among which an attempt is looked for

COLOR = re.compile(r"\x1b\[[0-9;]*m")

T = TypeVar("T")


class ConcurrentWriteError(RuntimeError):
    """Another driver commits to the same table."""


class DatasetInfo(Spec):
    """What `dataset.json` holds."""

    name: str
    label_space: LabelSpace
    """Classes of the human labels, or of the image-level classes where there are none."""
    splits: tuple[str, ...]
    source: dict[str, Any] = Field(default_factory=dict)
    """Settings of the source, its listing's fingerprint and how shards were dealt."""


@dataclass(frozen=True)
class Counts:
    """Rows of a table."""

    rows: int
    rejected: int

    @property
    def good(self) -> int:
        """Rows with data."""
        return self.rows - self.rejected


@dataclass(frozen=True)
class ShardFile:
    """A committed shard."""

    key: ShardKey
    path: str
    size_bytes: int
    num_rows: int
    num_rejected: int


def check_name(name: str, *, what: str) -> str:
    """A name that can stand in a path.

    Raises:
        ValueError: it cannot.
    """
    if not NAME.fullmatch(name):
        raise ValueError(f"{what} {name!r}: use letters, digits, '.', '_' and '-', beginning with a letter or digit")
    return name


def write_shard(table_uri: str, key: ShardKey, rows: pa.Table) -> Receipt:
    """Write one shard as a Parquet file named by its SHA-256, with page checksums, and return its receipt.

    `rows` has the columns of the table's schema without `split` and `shard`. Equal rows give equal bytes.
    """
    buffer = io.BytesIO()
    # The binary columns hold compressed data already.
    pq.write_table(rows, buffer, compression="none", write_page_checksum=True, use_dictionary=False)
    data = buffer.getvalue()
    digest = hashlib.sha256(data).hexdigest()
    path = f"split={key.split}/shard={key.shard}/{digest}.parquet"
    storage.write_bytes(storage.join(table_uri, path), data)
    rejected = rows.num_rows - rows.column("reason").null_count
    return Receipt(key, path, len(data), rows.num_rows, rejected, digest)


class Table:
    """One Delta table of shards: the images of a dataset, or one of its label sets."""

    def __init__(self, uri: str, delta: DeltaTable) -> None:
        self.uri = uri
        self._delta = delta
        self._listed: tuple[int, list[ShardFile]] | None = None
        metadata = delta.metadata()
        self._app_id = str(metadata.id)
        self.info: dict[str, Any] = json.loads(metadata.description or "{}")
        """Kind of the table, its label space, the codecs of its columns and, for computed labels, their plan."""

    @classmethod
    def create(cls, uri: str, *, columns: pa.Schema, info: dict[str, Any]) -> Table:
        """Make an empty table; its info is part of the creating commit.

        Raises:
            ConcurrentWriteError: somebody else made it at the same moment.
        """
        storage.make_dirs(uri)
        attempt = uuid.uuid4().hex
        create = functools.partial(
            DeltaTable.create,
            uri,
            schema=columns,
            mode="error",
            partition_by=list(schema.PARTITION_BY),
            description=json.dumps(info, sort_keys=True),
            storage_options=storage.delta_options(uri) or None,
            commit_properties=CommitProperties(max_commit_retries=0, custom_metadata={WRITER: attempt}),
        )
        try:
            _commit(uri, create, attempt)
        except DeltaError as error:
            if _is_table(uri):
                raise ConcurrentWriteError(f"{uri}: another job made this table a moment ago") from error
            raise
        return cls.open(uri)

    @classmethod
    def open(cls, uri: str) -> Table:
        """Open an existing table at its newest version.

        Raises:
            ValueError: there is none, its log is damaged, or a column has a codec that this version does not know.
        """
        try:
            table = cls(uri, _load(uri))
        except TableNotFoundError as error:
            raise ValueError(f"{uri}: no table here") from error
        except DeltaError as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"{uri}: the table's log (_delta_log) cannot be read ({reason})") from error
        if "label_space" in table.info:
            check_codecs(table.info.get("codecs"), where=uri)
        return table

    @property
    def id(self) -> str:
        """What no other table has, not even one made anew at the same place."""
        return self._app_id

    @property
    def version(self) -> int:
        """Version of the Delta log."""
        return int(self._delta.version())

    @property
    def label_space(self) -> LabelSpace:
        """The label space of a label set."""
        return LabelSpace.model_validate(self.info["label_space"])

    def files(self, *, split: str | None = None) -> list[ShardFile]:
        """Committed shards, ordered by split and number.

        Raises:
            RuntimeError: a shard is committed twice (the table was written by something else).
        """
        if self._listed is None or self._listed[0] != self.version:
            self._listed = (self.version, self._list())
        return [file for file in self._listed[1] if split is None or file.key.split == split]

    def _list(self) -> list[ShardFile]:
        actions = pa.table(self._delta.get_add_actions(flatten=True)).to_pylist()
        found = sorted((_shard_file(action) for action in actions), key=lambda file: file.key)
        doubles = [str(key) for key, count in Counter(file.key for file in found).items() if count > 1]
        if doubles:
            raise RuntimeError(f"{self.uri}: shards committed more than once: {', '.join(doubles[:5])}")
        return found

    def committed(self) -> set[ShardKey]:
        """Addresses of the committed shards."""
        return {file.key for file in self.files()}

    def counts(self, *, split: str | None = None) -> Counts:
        """Rows and rejected rows, from the log alone."""
        files = self.files(split=split)
        return Counts(sum(file.num_rows for file in files), sum(file.num_rejected for file in files))

    def reasons(self) -> dict[str, str]:
        """Reason of every rejected row, by id."""
        found: dict[str, str] = {}
        for file in self.files():
            if file.num_rejected:
                rows = self.read(file.key, columns=("id", "reason")).to_pylist()
                found.update({row["id"]: row["reason"] for row in rows if row["reason"] is not None})
        return found

    def commit(self, receipts: Iterable[Receipt]) -> int:
        """Add the shards of `receipts` that are not committed yet; return how many were added.

        Raises:
            ConcurrentWriteError: another driver has committed since this one looked.
            StorageError: the object store stays away; a later run commits these shards.
        """
        done = self.committed()
        fresh = {receipt.key: receipt for receipt in reversed(list(receipts)) if receipt.key not in done}
        if not fresh:
            return 0
        actions = [_add_action(fresh[key]) for key in sorted(fresh)]
        version = (self._delta.transaction_version(self._app_id) or 0) + 1
        attempt = uuid.uuid4().hex
        properties = CommitProperties(
            app_transactions=[Transaction(self._app_id, version)],
            max_commit_retries=0,
            custom_metadata={WRITER: attempt},
        )
        append = functools.partial(
            self._delta.create_write_transaction,
            actions,
            "append",
            self._delta.schema(),
            list(schema.PARTITION_BY),
            commit_properties=properties,
        )
        try:
            _commit(self.uri, append, attempt)
        except CommitFailedError as error:
            raise ConcurrentWriteError(
                f"{self.uri}: another job is writing to this table; let it finish, or stop it, then run this again"
            ) from error
        _repeat(self.uri, self._delta.update_incremental)
        if version % CHECKPOINT_EVERY == 0:
            _repeat(self.uri, self._delta.create_checkpoint)
        return len(actions)

    def read(self, key: ShardKey, *, columns: Sequence[str] | None = None) -> pa.Table:
        """Rows of a shard in their order, checked against the file's SHA-256.

        Raises:
            ValueError: no such shard, or its file is damaged or gone.
        """
        file = next((file for file in self.files(split=key.split) if file.key == key), None)
        if file is None:
            raise ValueError(f"{self.uri}: shard {key} is not committed")
        return read_shard_file(self.uri, file.path, columns=columns)

    def fingerprint(self) -> str:
        """SHA-256 over the addresses and content hashes of all shards."""
        lines = [f"{file.key} {file.path}" for file in self.files()]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def label_digest(self) -> str:
        """SHA-256 over (id, label) of every row, shard by shard."""
        digest = hashlib.sha256()
        for part in ahead(self.files(), self._digest_of, num=READ_THREADS):
            digest.update(part)
        return digest.hexdigest()

    def _digest_of(self, file: ShardFile) -> bytes:
        """What a shard adds to the digest: id and SHA-256 of the label of every row."""
        rows = read_shard_file(self.uri, file.path, columns=("id", "label")).to_pylist()
        return b"".join(row["id"].encode() + b"\0" + hashlib.sha256(row["label"] or b"").digest() for row in rows)


def read_shard_file(table_uri: str, path: str, *, columns: Sequence[str] | None = None) -> pa.Table:
    """Rows of the shard file at `path` below a table, in order.

    The file is named by its SHA-256, which is verified: page checksums alone miss damage in the footer.

    Raises:
        ValueError: the file is gone or damaged.
    """
    place = storage.join(table_uri, path)
    data = storage.read_bytes(place)
    found = hashlib.sha256(data).hexdigest()
    if found != posixpath.basename(path).removesuffix(".parquet"):
        raise ValueError(f"{place}: damaged shard file (SHA-256 of its {len(data)} bytes is {found[:12]}…)")
    try:
        return pq.read_table(
            pa.BufferReader(data),
            columns=list(columns) if columns is not None else None,
            page_checksum_verification=True,
            partitioning=None,
        )
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{place}: damaged shard file ({str(error).splitlines()[0]})") from error


def _shard_file(action: dict[str, Any]) -> ShardFile:
    key = ShardKey(str(action["partition.split"]), int(action["partition.shard"]))
    rows = int(action["num_records"])
    return ShardFile(key, action["path"], int(action["size_bytes"]), rows, rows - int(action["null_count.reason"]))


def _add_action(receipt: Receipt) -> AddAction:
    stats = {
        "numRecords": receipt.num_rows,
        "nullCount": {"reason": receipt.num_rows - receipt.num_rejected},
        "minValues": {},
        "maxValues": {},
    }
    return AddAction(
        path=receipt.path,
        size=receipt.size_bytes,
        partition_values={"split": receipt.key.split, "shard": str(receipt.key.shard)},
        modification_time=int(time.time() * 1000),
        data_change=True,
        stats=json.dumps(stats),
    )


class Dataset:
    """Images and their label sets."""

    def __init__(self, root: str, info: DatasetInfo) -> None:
        self.root = root
        self.info = info

    @classmethod
    def create(cls, root: str, info: DatasetInfo) -> Dataset:
        """Make a dataset, or open the one that is there when it was made with the same settings.

        Raises:
            ValueError: another dataset is there (the message names what differs), or the place cannot be written.
        """
        root = storage.normalise(root)
        for split in info.splits:
            check_name(split, what="split")
        if storage.exists(storage.join(root, "dataset.json")):
            return cls._reopen(root, info)
        storage.check_writable(root)
        images = storage.join(root, "images")
        if not _is_table(images):
            Table.create(images, columns=schema.IMAGES, info={"kind": "images", "id": uuid.uuid4().hex})
        storage.write_text(storage.join(root, "dataset.json"), info.model_dump_json(indent=2))
        return cls(root, info)

    @classmethod
    def _reopen(cls, root: str, info: DatasetInfo) -> Dataset:
        found = cls.open(root)
        ours, theirs = info.model_dump(mode="json"), found.info.model_dump(mode="json")
        differing = differing_keys(ours, theirs)
        if differing:
            what = "; ".join(differing[:4])
            raise ValueError(f"{root}: another dataset is here already, it differs in {what}; choose another folder")
        return found

    @classmethod
    def open(cls, root: str) -> Dataset:
        """Open a dataset.

        Raises:
            ValueError: there is none, or its dataset.json cannot be read.
        """
        root = storage.normalise(root)
        place = storage.join(root, "dataset.json")
        if not storage.exists(place):
            storage.require_dir(root)
            raise ValueError(f"{root}: no dataset here (dataset.json is missing); `segray ingest` makes one")
        try:
            return cls(root, DatasetInfo.model_validate_json(storage.read_bytes(place)))
        except ValueError as error:
            raise ValueError(f"{place}: cannot be read: {error}") from error

    @property
    def images(self) -> Table:
        """The image table, at its newest version."""
        return Table.open(storage.join(self.root, "images"))

    def label_sets(self) -> list[str]:
        """Names of the label sets, sorted."""
        folder = storage.join(self.root, "labels")
        if not storage.is_dir(folder):
            return []
        return [name for name in storage.list_dirs(folder) if _is_table(storage.join(folder, name))]

    def labels(self, name: str) -> Table:
        """A label set, at its newest version.

        Raises:
            ValueError: no such label set; the message lists those that exist.
        """
        uri = self.labels_uri(name)
        if not _is_table(uri):
            known = self.label_sets()
            listed = ", ".join(known) or "none"
            raise ValueError(f"{self.root}: no label set {name!r}{did_you_mean(name, known)}; there are: {listed}")
        return Table.open(uri)

    def labels_uri(self, name: str) -> str:
        """Where the label set of that name lies."""
        return storage.join(self.root, "labels", check_name(name, what="label set"))

    def create_labels(
        self, name: str, *, label_space: LabelSpace, plan: dict[str, Any], codecs: Mapping[str, str] = LABEL_CODECS
    ) -> Table:
        """Make a label set, or open the one that is there when it follows the same plan.

        Args:
            codecs: codec of each column that will hold maps.

        Raises:
            ValueError: a label set of that name follows another plan; the message names the keys that differ.
        """
        uri = self.labels_uri(name)
        space = label_space.model_dump(mode="json")
        info = {"kind": "labels", "label_space": space, "codecs": dict(codecs), "plan": plan}
        info = json.loads(json.dumps(info))
        if not _is_table(uri):
            return Table.create(uri, columns=schema.LABELS, info=info)
        table = Table.open(uri)
        if table.info != info:
            differing = differing_keys(info, table.info)
            raise ValueError(
                f"{uri}: label set {name!r} was made with other settings ({'; '.join(differing[:4])}); "
                "choose another name with --labels, or the same settings to continue it"
            )
        return table


def differing_keys(ours: Any, theirs: Any, *, path: str = "") -> list[str]:
    """Dotted keys at which two JSON values differ, with both values."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        keys = sorted(set(ours) | set(theirs))
        return [
            line
            for key in keys
            for line in differing_keys(ours.get(key), theirs.get(key), path=f"{path}.{key}".strip("."))
        ]
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        pairs = enumerate(zip(ours, theirs, strict=True))
        return [line for index, (a, b) in pairs for line in differing_keys(a, b, path=f"{path}.{index}")]
    if ours == theirs:
        return []
    return [f"{path}: now {_short(ours)}, there {_short(theirs)}"]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _is_table(uri: str) -> bool:
    options = storage.delta_options(uri) or None
    return bool(_repeat(uri, lambda: DeltaTable.is_deltatable(uri, storage_options=options)))


def _load(uri: str) -> DeltaTable:
    return _repeat(uri, lambda: DeltaTable(uri, storage_options=storage.delta_options(uri) or None))


def _commit(uri: str, action: Callable[[], object], attempt: str) -> None:
    """A call of deltalake that commits under the name `attempt`: made once, whatever the store does not answer.

    A store may have done what it never answered. Its client asks again and meets its own commit, which looks like
    that of another job.
    """

    def once() -> None:
        try:
            action()
        except (DeltaError, OSError):
            if not _was_made(uri, attempt):
                raise

    _repeat(uri, once)


def _was_made(uri: str, attempt: str) -> bool:
    """Whether a commit of this attempt is among the newest of a table."""
    try:
        history = _repeat(uri, lambda: _load(uri).history(WRITER_HISTORY))
    except TableNotFoundError:
        return False
    return any(commit.get(WRITER) == attempt for commit in history)


def _repeat(uri: str, action: Callable[[], T]) -> T:
    """The result of a call that may be made twice. deltalake repeats calls that are refused, not broken answers.

    Raises:
        StorageError: the object store stays away.
    """
    start, wait = time.monotonic(), 0.2
    while True:
        try:
            return action()
        except (DeltaError, OSError) as error:
            if not _is_outage(uri, error):
                raise
            if time.monotonic() - start > REPEAT_S:
                raise storage.unavailable(uri, _cause(error)) from error
        time.sleep(wait)
        wait *= 2


def _is_outage(uri: str, error: Exception) -> bool:
    """Whether a call of deltalake failed because the store did not answer, and not for long already."""
    outage = isinstance(error, OSError) or "interacting with object store" in str(error)
    return outage and storage.is_remote(uri) and not isinstance(error, storage.StorageError)


def _cause(error: Exception) -> str:
    """What an error of deltalake about an object store says last: its text is a tree, with the cause at the end."""
    lines = [line.strip(" ↳") for line in COLOR.sub("", str(error)).splitlines() if line.strip(" ↳")]
    text = lines[-1] if lines else type(error).__name__
    answer = re.search("<Message>(.*?)</Message>", text)
    return answer.group(1) if answer else text


def rejected_rows(table: pa.Table) -> int:
    """Number of rows with a reason."""
    return int(pc.count(table.column("reason"), mode="only_valid").as_py())
