"""The two faces of `quire.engine.transport` without a socket, for tests and for an engine in the same process.

Messages are encoded and decoded on the way, so that nothing crosses here that would not cross the real line. Either end
may live in a thread of its own.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable

from quire.engine.frames import (
    TransportClosed,
    decode_from_engine,
    decode_to_engine,
    encode_from_engine,
    encode_message,
)
from quire.engine.messages import FromEngine, ToEngine


class _Line:
    """What both ends share, guarded by `changed`."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.to_engine: deque[bytes] = deque()
        self.from_engine: deque[bytes] = deque()
        self.closed = False
        self.wake_engine: Callable[[], None] = lambda: None
        self.wake_http: Callable[[], None] = lambda: None

    def close(self) -> None:
        with self.changed:
            self.closed = True
            self.changed.notify_all()
        self.wake_engine()
        self.wake_http()


class MemoryEngineTransport:
    """The engine's end (`EngineTransport`).

    `on_arrival`, when set, is called from the sender's thread after each message to the engine and at the close: a
    coroutine that plays the engine sets an event in it and then calls `receive(0)`.
    """

    def __init__(self, line: _Line) -> None:
        self._line = line

    def on_arrival(self, callback: Callable[[], None]) -> None:
        """Call `callback` whenever `receive(0)` has something to say."""
        self._line.wake_engine = callback

    def receive(self, timeout: float | None) -> list[ToEngine]:
        """See `EngineTransport.receive`."""
        line = self._line
        with line.changed:
            if timeout != 0:
                line.changed.wait_for(lambda: line.to_engine or line.closed, timeout)
            payloads = list(line.to_engine)
            line.to_engine.clear()
            if not payloads and line.closed:
                raise TransportClosed("the HTTP side closed the connection")
        return [decode_to_engine(payload) for payload in payloads]

    def send(self, message: FromEngine) -> None:
        """See `EngineTransport.send`."""
        with self._line.changed:
            if self._line.closed:
                return
            self._line.from_engine.extend(encode_from_engine(message))
        self._line.wake_http()

    def close(self) -> None:
        """See `EngineTransport.close`."""
        self._line.close()


class MemoryHttpTransport:
    """The HTTP side's end (`HttpTransport`); made inside a running event loop."""

    def __init__(self, line: _Line) -> None:
        self._line = line
        self._loop = asyncio.get_running_loop()
        self._arrival = asyncio.Event()
        line.wake_http = self._wake

    async def receive(self) -> list[FromEngine]:
        """See `HttpTransport.receive`."""
        while True:
            self._arrival.clear()
            with self._line.changed:
                payloads = list(self._line.from_engine)
                self._line.from_engine.clear()
                closed = self._line.closed
            if payloads:
                return [decode_from_engine(payload) for payload in payloads]
            if closed:
                raise TransportClosed("the engine closed the connection")
            await self._arrival.wait()

    def send(self, message: ToEngine) -> None:
        """See `HttpTransport.send`."""
        with self._line.changed:
            if self._line.closed:
                return
            self._line.to_engine.append(encode_message(message))
            self._line.changed.notify_all()
        self._line.wake_engine()

    def close(self) -> None:
        """See `HttpTransport.close`."""
        self._line.close()

    def _wake(self) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._arrival.set)


def memory_pair() -> tuple[MemoryEngineTransport, MemoryHttpTransport]:
    """Both ends of one line; call inside a running event loop."""
    line = _Line()
    return MemoryEngineTransport(line), MemoryHttpTransport(line)
