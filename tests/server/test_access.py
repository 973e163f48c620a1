"""Who may use the server: keys, tenants, and what browsers may do on behalf of a web page."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.routing import Route
from support.bench import Bench
from support.stub_engine import StubEngine, StubTokenizer

from quire.engine.errors import UsageError
from quire.engine.recorder import FlightRecorder, encode
from quire.server.app import create_app
from quire.server.exchange import Access
from quire.server.settings import ServerSettings

CHAT = "/v1/chat/completions"
ASK: dict[str, Any] = {"model": "stub", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
KEY = "correct-horse-battery-staple"
BASE = "http://127.0.0.1:8000"


def client(app: FastAPI) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=BASE)


def make_app(**settings: Any) -> FastAPI:
    return create_app(ServerSettings(served_model_name=["stub"], **settings), StubEngine(), StubTokenizer())


def access_of(app: FastAPI) -> dict[str, Access]:
    """Every route says who may call it."""
    return {route.path: route.endpoint.access for route in app.routes if isinstance(route, Route)}


@pytest.fixture
async def locked() -> AsyncIterator[httpx.AsyncClient]:
    """A server with a key."""
    async with client(make_app(api_key=[KEY])) as http:
        yield http


# --- keys

BAD_KEYS: list[bytes | None] = [
    None,
    b"",
    b"Bearer",
    b"Bearer ",
    b"Bearer wrong-key-wrong-key",
    b"Basic " + KEY.encode(),
    KEY.encode(),
    b"Bearer " + b"x" * 10_240,
    b"Bearer " + KEY.encode() + b"x" * 1024,
    "Bearer schl\u00fcssel-schl\u00fcssel".encode(),
    b"Bearer \xff\xfe",
]


@pytest.mark.parametrize("given", BAD_KEYS, ids=range(len(BAD_KEYS)))
async def test_keys_that_open_nothing(locked: httpx.AsyncClient, given: bytes | None) -> None:
    """B013: the same text for all of them."""
    headers = [] if given is None else [("authorization", given)]
    response = await locked.post(CHAT, json=ASK, headers=headers)  # type: ignore[arg-type]
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    assert response.json()["error"] == {
        "message": "A valid API key is needed: send it as `Authorization: Bearer KEY`.",
        "type": "invalid_request_error",
        "param": None,
        "code": "invalid_api_key",
    }


async def test_key(locked: httpx.AsyncClient) -> None:
    for scheme in ("Bearer", "bearer"):
        response = await locked.post(CHAT, json=ASK, headers={"authorization": f"{scheme} {KEY}"})
        assert response.status_code == 200


async def test_open_routes_are_few(app: FastAPI) -> None:
    """F63."""
    open_paths = {path for path, access in access_of(app).items() if access is Access.OPEN}
    assert open_paths == {"/", "/playground/{name}", "/health", "/livez", "/ready", "/readyz"}


async def test_every_other_route_wants_a_key(locked: httpx.AsyncClient, app: FastAPI) -> None:
    """B017, and unknown paths too: what exists is nobody's business."""
    closed = [path for path, access in access_of(app).items() if access is not Access.OPEN]
    for path in [*closed, "/nope", "/admin", "/debug/x"]:
        for method in ("GET", "POST"):
            assert (await locked.request(method, re.sub(r"\{[^}]*\}", "x", path))).status_code == 401, path
    for path in ("/", "/health", "/livez", "/ready", "/readyz"):
        assert (await locked.get(path)).status_code == 200


async def test_tenants_do_not_share_prefixes() -> None:
    engine = StubEngine()
    keys = [f"{KEY}-{i}" for i in range(2)]
    app = create_app(ServerSettings(served_model_name=["stub"], api_key=keys), engine, StubTokenizer())
    async with client(app) as http:
        for key, salt in ((0, None), (1, None), (0, "a"), (0, None), (1, "a")):
            headers = {"authorization": f"Bearer {keys[key]}"}
            await http.post(CHAT, json={**ASK, "cache_salt": salt}, headers=headers)
    salts = [request.salt for request in engine.requests]
    assert len(set(salts)) == 4
    assert salts[0] == salts[3]
    assert len({request.key_id for request in engine.requests}) == 2
    assert not any(key in request.key_id for key in keys for request in engine.requests)


async def test_without_keys_all_share_until_they_salt(http: httpx.AsyncClient, engine: StubEngine) -> None:
    for salt in (None, "a", "b", "a"):
        await http.post(CHAT, json={**ASK, "cache_salt": salt})
    salts = [request.salt for request in engine.requests]
    assert salts[0] == b""
    assert len(set(salts)) == 3
    assert salts[1] == salts[3]


# --- browsers


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "192.168.0.7", ""])
async def test_foreign_host(http: httpx.AsyncClient, engine: StubEngine, host: str) -> None:
    response = await http.post(CHAT, json=ASK, headers={"host": host})
    assert (response.status_code, response.json()["error"]["code"]) == (403, "foreign_host")
    assert response.json()["error"]["type"] == "permission_error"
    assert engine.requests == []


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:1", "127.0.0.1:8000", "127.1.2.3", "[::1]:8000", "a.localhost"]
)
async def test_local_host(http: httpx.AsyncClient, host: str) -> None:
    assert (await http.get("/v1/models", headers={"host": host})).status_code == 200


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "https://127.0.0.1.evil.example", "null", "http://[::1", "x"]
)
async def test_foreign_origin(http: httpx.AsyncClient, engine: StubEngine, origin: str) -> None:
    response = await http.post(CHAT, json=ASK, headers={"origin": origin})
    assert (response.status_code, response.json()["error"]["code"]) == (403, "foreign_origin")
    assert engine.requests == []


async def test_local_origin(http: httpx.AsyncClient) -> None:
    response = await http.get("/v1/models", headers={"origin": "http://localhost:3000"})
    assert response.status_code == 200
    assert "access-control-allow-origin" not in response.headers


async def test_allowed_origin() -> None:
    async with client(make_app(allowed_origins=["https://app.example"])) as http:
        headers = {"origin": "https://app.example"}
        preflight = await http.options(CHAT, headers=headers)
        assert preflight.status_code == 204
        assert "POST" in preflight.headers["access-control-allow-methods"]
        response = await http.post(CHAT, json=ASK, headers=headers)
        assert response.status_code == 200
        assert response.headers["access-control-allow-origin"] == "https://app.example"
        assert (await http.post(CHAT, json=ASK, headers={"origin": "https://b.example"})).status_code == 403


async def test_hosts_are_free_where_keys_or_networks_are() -> None:
    for settings in ({"api_key": [KEY]}, {"host": "0.0.0.0", "allow_unauthenticated": True}):
        async with client(make_app(**settings)) as http:
            headers = {"host": "llm.example", "authorization": f"Bearer {KEY}"}
            assert (await http.get("/v1/models", headers=headers)).status_code == 200


# --- what a key may do


def key_file(tmp_path: Path, *lines: str) -> str:
    path = tmp_path / "keys"
    path.write_text("\n".join(lines))
    path.chmod(0o600)
    return str(path)


async def test_disabled_and_expired_keys_say_so(tmp_path: Path) -> None:
    """B014. What is wrong with a key is told to whoever has it, and to nobody else."""
    today = datetime.now(UTC).date()
    lines = [
        f"off {KEY}-off disabled=yes",
        f"old {KEY}-old expires={today}",
        f"new {KEY}-new expires={today + timedelta(1)}",
    ]
    async with client(make_app(api_key_file=key_file(tmp_path, *lines))) as http:
        for name, code in (("off", "api_key_disabled"), ("old", "api_key_disabled"), ("x", "invalid_api_key")):
            response = await http.post(CHAT, json=ASK, headers={"authorization": f"Bearer {KEY}-{name}"})
            assert (response.status_code, response.json()["error"]["code"]) == (401, code)
            assert KEY not in response.text
        answer = await http.post(CHAT, json=ASK, headers={"authorization": f"Bearer {KEY}-new"})
        assert answer.status_code == 200


async def test_admins_routes_are_closed_to_tenants(tmp_path: Path) -> None:
    """B015."""
    keys = key_file(tmp_path, f"tenant {KEY}-tenant", f"root {KEY}-root role=admin")
    engine = StubEngine()
    engine.recording = encode(FlightRecorder(Bench().scheduler, 1, lambda: 0.0).dump("asked"))
    app = create_app(ServerSettings(api_key_file=keys), engine, StubTokenizer())
    admin = [path for path, access in access_of(app).items() if access is Access.ADMIN]
    assert set(admin) == {"/playground/pool", "/debug/flight"}
    async with client(app) as http:
        for path in admin:
            assert (await http.head(path)).status_code == 401
            tenant = await http.get(path, headers={"authorization": f"Bearer {KEY}-tenant"})
            assert (tenant.status_code, tenant.json()["error"]["type"]) == (403, "permission_error")
            assert tenant.json()["error"]["code"] == "insufficient_permissions"
            root = await http.head(path, headers={"authorization": f"Bearer {KEY}-root"})
            assert root.status_code == 200, path


async def test_the_only_key_is_the_operators() -> None:
    async with client(make_app(api_key=[KEY])) as http:
        assert (await http.head("/playground/pool", headers={"authorization": f"Bearer {KEY}"})).status_code == 200
    async with client(make_app(api_key=[KEY, KEY + "-two"])) as http:
        assert (await http.head("/playground/pool", headers={"authorization": f"Bearer {KEY}"})).status_code == 403


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ("role=king", "expected role=admin"),
        ("disabled=no", "expected disabled=yes"),
        ("expires=soon", "expected a date such as"),
        ("role=admin role=admin", "role stands twice"),
    ],
)
def test_words_after_a_key_that_say_nothing(words: str, part: str, tmp_path: Path) -> None:
    """C06."""
    with pytest.raises(UsageError, match=part):
        ServerSettings(api_key_file=key_file(tmp_path, f"a {KEY} {words}")).read_api_keys()
