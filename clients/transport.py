"""What both clients share: where the server is, what httpx is told, and how its failures read."""

from __future__ import annotations

import ipaddress
import os
from typing import TypedDict

import httpx

from quire.clients import protocol
from quire.clients.errors import ClientError, ConnectionFailed, TimedOut

CONNECT_SECONDS = 5.0
_UNIX = "unix:"


class Settings(TypedDict):
    """What httpx.Client and httpx.AsyncClient are both told."""

    base_url: str
    headers: dict[str, str]
    timeout: httpx.Timeout
    trust_env: bool
    verify: bool


class Base:
    """What Client and AsyncClient hold alike. `base_url` may be unix:/path/of/a/socket."""

    def __init__(self, base_url: str | None, model: str | None, max_retries: int) -> None:
        self.base_url = protocol.base_url(base_url, os.environ)
        self.model = model
        self.max_retries = max_retries


class StreamBase:
    """What Stream and AsyncStream hold alike: the open answer, and the server's address for errors."""

    def __init__(self, response: httpx.Response, url: str) -> None:
        self._response = response
        self._url = url

    @property
    def request_id(self) -> str | None:
        """The server's name for this request."""
        name: str | None = self._response.headers.get("x-request-id")
        return name


def settings(url: str, api_key: str | None, timeout: float) -> Settings:
    """For a server at `url`, with `timeout` seconds between two pieces of an answer; connecting is quicker or hopeless.

    Proxies of the environment are for other machines only. Plain http on this machine needs no certificates, whose
    authorities take 80 ms to read; no redirect leads from it to https, because none is followed.
    """
    return {
        "base_url": "http://localhost" if socket_path(url) else url,
        "headers": protocol.authorization(api_key, os.environ),
        "timeout": httpx.Timeout(timeout, connect=min(timeout, CONNECT_SECONDS)),
        "trust_env": not is_local(url),
        "verify": httpx.URL(url).scheme == "https" or not is_local(url),
    }


def socket_path(url: str) -> str | None:
    """The Unix socket of a unix:/path address; None for any other."""
    return url.removeprefix(_UNIX) if url.startswith(_UNIX) else None


def blocking_transport(url: str) -> httpx.BaseTransport | None:
    """How to reach a Unix socket, where there is no https; None lets httpx do what the URL says."""
    path = socket_path(url)
    return httpx.HTTPTransport(uds=path, verify=False) if path else None


def async_transport(url: str, limits: httpx.Limits | None = None) -> httpx.AsyncBaseTransport | None:
    """The same for asyncio; `limits` are those of the connection pool."""
    path = socket_path(url)
    return httpx.AsyncHTTPTransport(uds=path, limits=limits or httpx.Limits(), verify=False) if path else None


def is_local(url: str) -> bool:
    """Whether the address is this machine's loopback, or a Unix socket."""
    if socket_path(url):
        return True
    host = httpx.URL(url).host
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


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
