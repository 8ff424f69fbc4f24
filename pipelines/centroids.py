"""Centroids of the classes of a sample index: found once per label set by a stage on Ray Data, kept beside it.

They are kept under a name made of the label files and the tile size, so that a label set that grows or is written
again has others.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipelines import storage
from pipelines.centroids_worker import CentroidShard, CentroidWorker, Found, join_centroids
from pipelines.samplers import repeat_factors
from pipelines.samples import Centroids, SampleIndex, ShardRows
from pipelines.shards import ComputeSpec, ShardTask, run_shards
from seg_models.recipes.sampling import SamplingSpec

VERSION = 1  # of what a file holds; a change makes other names
COLUMNS = ("shard", "row", "class", "y", "x")


def complete_index(index: SampleIndex, spec: SamplingSpec, *, compute: ComputeSpec, run: str) -> SampleIndex:
    """The index with what the settings need to know of the labels; Ray must be running where it is not kept already.

    Args:
        run: Folder where centroids are kept if the dataset cannot be written.

    Raises:
        ShardError: a label file is damaged or gone.
    """
    for tile_px in _needed(spec):
        found: Found = {}
        for number in range(len(index.parts)):
            part = _read(index, number, tile_px=tile_px, run=run)
            if part is None:
                part = _compute(index, number, tile_px=tile_px, compute=compute)
                _write(index, number, part, tile_px=tile_px, run=run)
            found |= part
        index = _with(index, spec, join_centroids(index, found), tile_px=tile_px)
    return index


def known_index(index: SampleIndex, spec: SamplingSpec, *, run: str) -> SampleIndex | None:
    """The same where all of it is kept already, else None."""
    for tile_px in _needed(spec):
        found: Found = {}
        for number in range(len(index.parts)):
            part = _read(index, number, tile_px=tile_px, run=run)
            if part is None:
                return None
            found |= part
        index = _with(index, spec, join_centroids(index, found), tile_px=tile_px)
    return index


def _needed(spec: SamplingSpec) -> list[int | None]:
    """Sizes of the tiles whose centroids the settings need; None: of whole labels, which tell what they hold."""
    tiles: list[int | None] = [] if spec.class_uniform is None else [spec.class_uniform.tile]
    return tiles if spec.repeat_threshold is None else [*tiles, None]


def _with(index: SampleIndex, spec: SamplingSpec, centroids: Centroids, *, tile_px: int | None) -> SampleIndex:
    if tile_px is not None:
        return replace(index, centroids=centroids)
    assert spec.repeat_threshold is not None
    return replace(index, repeats=repeat_factors(index, centroids, threshold=spec.repeat_threshold))


def _compute(index: SampleIndex, number: int, *, tile_px: int | None, compute: ComputeSpec) -> Found:
    shards = _shards_of(index, number)
    found: Found = {}
    places = {str(shard.key): place for place, shard in shards}
    run_shards(
        CentroidWorker,
        tasks=[ShardTask(str(shard.key), CentroidShard(*shard.labels), len(shard.rows)) for _, shard in shards],
        worker_args={"tile_px": tile_px, "num_classes": index.label_space.num_classes},
        compute=compute,
        on_result=lambda key, centroids: found.__setitem__(places[key], centroids),
        label="centroids",
        unit="labels",
    )
    return found


def _shards_of(index: SampleIndex, number: int) -> list[tuple[int, ShardRows]]:
    """The shards of a part, with their places in the index."""
    return [(place, shard) for place, shard in enumerate(index.shards) if shard.part == number]


# -- kept files ----------------------------------------------------------------------------------------------------


def _places(index: SampleIndex, number: int, *, tile_px: int | None, run: str) -> tuple[str, str]:
    """Where the centroids of a part may be kept: beside its label set, or in the run."""
    part = index.parts[number].part
    lines = [f"{VERSION} {tile_px} {index.label_space.num_classes}"]
    lines += [f"{shard.key} {shard.labels[1]}" for _, shard in _shards_of(index, number)]
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    name = f"{part.labels}-{part.split}-{'whole' if tile_px is None else tile_px}-{digest[:16]}.parquet"
    return storage.join(part.dataset, "centroids", name), storage.join(run, "centroids", name)


def _read(index: SampleIndex, number: int, *, tile_px: int | None, run: str) -> Found | None:
    for place in _places(index, number, tile_px=tile_px, run=run):
        if storage.exists(place):
            table = _table(place)
            return {at: table[table[:, 0] == shard.key.shard, 1:] for at, shard in _shards_of(index, number)}
    return None


def _table(place: str) -> NDArray[np.int32]:
    """All columns of a kept file, (C, 5).

    Raises:
        ValueError: it is damaged.
    """
    try:
        rows = pq.read_table(pa.BufferReader(storage.read_bytes(place)), page_checksum_verification=True)
        return np.stack([rows[name].to_numpy() for name in COLUMNS], axis=1)
    except (OSError, KeyError, pa.ArrowException) as error:
        raise ValueError(f"{place}: damaged file of centroids ({str(error).splitlines()[0]}); delete it") from error


def _write(index: SampleIndex, number: int, found: Found, *, tile_px: int | None, run: str) -> None:
    tables = [np.insert(found[place], 0, shard.key.shard, axis=1) for place, shard in _shards_of(index, number)]
    buffer = io.BytesIO()
    table = pa.table(dict(zip(COLUMNS, np.concatenate(tables).T.copy(), strict=True)))
    pq.write_table(table, buffer, compression="zstd", write_page_checksum=True)
    beside, inside = _places(index, number, tile_px=tile_px, run=run)
    storage.write_bytes(beside if _can_write(storage.parent(beside)) else inside, buffer.getvalue())


def _can_write(folder: str) -> bool:
    try:
        storage.check_writable(folder)
    except ValueError as error:
        print(f"{error}: centroids are kept in the run's folder")
        return False
    return True
