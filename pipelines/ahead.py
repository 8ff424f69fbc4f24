"""Work on the next items in threads while the caller works on this one: order kept, number bounded."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipelines.images import ImageError, decode_image
from pipelines.shard_counts import RowError

T = TypeVar("T")
R = TypeVar("R")


def ahead(items: Iterable[T], prepare: Callable[[T], R], *, num: int) -> Iterator[R]:
    """`prepare(item)` of every item, in order; up to `num` of the next items are prepared in as many threads.

    What `prepare` raises is raised when the turn of its item comes.
    """
    waiting: deque[Future[R]] = deque()
    pool = ThreadPoolExecutor(num, thread_name_prefix="ahead")
    try:
        for item in items:
            waiting.append(pool.submit(prepare, item))
            if len(waiting) > num:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


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
