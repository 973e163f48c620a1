"""The outermost layer of every request, as plain ASGI: its id, its headers' size, and whom the browser speaks for."""

from __future__ import annotations

import ipaddress
import logging
import re
import secrets
from collections.abc import Awaitable, Callable, Collection
from urllib.parse import urlsplit

from quire.server.errors import ApiError
from quire.server.exchange import Exchange, Message, Receive, Scope, Send
from quire.server.limits import Limits

logger = logging.getLogger("quire.server")

_REQUEST_ID = re.compile(rb"[A-Za-z0-9_.-]{1,128}")
_LOCAL_NAMES = ("localhost",)

App = Callable[[Scope, Receive, Send], Awaitable[None]]


class Edge:
    """Wraps an app. `local_only` turns on the check of Host and Origin that keeps other web sites out.

    A server on loopback without keys is open to every program of this machine, and so, through the browser, to every
    web page: by a cross-site request (Origin tells) or by a name that was made to point to 127.0.0.1 (Host tells).
    """

    def __init__(self, app: App, *, limits: Limits, local_only: bool, allowed_origins: Collection[str]) -> None:
        self.app, self.limits, self.local_only = app, limits, local_only
        self.allowed_origins = frozenset(origin.rstrip("/").lower() for origin in allowed_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check, name the request, pass it on."""
        if scope["type"] != "http":
            await self._other(scope, receive, send)
            return
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        request_id = _request_id(headers)
        scope["quire.request_id"] = request_id.decode()
        origin = _first(headers, b"origin")
        allowed = origin is not None and self._is_allowed(origin)
        added = [(b"x-request-id", request_id)]
        if allowed and origin is not None:
            added += [(b"access-control-allow-origin", origin), (b"vary", b"Origin")]

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *added]
            await send(message)

        exchange = Exchange(scope, receive, send_with_id, self.limits)
        try:
            self._check_size(headers)
            if self.local_only:
                self._check_local(headers, origin, allowed)
            if allowed and scope["method"] == "OPTIONS":
                await exchange.respond(204, b"", *_PREFLIGHT)
                return
        except ApiError as error:
            await exchange.respond_error(error)
            return
        await self.app(scope, receive, send_with_id)

    async def _other(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1000})
        else:
            await self.app(scope, receive, send)

    def _check_size(self, headers: list[tuple[bytes, bytes]]) -> None:
        size = sum(len(name) + len(value) + 4 for name, value in headers)
        if len(headers) > self.limits.headers or size > self.limits.header_bytes:
            raise headers_too_large(self.limits)

    def _check_local(self, headers: list[tuple[bytes, bytes]], origin: bytes | None, allowed: bool) -> None:
        host = _first(headers, b"host")
        if host is not None and not _is_local(_host_name(host.decode("latin-1"))):
            text = "This server answers to localhost and loopback addresses only, because it has no API key."
            raise ApiError("foreign_host", text, close=True)
        if origin is not None and not allowed and not _is_local(_origin_host(origin)):
            text = "Web pages of other sites may not use this server; see --allowed-origins."
            raise ApiError("foreign_origin", text, close=True)

    def _is_allowed(self, origin: bytes) -> bool:
        return "*" in self.allowed_origins or origin.decode("latin-1").lower() in self.allowed_origins


_PREFLIGHT = (
    (b"access-control-allow-methods", b"GET, POST"),
    (b"access-control-allow-headers", b"authorization, content-type, x-request-id"),
    (b"access-control-max-age", b"600"),
)


def headers_too_large(limits: Limits) -> ApiError:
    """The refusal of a request with too many or too large headers."""
    text = f"The headers exceed {limits.header_bytes} bytes or {limits.headers} lines."
    return ApiError("headers_too_large", text, close=True)


def _request_id(headers: list[tuple[bytes, bytes]]) -> bytes:
    given = _first(headers, b"x-request-id")
    if given is not None and _REQUEST_ID.fullmatch(given):
        return given
    return new_request_id()


def new_request_id() -> bytes:
    """The id of a request whose client named none."""
    return b"req-" + secrets.token_hex(16).encode()


def _first(headers: list[tuple[bytes, bytes]], name: bytes) -> bytes | None:
    return next((value for key, value in headers if key == name), None)


def _host_name(host: str) -> str:
    """`host[:port]` without its port; brackets of an IPv6 address are kept off."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def _origin_host(origin: bytes) -> str:
    try:
        return urlsplit(origin.decode("latin-1")).hostname or ""
    except ValueError:
        return ""


def _is_local(name: str) -> bool:
    name = name.lower().rstrip(".")
    if name in _LOCAL_NAMES or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
