"""Counts of a shard: gathered by its worker, kept in the footer of its file, summed up over a table."""

from __future__ import annotations

import contextlib
import itertools
import json
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipelines import schema, storage
from pipelines.labels import LabelSpace
from pipelines.tables import Table

STATS_KEY = b"segray.stats"
"""Key of a shard file's Parquet metadata that holds counts about its rows, as JSON."""

FOOTER_THREADS = 16

T = TypeVar("T")


class RowError(ValueError):
    """A row that is rejected; the text is the reason stored and shown."""


class ShardCounts:
    """What a worker counts while it goes through a shard, in several threads if it likes.

    Args:
        tables: names of the tables of counts that the shard's file shall hold.
    """

    def __init__(self, *tables: str) -> None:
        self.tables: dict[str, Counter[str]] = {name: Counter() for name in tables}
        self._reasons: Counter[str] = Counter()
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time spent in the block to a phase."""
        start = time.perf_counter()
        yield
        with self._lock:
            self._seconds[name] += time.perf_counter() - start

    def timed(self, name: str, items: Iterable[T]) -> Iterator[T]:
        """The items; the time spent waiting for them is added to a phase."""
        waiting = iter(items)
        while True:
            with self.phase(name):
                found = list(itertools.islice(waiting, 1))
            if not found:
                return
            yield found[0]

    def reject(self, reason: str) -> str:
        """Count a rejected row and hand its reason back."""
        with self._lock:
            self._reasons[reason] += 1
        return reason

    def count_pixels(self, table: str, label: NDArray[Any]) -> None:
        """Add the pixels of a label, by value."""
        counts = np.bincount(label.reshape(-1))
        self.count(table, {str(value): int(counts[value]) for value in np.flatnonzero(counts)})

    def count(self, table: str, found: Mapping[str, int]) -> None:
        """Add to a table of counts."""
        with self._lock:
            self.tables[table].update(found)

    def of_file(self) -> dict[str, Any]:
        """What the shard's file holds: no times, so that a repeated shard has equal bytes."""
        return {name: dict(table) for name, table in self.tables.items()}

    def of_receipt(self) -> dict[str, Any]:
        """What the driver is told."""
        return {"reasons": dict(self._reasons), "seconds": dict(self._seconds)}


def with_stats(columns: dict[str, list[Any]], *, columns_of: pa.Schema, stats: dict[str, Any]) -> pa.Table:
    """A table without the partition columns; its reasons and counts travel in the file's metadata."""
    pairs = zip(columns["id"], columns["reason"], strict=True)
    stats = {"reasons": {row_id: reason for row_id, reason in pairs if reason is not None}, **stats}
    metadata = {STATS_KEY: json.dumps(stats, sort_keys=True).encode()}
    return schema.shard_rows(columns, columns_of=columns_of, metadata=metadata)


def read_stats(table: Table, *, split: str | None = None) -> list[dict[str, Any]]:
    """The counts in the footer of every committed shard file of a split, or of all."""

    def read(path: str) -> dict[str, Any]:
        with storage.open_input(storage.join(table.uri, path)) as stream:
            found: dict[str, Any] = json.loads(pq.read_schema(stream).metadata[STATS_KEY])
        return found

    with ThreadPoolExecutor(FOOTER_THREADS) as pool:
        return list(pool.map(read, [file.path for file in table.files(split=split)]))


def group(reason: str) -> str:
    """A reason without its details."""
    return reason.partition(" (")[0]


def merged(stats: Iterable[Mapping[str, Any]], key: str) -> dict[str, str]:
    """One table of text out of one per shard."""
    return {name: text for shard in stats for name, text in shard[key].items()}


def summed(stats: Iterable[Mapping[str, Any]], key: str) -> Counter[str]:
    """One table of counts out of one per shard; a shard may have none."""
    total: Counter[str] = Counter()
    for shard in stats:
        total.update(shard.get(key, {}))
    return total


def by_class(counts: Mapping[str, int], space: LabelSpace) -> dict[str, int]:
    """Counts by class name out of counts by index; classes without any are left out of spaces of many classes."""
    named = {name: counts.get(str(index), 0) for index, name in enumerate(space.names)}
    if counts.get(str(space.void)):
        named["(void)"] = counts[str(space.void)]
    return named if space.num_classes <= 256 else {name: count for name, count in named.items() if count}
