"""Batches on the device of a training worker: the next one is on its way while this one is worked on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Self

import torch
from torch import Tensor

from pipelines.batch_plan import Batch, BatchStream

Arrive = Callable[[], Batch]


def feed(stream: BatchStream, device: torch.device) -> BatchStream:
    """The same batches on the device; on a CPU they are there already."""
    return Prefetched(stream, send=Sender(device)) if device.type == "cuda" else stream


class Sender:
    """Copies batches to a GPU from pinned memory, beside the work that the GPU does."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._copies = torch.cuda.Stream(device)

    def __call__(self, batch: Batch) -> Arrive:
        """Begin to copy; what is returned makes the present work of the GPU wait for the copy, and gives it."""
        with torch.cuda.stream(self._copies):
            images, labels = self._copy(batch.images), self._copy(batch.labels).long()
        sent = self._copies.record_event()
        there = replace(batch, images=images, labels=labels)

        def arrive() -> Batch:
            current = torch.cuda.current_stream(self._device)
            current.wait_event(sent)
            for tensor in (images, labels):
                tensor.record_stream(current)  # its memory belongs to the stream of copies
            return there

        return arrive

    def _copy(self, tensor: Tensor) -> Tensor:
        return tensor.pin_memory().to(self._device, non_blocking=True)


class Prefetched:
    """Takes each batch from a stream, and sends it, while the one before it is worked on.

    An error is raised at the batch it belongs to. `close` also closes the stream.
    """

    def __init__(self, stream: BatchStream, *, send: Callable[[Batch], Arrive]) -> None:
        self._stream, self._send = stream, send
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="feed")
        self._coming: Future[Arrive | None] = self._thread.submit(self._fetch)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        arrive = self._coming.result()
        if arrive is None:
            raise StopIteration
        self._coming = self._thread.submit(self._fetch)
        return arrive()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Wait for the batch that is being fetched, and stop."""
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._stream.close()

    def _fetch(self) -> Arrive | None:
        batch = next(self._stream, None)
        return None if batch is None else self._send(batch)
