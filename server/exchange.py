"""One request and its answer, on plain ASGI: body with limits, answer, stream, and the client that leaves.

Every route is an `Endpoint`: it says who may call it, checks that first, and turns errors into the envelope, so that no
route can forget to. Starlette sees an ASGI app and only does the routing.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from typing import Any

import msgspec

from quire.server.auth import Caller, KeyRing
from quire.server.errors import ApiError, unavailable
from quire.server.limits import Limits

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

logger = logging.getLogger("quire.server")
encode_json = msgspec.json.Encoder().encode

JSON = (b"content-type", b"application/json")
STREAM_HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)


class ClientGone(Exception):
    """The client closed the connection, or takes nothing any more (`stalled`); there is nobody to answer."""

    def __init__(self, *, stalled: bool = False) -> None:
        super().__init__()
        self.stalled = stalled


class Access(enum.Enum):
    """Who may call a route."""

    OPEN = "open"
    """Everybody: probes, and the page."""
    KEY = "key"
    """Whoever has a key, when keys are configured."""
    ADMIN = "admin"
    """Whoever has an admin's key, when keys are configured: it shows what concerns everybody."""


class Exchange:
    """One request being answered."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, limits: Limits) -> None:
        self.scope, self.limits = scope, limits
        self._receive, self._send = receive, send
        self.came = time.monotonic()
        """When its headers had arrived; deadlines count from here."""
        self.caller = Caller()
        self.started = False
        self._more_body = True
        self.extra_headers: list[tuple[bytes, bytes]] = []

    def header(self, name: bytes) -> bytes | None:
        """The first header of that name (lower case), or None."""
        return next((value for key, value in self.scope["headers"] if key == name), None)

    @property
    def request_id(self) -> str:
        """What the answer's X-Request-Id says; the client's own where it sent one."""
        request_id: str = self.scope["quire.request_id"]
        return request_id

    @property
    def path_params(self) -> dict[str, str]:
        """What the route's pattern matched."""
        params: dict[str, str] = self.scope.get("path_params", {})
        return params

    async def body(self, take: Callable[[int], None]) -> bytes:
        """The whole body; `take` reserves room for each piece. Raises ApiError for one that is too large or too slow,
        ClientGone for one cut short."""
        pieces: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self.limits.body_seconds):
                while self._more_body:
                    message = await self._receive()
                    if message["type"] == "http.disconnect":
                        raise ClientGone
                    piece: bytes = message.get("body", b"")
                    size += len(piece)
                    if size > self.limits.body_bytes:
                        raise body_too_large(self.limits.body_bytes)
                    take(len(piece))
                    pieces.append(piece)
                    self._more_body = message.get("more_body", False)
        except TimeoutError:
            text = f"The body did not arrive within its deadline of {self.limits.body_seconds:g} s."
            raise ApiError("request_timeout", text, status=408, close=True) from None
        return b"".join(pieces)

    async def respond(self, status: int, body: bytes, *headers: tuple[bytes, bytes]) -> None:
        """Send a whole answer. 204 and 304 have no body, and so say no length."""
        self.started = True
        length = () if status in (204, 304) else ((b"content-length", str(len(body)).encode()),)
        async with self._stall_limit():
            await self._send(
                {
                    "type": "http.response.start",
                    "status": status,
                    "headers": [*headers, *length, *self.extra_headers],
                }
            )
            await self._send({"type": "http.response.body", "body": body})

    async def respond_json(self, value: Any, status: int = 200) -> None:
        """Send a value as JSON."""
        await self.respond(status, encode_json(value), JSON)

    async def respond_error(self, error: ApiError) -> None:
        """Send an error answer; within a stream, the error frame and the end of the stream."""
        if self.started:
            await self.write(b"data: " + error.encode() + b"\n\n")
            await self.end_stream()
            return
        headers = [(name.encode(), value.encode()) for name, value in error.headers]
        if error.close:
            headers.append((b"connection", b"close"))
        await self.respond(error.status, error.encode(), JSON, *headers)

    async def start_stream(self) -> None:
        """Send status 200 and the headers of an event stream."""
        self.started = True
        headers = [*STREAM_HEADERS, *self.extra_headers]
        async with self._stall_limit():
            await self._send({"type": "http.response.start", "status": 200, "headers": headers})

    async def write(self, frame: bytes) -> None:
        """Send one frame of a stream. Raises ClientGone when the client has taken nothing for too long."""
        async with self._stall_limit():
            await self._send({"type": "http.response.body", "body": frame, "more_body": True})

    async def end_stream(self) -> None:
        """Send the last frame of an OpenAI stream and end the answer."""
        await self.write(b"data: [DONE]\n\n")
        await self.finish_stream()

    async def finish_stream(self) -> None:
        """End the answer without another frame."""
        async with self._stall_limit():
            await self._send({"type": "http.response.body", "body": b""})

    async def unless_client_leaves(self, work: Coroutine[Any, Any, None], shed: asyncio.Event | None = None) -> None:
        """Run `work` to its end; or cancel it, and raise ClientGone as soon as the client closes the connection, or
        server_is_overloaded once `shed` is set."""
        task = asyncio.create_task(work)
        watcher = asyncio.create_task(self._until_gone())
        shedding = asyncio.create_task((shed or asyncio.Event()).wait())
        try:
            await asyncio.wait({task, watcher, shedding}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                task.result()
                return
            if shedding.done():
                raise unavailable("server_is_overloaded", "The server ran out of memory; this answer was cut off.", 10)
            raise ClientGone
        finally:
            for unfinished in (task, watcher, shedding):
                unfinished.cancel()
            await asyncio.gather(task, watcher, shedding, return_exceptions=True)

    async def _until_gone(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass

    def _stall_limit(self) -> _StallLimit:
        return _StallLimit(self)

    def abort(self) -> None:
        """Drop the connection at once, with what is unsent; only a real server offers that."""
        extension = self.scope.get("extensions", {}).get("quire.abort")
        if extension is not None:
            extension["call"]()


class _StallLimit:
    """Turns a send that waits longer than the limit into ClientGone, and drops the connection."""

    __slots__ = ("_exchange", "_timeout")

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._timeout = asyncio.timeout(exchange.limits.write_stall_seconds)

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()

    async def __aexit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            await self._timeout.__aexit__(kind, error, trace)
        except TimeoutError:
            self._exchange.abort()
            raise ClientGone(stalled=True) from None


def body_too_large(limit: int) -> ApiError:
    """The refusal of a body over the limit; the connection closes because the rest stays unread."""
    return ApiError("request_too_large", f"The body is larger than the limit of {limit} bytes.", close=True)


class Endpoint:
    """An ASGI app for one path: who may call it, with which methods, and what answers."""

    def __init__(
        self,
        handler: Callable[[Exchange], Awaitable[None]],
        *,
        access: Access,
        methods: tuple[str, ...],
        keys: KeyRing,
        limits: Limits,
        on_error: Callable[[Exchange, ApiError], None],
        on_gone: Callable[[ClientGone], None],
    ) -> None:
        self.handler, self.access, self.methods = handler, access, methods
        self.keys, self.limits, self.on_error, self.on_gone = keys, limits, on_error, on_gone

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; every error that is not the client's leaving becomes an envelope."""
        exchange = Exchange(scope, receive, send, self.limits)
        try:
            await self._answer(exchange)
        except ApiError as error:
            await self._refuse(exchange, error)
        except ClientGone as gone:
            self.on_gone(gone)
            logger.debug("client left: %s", scope["path"])
        except Exception:
            logger.exception("error while answering %s %s", scope["method"], scope["path"])
            await self._refuse(exchange, ApiError("internal_error", "The server made an error; its log says which."))

    async def _answer(self, exchange: Exchange) -> None:
        if self.access is not Access.OPEN:
            exchange.caller = self.keys.identify(exchange.header(b"authorization"))
        if self.access is Access.ADMIN and not exchange.caller.admin:
            text = "This shows what concerns everybody, and so needs an admin's key (`role=admin` in --api-key-file)."
            raise ApiError("insufficient_permissions", text)
        method = exchange.scope["method"]
        if self.methods and method not in self.methods and not (method == "HEAD" and "GET" in self.methods):
            allowed = ", ".join(self.methods)
            text = f"{method[:32]} is not possible here; use {allowed}."
            raise ApiError("method_not_allowed", text, headers=(("allow", allowed),), close=True)
        if method == "POST" and self.methods:
            check_body_headers(exchange)
        await self.handler(exchange)

    async def _refuse(self, exchange: Exchange, error: ApiError) -> None:
        self.on_error(exchange, error)
        try:
            await exchange.respond_error(error)
        except ClientGone as gone:
            self.on_gone(gone)
            logger.debug("client left before its error: %s", exchange.scope["path"])


def check_body_headers(exchange: Exchange) -> None:
    """Refuse a body by its headers, before any byte of it is read: type, encoding, length."""
    kind = exchange.header(b"content-type")
    if not _is_json(kind):
        found = "none" if kind is None else ascii(kind.decode("latin-1")[:100])
        text = f"The content type must be application/json in UTF-8; found {found}."
        raise ApiError("unsupported_media_type", text, close=True)
    if (exchange.header(b"content-encoding") or b"identity").strip().lower() not in (b"", b"identity"):
        text = "Compressed bodies are never inflated; send the body without Content-Encoding."
        raise ApiError("unsupported_encoding", text, close=True)
    length = exchange.header(b"content-length")
    if length is not None and (not length.isdigit() or len(length) > 18 or int(length) > exchange.limits.body_bytes):
        raise body_too_large(exchange.limits.body_bytes)


def _is_json(kind: bytes | None) -> bool:
    if kind is None:
        return False
    media_type, *parameters = (part.strip().lower() for part in kind.split(b";"))
    charsets = [part.partition(b"=")[2].strip(b' "') for part in parameters if part.startswith(b"charset")]
    return media_type == b"application/json" and all(charset in (b"utf-8", b"utf8") for charset in charsets)
