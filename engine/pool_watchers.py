"""The HTTP side of the live picture of the block pool: one watch of the engine, shared by everybody who looks.

While somebody looks, the engine is told so every `RENEW_SECONDS`; it stops by itself when that ends. The frames are
folded into one picture, so that a newcomer begins with a full frame that the engine need not make again. Each watcher
has at most one frame waiting: what it has not read merges. Everything here runs on one event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from quire.engine.messages import ToEngine, Watch
from quire.engine.pool_frame import PoolFold, PoolFrame

LEASE_SECONDS = 6.0
RENEW_SECONDS = 2.0
MAX_WATCHERS = 8


class TooManyWatchers(Exception):
    """`MAX_WATCHERS` look already."""


class PoolStream:
    """Frames for one watcher: a full one first, and again after a restart of the engine; the drain is their end."""

    def __init__(self, leave: Callable[[PoolStream], None]) -> None:
        self._leave = leave
        self._waiting: PoolFold | None = None
        self._ended = False
        self._arrival = asyncio.Event()

    def __aiter__(self) -> PoolStream:
        return self

    async def __anext__(self) -> PoolFrame:
        """The next frame: everything that has changed since the one before."""
        while self._waiting is None:
            if self._ended:
                raise StopAsyncIteration
            self._arrival.clear()
            await self._arrival.wait()
        frame, self._waiting = self._waiting.frame(), None
        return frame

    async def aclose(self) -> None:
        """Leave. Idempotent."""
        self.end()
        self._leave(self)

    def deliver(self, frame: PoolFrame) -> None:
        """Called by `PoolWatchers`: a frame to read, or to merge with the one that waits."""
        if self._waiting is None:
            self._waiting = PoolFold(frame)
        else:
            self._waiting.add(frame)
        self._arrival.set()

    def end(self) -> None:
        """Nothing follows what was delivered."""
        self._ended = True
        self._arrival.set()


class PoolWatchers:
    """Who looks, and the newest picture. `send` reaches the engine when there is one."""

    def __init__(self, send: Callable[[ToEngine], None]) -> None:
        self._send = send
        self._streams: list[PoolStream] = []
        self._picture: PoolFold | None = None
        """Nothing until the engine's full frame is there."""
        self._renewal: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._streams)

    def watch(self) -> PoolStream:
        """Begin to look; raises TooManyWatchers. Leave with `aclose`."""
        if len(self._streams) >= MAX_WATCHERS:
            raise TooManyWatchers
        stream = PoolStream(self._leave)
        self._streams.append(stream)
        if self._picture is not None:
            stream.deliver(self._picture.frame())
        if len(self._streams) == 1:
            self._renew()
        return stream

    def engine_up(self) -> None:
        """Another engine is there: it knows of no watchers, and begins with a full frame."""
        if self._streams:
            self._send(Watch(LEASE_SECONDS))

    def engine_said(self, frame: PoolFrame) -> None:
        """A frame for everybody. What still comes of a watch that has ended is no news to anybody."""
        if not self._streams or (self._picture is None and frame.kind != "full"):
            return
        if self._picture is None:
            self._picture = PoolFold(frame)
        else:
            self._picture.add(frame)
        self._picture.forget_evicted()
        for stream in self._streams:
            stream.deliver(frame)

    def engine_down(self) -> None:
        """What the picture shows is gone."""
        self._picture = None

    def close(self) -> None:
        """The server drains: every stream ends."""
        for stream in list(self._streams):
            stream.end()
            self._leave(stream)

    def _renew(self) -> None:
        self._send(Watch(LEASE_SECONDS))
        self._renewal = asyncio.get_running_loop().call_later(RENEW_SECONDS, self._renew)

    def _leave(self, stream: PoolStream) -> None:
        if stream not in self._streams:
            return
        self._streams.remove(stream)
        if not self._streams:
            if self._renewal is not None:
                self._renewal.cancel()
            self._picture = None
            self._send(Watch(0.0))
