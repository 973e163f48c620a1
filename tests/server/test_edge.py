"""What is refused before a route is reached, and what every answer carries."""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.routing import Route
from support.stub_engine import StubEngine, StubTokenizer

from quire.server.app import create_app
from quire.server.errors import STATUS_OF_CODE, quoted, retry_after, type_of_status
from quire.server.exchange import Endpoint
from quire.server.limits import Limits
from quire.server.not_built_routes import NOT_BUILT
from quire.server.settings import ServerSettings

CHAT = "/v1/chat/completions"
ASK: dict[str, Any] = {"model": "stub", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
KEY = "correct-horse-battery-staple"
BASE = "http://127.0.0.1:8000"

# CONVENTIONS, section 2, with the routes that were added to it: every route a user may know.
EXPECTED_ROUTES = """
    /v1/models /v1/models/{id} /v1/completions /v1/chat/completions /v1/responses /v1/embeddings /v1/files /v1/batches
    /tokenize /detokenize /health /ready /version /metrics /load /livez /readyz /
    /v1/messages /v1/messages/count_tokens
    /api/tags /api/show /api/ps /api/version /api/chat /api/generate /api/embed
    /tokenizer_info
"""


def client(app: FastAPI, base: str = BASE, **options: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=base, **options)


def make_app(limits: Limits | None = None, **settings: Any) -> FastAPI:
    given = ServerSettings(served_model_name=["stub"], **settings)
    return create_app(given, StubEngine(), StubTokenizer(), limits=limits)


def endpoints(app: FastAPI) -> dict[str, Endpoint]:
    found = {}
    for route in app.routes:
        assert isinstance(route, Route), route
        assert isinstance(route.endpoint, Endpoint), f"{route.path} does not say who may call it"
        found[route.path] = route.endpoint
    return found


# --- routes


def test_every_route_is_built_or_refused_by_name(app: FastAPI) -> None:
    paths = {re.sub(r"\{[^}]*\}", "{id}", path) for path in endpoints(app)}
    assert paths >= set(EXPECTED_ROUTES.split())
    assert not set(NOT_BUILT) & {path for path, endpoint in endpoints(app).items() if endpoint.methods}
    assert set(NOT_BUILT) <= set(endpoints(app))


@pytest.mark.parametrize("path", NOT_BUILT)
async def test_not_built(http: httpx.AsyncClient, path: str) -> None:
    for method in ("GET", "POST", "DELETE"):
        response = await http.request(method, path.replace("{id}", "x"), json={} if method == "POST" else None)
        assert response.status_code == 404
        error = response.json()["error"]
        assert error["code"] == "not_built"
        assert "not built yet" in error["message"]


@pytest.mark.parametrize("path", ["/v1/nope", "/v1/../etc/passwd", "/%2e%2e/x", "/a%00b", "/v1/models/", "//", "/v1"])
async def test_unknown_url(http: httpx.AsyncClient, path: str) -> None:
    """B002."""
    response = await http.post(path, json={})
    assert response.status_code in (404, 405)
    assert response.json()["error"]["code"] in ("unknown_url", "method_not_allowed", "model_not_found")


async def test_unknown_url_names_the_path(http: httpx.AsyncClient) -> None:
    error = (await http.post("/v1/nope", json={})).json()["error"]
    assert error["code"] == "unknown_url"
    assert '"/v1/nope"' in error["message"]
    assert "/v1/chat/completions, /v1/completions," in error["message"], "what it might have been"


async def test_method(http: httpx.AsyncClient) -> None:
    """B001."""
    response = await http.get(CHAT)
    assert response.status_code == 405
    assert response.headers["allow"] == "POST"
    assert "POST" in response.json()["error"]["message"]
    response = await http.delete("/v1/models")
    assert response.headers["allow"] == "GET"


async def test_head(http: httpx.AsyncClient) -> None:
    assert (await http.head("/health")).status_code == 200


@pytest.mark.parametrize("path", ["/health", "/ready", "/livez", "/readyz", "/version", "/load", "/v1/models", "/"])
async def test_plain_gets(http: httpx.AsyncClient, path: str) -> None:
    assert (await http.get(path)).status_code == 200


async def test_models(http: httpx.AsyncClient) -> None:
    cards = (await http.get("/v1/models")).json()
    assert cards["object"] == "list"
    assert [card["id"] for card in cards["data"]] == ["stub"]
    assert (await http.get("/v1/models/stub")).json() == cards["data"][0]
    response = await http.get("/v1/models/org/other")
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "model_not_found"


async def test_tokenize_and_back(http: httpx.AsyncClient, tokenizer: StubTokenizer) -> None:
    answer = (await http.post("/tokenize", json={"prompt": "ab\u00fc", "return_token_strs": True})).json()
    assert answer["tokens"] == list("ab\u00fc".encode())
    assert answer["count"] == 4
    assert answer["max_model_len"] == 256
    assert answer["token_strs"][:2] == ["a", "b"]
    back = (await http.post("/detokenize", json={"model": "stub", "tokens": answer["tokens"]})).json()
    assert back == {"prompt": "ab\u00fc"}
    chat = (await http.post("/tokenize", json={"messages": ASK["messages"], "add_generation_prompt": False})).json()
    assert bytes(chat["tokens"]) == b"u:hi\n"
    assert tokenizer.chats[-1]["add_generation_prompt"] is False


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": 5}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": ASK["messages"]}, "prompt"),
        ("/tokenize", {"prompt": "x" * 100_000}, "prompt"),
        ("/tokenize", {"prompt": "a", "model": "other"}, "model"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": "a"}, "tokens"),
        ("/detokenize", {"tokens": [10**9]}, "tokens"),
        ("/detokenize", {"token": [1]}, "token"),
    ],
)
async def test_tokenize_refuses(http: httpx.AsyncClient, path: str, body: dict[str, Any], param: str) -> None:
    response = await http.post(path, json=body)
    assert response.status_code in (400, 404)
    assert response.json()["error"]["param"] == param


# --- headers and sizes


@pytest.mark.parametrize(
    "kind",
    [None, "text/plain", "multipart/form-data; boundary=x", "application/json; charset=latin-1", "application/jsonx"],
)
async def test_content_type(http: httpx.AsyncClient, engine: StubEngine, kind: str | None) -> None:
    """B004."""
    headers = {} if kind is None else {"content-type": kind}
    response = await http.post(CHAT, content=b"{}", headers=headers)
    assert response.status_code == 415
    error = response.json()["error"]
    assert error["code"] == "unsupported_media_type"
    assert "application/json" in error["message"]
    assert engine.requests == []


@pytest.mark.parametrize(
    "kind", ["application/json", "Application/JSON; charset=UTF-8", 'application/json;charset="utf-8"']
)
async def test_content_types_that_are_json(http: httpx.AsyncClient, kind: str) -> None:
    body = httpx.Request("POST", BASE, json=ASK).read()
    assert (await http.post(CHAT, content=body, headers={"content-type": kind})).status_code == 200


async def test_content_encoding(http: httpx.AsyncClient) -> None:
    """B005: a bomb is never inflated."""
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    response = await http.post(CHAT, content=b"\x1f\x8b", headers=headers)
    assert (response.status_code, response.json()["error"]["code"]) == (415, "unsupported_encoding")


@pytest.mark.parametrize("length", [str(10**10), str(4 * 1024 * 1024 + 1), "9" * 400, "-5", "x"])
async def test_content_length(app: FastAPI, length: str) -> None:
    """B006: refused by the header alone; nothing is read, so no `100 Continue` is ever sent."""
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        raise AssertionError("the body was read")

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    headers = [(b"content-type", b"application/json"), (b"content-length", length.encode()), (b"host", b"localhost")]
    scope = {"type": "http", "method": "POST", "path": CHAT, "headers": headers, "query_string": b""}
    await app(scope, receive, send)
    assert sent[0]["status"] == 413
    assert (b"connection", b"close") in sent[0]["headers"]
    assert b"4194304 bytes" in sent[1]["body"]


async def test_body_without_a_length_is_cut_at_the_limit(http: httpx.AsyncClient) -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b" " * (1 << 20)

    response = await http.post(CHAT, content=endless(), headers={"content-type": "application/json"})
    assert (response.status_code, response.json()["error"]["code"]) == (413, "request_too_large")


async def test_body_that_does_not_arrive() -> None:
    """B008, with a deadline of 20 ms in place of 30 s."""
    import asyncio

    async def silent() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.Event().wait()

    async with client(make_app(Limits(body_seconds=0.02))) as http:
        response = await http.post(CHAT, content=silent(), headers={"content-type": "application/json"})
    assert (response.status_code, response.json()["error"]["code"]) == (408, "request_timeout")
    assert response.headers["connection"] == "close"
    assert "deadline" in response.json()["error"]["message"]


@pytest.mark.parametrize("headers", [{"x-big": "x" * 40_000}, {f"x-{i}": "y" for i in range(500)}])
async def test_headers_too_large(http: httpx.AsyncClient, headers: dict[str, str]) -> None:
    """B010."""
    response = await http.get("/v1/models", headers=headers)
    assert (response.status_code, response.json()["error"]["code"]) == (431, "headers_too_large")


async def test_request_id(http: httpx.AsyncClient) -> None:
    for given in ("a", "trace-1.2_3", "x" * 128):
        assert (await http.get("/health", headers={"x-request-id": given})).headers["x-request-id"] == given
    made = set()
    for given in ("", "x" * 129, "a b", "a\tb", "\u00e9", 'a"'):
        response = await http.get("/nope", headers={"x-request-id": given.encode()})
        assert re.fullmatch(r"req-[0-9a-f]{32}", response.headers["x-request-id"])
        made.add(response.headers["x-request-id"])
    assert len(made) == 6


# --- states and errors


@pytest.mark.parametrize(
    ("state", "code"),
    [
        ("loading", "model_loading"),
        ("restarting", "engine_restarting"),
        ("draining", "server_draining"),
        ("failed", "engine_failed"),
    ],
)
async def test_states(http: httpx.AsyncClient, engine: StubEngine, state: str, code: str) -> None:
    """B020."""
    engine.state = state
    for method, path in (("POST", CHAT), ("POST", "/v1/completions"), ("POST", "/tokenize"), ("GET", "/ready")):
        response = await http.request(method, path, json=ASK if method == "POST" else None)
        assert (response.status_code, response.json()["error"]["code"]) == (503, code)
        assert response.json()["error"]["type"] == "service_unavailable_error"
        assert int(response.headers["retry-after"]) >= 1
    assert (await http.get("/health")).status_code == (503 if state == "failed" else 200)
    assert engine.requests == []


def test_retry_after_is_spread() -> None:
    assert retry_after(10, 0.0) == ("retry-after", "8")
    assert retry_after(10, 1.0) == ("retry-after", "12")
    assert retry_after(0.01)[1] == "1"
    assert retry_after(10_000)[1] == "60"
    assert len({retry_after(30)[1] for _ in range(200)}) > 5


def test_error_types() -> None:
    assert type_of_status(429) == "rate_limit_error"
    assert {type_of_status(status) for status in STATUS_OF_CODE.values()} == {
        "invalid_request_error",
        "permission_error",
        "rate_limit_error",
        "service_unavailable_error",
        "server_error",
    }


def test_quoted_values_are_short_and_printable() -> None:
    for value in ("x" * 10_000, "\u202e\x00\ud800" * 100, 10**4000, {"a": 1}, [1] * 9, None, True, 1.5):
        text = quoted(value)
        assert len(text) <= 200
        assert text.isascii()
        assert text.isprintable()


def test_middleware_is_pure_asgi(app: FastAPI) -> None:
    """F18: nothing of ours wraps `receive`."""
    for entry in app.user_middleware:
        assert "call_next" not in inspect.getsource(entry.cls)  # type: ignore[arg-type]


async def test_one_id_for_many_requests(http: httpx.AsyncClient, engine: StubEngine) -> None:
    """F20: a client's id is an echo; what the engine calls a request is ours, and nobody's is another's."""
    body = {"model": "stub", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}
    headers = {"x-request-id": "the-same"}
    answers = await asyncio.gather(*(http.post("/v1/chat/completions", json=body, headers=headers) for _ in range(50)))
    assert {(answer.status_code, answer.headers["x-request-id"]) for answer in answers} == {(200, "the-same")}
    assert len({answer.json()["id"] for answer in answers}) == 50
    assert len({request.request_id for request in engine.requests}) == 50
