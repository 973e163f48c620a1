"""What both clients ask of httpx."""

from __future__ import annotations

import ipaddress

import httpx

from quire.clients import protocol
from quire.clients.errors import ClientError, ConnectionFailed, TimedOut

CONNECT_SECONDS = 5.0


def is_local(url: str) -> bool:
    """Whether the address is this machine's loopback."""
    host = httpx.URL(url).host
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def timeouts(seconds: float) -> httpx.Timeout:
    """`seconds` between two pieces of an answer; connecting is quicker, or hopeless."""
    return httpx.Timeout(seconds, connect=min(seconds, CONNECT_SECONDS))


def request(http: httpx.Client | httpx.AsyncClient, call: protocol.Call[object]) -> httpx.Request:
    """The call as httpx sends it."""
    return http.build_request(call.method, call.path, content=call.body, headers=call.headers)


def transport_failure(error: httpx.HTTPError, url: str) -> ClientError:
    """What went wrong below HTTP, as an error of ours."""
    if isinstance(error, httpx.TimeoutException) and not isinstance(error, httpx.ConnectTimeout):
        return TimedOut(f"{url}: nothing came within the timeout")
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return ConnectionFailed(f"{url}: no server answers there ({error or 'timeout'}); `quire serve` starts one")
    return ConnectionFailed(f"{url}: the connection broke ({error or type(error).__name__})")
