"""Rows of an image shard -> pixels, the next ones while this one is worked on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.ahead import ahead
from pipelines.images import ImageError, decode_image
from pipelines.shard_counts import RowError


def decode_ahead(rows: Iterable[Mapping[str, Any]], *, num: int) -> Iterator[NDArray[np.uint8] | RowError]:
    """The image (H, W, 3) of every row of an image shard, or why it has none, in the order of the rows.

    Args:
        num: images decoded ahead of the one that is used.
    """
    return ahead(rows, _decode, num=num)


def _decode(row: Mapping[str, Any]) -> NDArray[np.uint8] | RowError:
    if row["reason"] is not None:
        return RowError(f"image was rejected: {row['reason']}")
    try:
        return decode_image(row["image"])
    except ImageError as error:
        return RowError(str(error))
