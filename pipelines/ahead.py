"""Work on the next items in threads while the caller works on this one: order kept, number bounded."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

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
