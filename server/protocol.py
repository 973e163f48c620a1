"""HTTP on a connection: uvicorn's httptools protocol with the limits that an application never gets to see.

A deadline for headers, a cap on their size while they arrive, a cap on connections, the error envelope for what is no
HTTP at all, and a way for a route to drop a connection whose client takes nothing any more.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from quire.server.edge import headers_too_large, new_request_id
from quire.server.errors import ApiError, unavailable
from quire.server.limits import Limits

_MAX_URL_BYTES = 16 << 10


def protocol_class(limits: Limits, max_connections: int) -> type[HttpToolsProtocol]:
    """The protocol with these limits, as uvicorn wants it: a class."""

    class LimitedProtocol(_LimitedProtocol):
        pass

    LimitedProtocol.limits, LimitedProtocol.max_connections = limits, max_connections
    return LimitedProtocol


class _LimitedProtocol(HttpToolsProtocol):
    limits: Limits
    max_connections: int

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._header_bytes = 0
        self._header_timer: asyncio.TimerHandle | None = None
        self._refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.max_connections:
            self._refuse(unavailable("server_is_overloaded", "The server has no connections left.", 2))
            return
        self._start_header_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_header_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        if self._header_timer is None and self._is_between_requests():
            self._start_header_timer()
        super().data_received(data)

    def on_message_begin(self) -> None:
        self._header_bytes = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        self._count_header_bytes(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        self._count_header_bytes(len(name) + len(value) + 4)

    def on_headers_complete(self) -> None:
        self._stop_header_timer()
        if self._refused:
            return
        self.scope["extensions"] = {"quire.abort": {"call": self.transport.abort}}
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if not self._refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if not self._refused:
            super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP gets the envelope too, unless a refusal is on its way already."""
        if not self._refused:
            self._refuse(ApiError("invalid_http", msg))

    def _is_between_requests(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _count_header_bytes(self, size: int) -> None:
        self._header_bytes += size
        if (
            self._header_bytes > self.limits.header_bytes + _MAX_URL_BYTES
            or len(self.headers) > 2 * self.limits.headers
        ):
            self._refuse(headers_too_large(self.limits))

    def _start_header_timer(self) -> None:
        self._header_timer = self.loop.call_later(self.limits.header_seconds, self._headers_too_slow)

    def _stop_header_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _headers_too_slow(self) -> None:
        self._header_timer = None
        text = f"The headers did not arrive within their deadline of {self.limits.header_seconds:g} s."
        self._refuse(ApiError("request_timeout", text, status=408))

    def _refuse(self, error: ApiError) -> None:
        """Answer without the application, and close."""
        if self._refused or self.transport.is_closing():
            return
        self._refused = True
        self._stop_header_timer()
        body = error.encode()
        headers = [
            ("content-type", "application/json"),
            ("content-length", str(len(body))),
            ("x-request-id", new_request_id().decode()),
            ("connection", "close"),
            *error.headers,
        ]
        lines = [f"{name}: {value}\r\n".encode() for name, value in headers]
        if self._is_between_requests():
            self.transport.write(b"".join((STATUS_LINE[error.status], *lines, b"\r\n", body)))
        self.transport.close()
