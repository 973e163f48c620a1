"""The reader's end of one request: deltas as they come, merged while nobody reads. Runs on one event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import msgspec

from quire.engine.outputs import RequestFailed, TextDelta


class GenerateStream:
    """The answer to one request: an async iterator of deltas over all its choices, in order within a choice.

    A choice's deltas merge while nobody reads. Leaving early, by `aclose`, cancellation, or dropping the last
    reference, cancels the request in the engine.
    """

    def __init__(self, request_id: str, leave: Callable[[str], None], loop: asyncio.AbstractEventLoop) -> None:
        self.request_id = request_id
        self._leave = leave
        self._loop = loop
        self._waiting: dict[int, TextDelta] = {}
        self._failed: RequestFailed | None = None
        self._ended = False
        self._arrival = asyncio.Event()
        self.timer: asyncio.TimerHandle | None = None

    def __aiter__(self) -> GenerateStream:
        return self

    async def __anext__(self) -> TextDelta:
        """The next delta; raises RequestFailed when the request ended without an answer."""
        while not self._waiting:
            if (failed := self.take_failure()) is not None:
                raise failed
            if self._ended:
                raise StopAsyncIteration
            self._arrival.clear()
            try:
                await self._arrival.wait()
            except asyncio.CancelledError:
                await self.aclose()
                raise
        return self._waiting.pop(next(iter(self._waiting)))

    async def aclose(self) -> None:
        """Leave: nothing more will be read. Idempotent."""
        if not self._ended:
            self.end()
            self._leave(self.request_id)

    def __del__(self) -> None:
        if not self._ended and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._leave, self.request_id)

    def deliver(self, delta: TextDelta, last: bool) -> None:
        """Called by the engine: something to read."""
        if delta.timings is not None:
            delta = msgspec.structs.replace(delta, delivered_at=time.monotonic())
        earlier = self._waiting.get(delta.choice)
        self._waiting[delta.choice] = delta if earlier is None else earlier.merge(delta)
        if last:
            self.end()
        self._arrival.set()

    def fail(self, failed: RequestFailed) -> None:
        """Called by the engine: what was delivered can still be read, then `failed` is raised."""
        self._failed = failed
        self.end()

    def take_failure(self) -> RequestFailed | None:
        """What the request failed with, once."""
        failed, self._failed = self._failed, None
        return failed

    def end(self) -> None:
        """Nothing follows what was delivered."""
        self._ended = True
        self._arrival.set()
        if self.timer is not None:
            self.timer.cancel()
