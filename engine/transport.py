"""The process line: typed frames (`quire.engine.frames`) over an inherited Unix socket pair.

    engine process                                    HTTP process
    EngineTransport: sync, send() never blocks  <-->  HttpTransport: asyncio

What the engine's socket does not take waits in one outbox in which the unsent rows of a sequence become one row, so
that a stalled HTTP process costs the engine memory for its tokens and never a step. `quire.engine.memory_transport` has
the same two faces without a socket, `quire.engine.progress_page` the counters beside the line.
"""

from __future__ import annotations

import asyncio
import select
import socket
import time
from typing import Protocol, cast

from quire.engine.frames import (
    FrameReader,
    Outbox,
    ProtocolError,
    TransportClosed,
    decode_from_engine,
    decode_to_engine,
    encode_from_engine,
    encode_message,
    frame,
    handshake,
)
from quire.engine.messages import FromEngine, ToEngine

__all__ = [
    "EngineTransport",
    "HttpTransport",
    "ProtocolError",
    "SocketEngineTransport",
    "SocketHttpTransport",
    "TransportClosed",
]

_READ_BYTES = 1 << 18


class EngineTransport(Protocol):
    """The engine's end: synchronous, called from the engine's one thread."""

    def receive(self, timeout: float | None) -> list[ToEngine]:
        """What has come, waiting at most `timeout` seconds (0: not at all, None: until something comes).

        Raises TransportClosed when the HTTP process is gone and everything that it sent has been returned.
        """

    def send(self, message: FromEngine) -> None:
        """Send, or keep for later; never blocks and never raises: `receive` tells of a closed connection."""

    def close(self) -> None:
        """Give unsent messages a moment (a second at most), then close. Idempotent."""


class HttpTransport(Protocol):
    """The HTTP process's end: asyncio, called from its event loop."""

    async def receive(self) -> list[FromEngine]:
        """At least one message; raises TransportClosed when the engine is gone and all it sent has been returned."""

    def send(self, message: ToEngine) -> None:
        """Send, or keep for later; never blocks and never raises: `receive` tells of a closed connection."""

    def close(self) -> None:
        """Close at once. Idempotent."""


class SocketEngineTransport:
    """The engine's end of the socket pair (`EngineTransport`). Sends the handshake at once."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self._socket = connection
        self._reader = FrameReader(decode_to_engine)
        self._outbox = Outbox()
        self._sending = memoryview(handshake())
        self._error: TransportClosed | None = None
        self._flush()

    def receive(self, timeout: float | None) -> list[ToEngine]:
        """See `EngineTransport.receive`."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            messages = self._read()
            if messages:
                return messages
            if self._error is not None:
                raise self._error
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return []
            if self._poll(select.POLLIN, left) & select.POLLOUT:
                self._flush()

    def send(self, message: FromEngine) -> None:
        """See `EngineTransport.send`."""
        self._outbox.put(message)
        self._flush()

    def close(self) -> None:
        """See `EngineTransport.close`."""
        deadline = time.monotonic() + 1.0
        while self._socket.fileno() >= 0 and (self._sending or self._outbox) and self._error is None:
            left = deadline - time.monotonic()
            if left <= 0:
                break
            self._poll(0, left)
            self._flush()
        self._socket.close()

    def _poll(self, events: int, timeout: float | None) -> int:
        """Wait for `events`, and for room to write while something is unsent; the events that came."""
        if self._sending or self._outbox:
            events |= select.POLLOUT
        poll = select.poll()  # select() refuses file descriptors from 1024 on
        poll.register(self._socket, events)
        return sum(event for _, event in poll.poll(None if timeout is None else timeout * 1000))

    def _read(self) -> list[ToEngine]:
        messages: list[ToEngine] = []
        while self._error is None:
            try:
                data = self._socket.recv(_READ_BYTES)
            except BlockingIOError:
                break
            except OSError as error:
                self._error = TransportClosed(f"the HTTP process is gone: {error}")
                break
            try:
                if not data:
                    self._reader.finish()
                    self._error = TransportClosed("the HTTP process closed the connection")
                else:
                    messages += self._reader.feed(data)
            except ProtocolError as error:
                self._error = error
        return messages

    def _flush(self) -> None:
        while self._error is None:
            if not self._sending:
                if not self._outbox:
                    return
                self._sending = memoryview(b"".join(map(frame, encode_from_engine(self._outbox.take()))))
            try:
                sent = self._socket.send(self._sending)
            except BlockingIOError:
                return
            except OSError as error:
                self._error = TransportClosed(f"the HTTP process is gone: {error}")
                return
            self._sending = self._sending[sent:]


class SocketHttpTransport(asyncio.Protocol):
    """The HTTP process's end of the socket pair (`HttpTransport`). Make one with `connect`."""

    def __init__(self) -> None:
        self._reader = FrameReader(decode_from_engine)
        self._messages: list[FromEngine] = []
        self._error: TransportClosed | None = None
        self._arrival = asyncio.Event()
        self._transport: asyncio.Transport | None = None

    @classmethod
    async def connect(cls, connection: socket.socket) -> SocketHttpTransport:
        """Take over one end of a socket pair and send the handshake."""
        connection.setblocking(False)
        _, protocol = await asyncio.get_running_loop().create_unix_connection(cls, sock=connection)
        return protocol

    async def receive(self) -> list[FromEngine]:
        """See `HttpTransport.receive`."""
        await self._arrival.wait()
        if self._messages:
            messages, self._messages = self._messages, []
            if self._error is None:
                self._arrival.clear()
            return messages
        assert self._error is not None
        raise self._error

    def send(self, message: ToEngine) -> None:
        """See `HttpTransport.send`."""
        if self._transport is not None and self._error is None:
            self._transport.write(frame(encode_message(message)))

    def close(self) -> None:
        """See `HttpTransport.close`."""
        self._fail(TransportClosed("this end was closed"))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio's call: the socket is ours."""
        # uvloop's transports have the methods of asyncio.Transport without being one.
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(handshake())

    def data_received(self, data: bytes) -> None:
        """asyncio's call: bytes came."""
        if self._error is not None:
            return
        try:
            self._messages += self._reader.feed(data)
        except ProtocolError as error:
            self._fail(error)
        if self._messages:
            self._arrival.set()

    def connection_lost(self, error: Exception | None) -> None:
        """asyncio's call: the engine's end is closed."""
        try:
            self._reader.finish()
            self._fail(TransportClosed("the engine closed the connection" + (f": {error}" if error else "")))
        except ProtocolError as cut:
            self._fail(cut)

    def _fail(self, error: TransportClosed) -> None:
        if self._error is None:
            self._error = error
            self._arrival.set()
            if self._transport is not None:
                self._transport.abort()
