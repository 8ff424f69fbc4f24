"""Imports of large libraries without Python's garbage collection, which takes a quarter of their time.

Every collection looks at all that was loaded before, and nothing of it is garbage.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
from collections.abc import Iterator


@contextlib.contextmanager
def without_collection() -> Iterator[None]:
    """No garbage collection for the length of the block."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def load_for_good(module: str) -> None:
    """Import a module and what it needs, for the life of this process: no collection will look at it again.

    What cannot be imported is told where it is used.
    """
    with without_collection(), contextlib.suppress(Exception):
        importlib.import_module(module)
        gc.freeze()
