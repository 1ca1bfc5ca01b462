"""A completion as an event loop sees it: pieces to wait for, and a cancellation when nobody waits any more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import TracebackType

from neuralforge.serving.request import CompletionRequest, Finish, Piece
from neuralforge.serving.worker import Delivered, Worker


class Delivery:
    """One completion; leaving its block gives it up where it is not finished.

    Raises Busy at once, and while iterating whatever the model's thread raised.
    """

    def __init__(self, worker: Worker, request: CompletionRequest) -> None:
        loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Delivered] = asyncio.Queue()

        def deliver(item: Delivered) -> None:
            loop.call_soon_threadsafe(self._queue.put_nowait, item)

        self._job = worker.submit(request, deliver)

    def __enter__(self) -> Delivery:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._job.cancel()

    def cancel(self) -> None:
        """Give it up; the iteration then ends with a Finish that says so."""
        self._job.cancel()

    async def __aiter__(self) -> AsyncIterator[Piece | Finish]:
        while True:
            item = await self._queue.get()
            if isinstance(item, Exception):
                raise item
            yield item
            if isinstance(item, Finish):
                return
