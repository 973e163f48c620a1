"""Client and AsyncClient against a scripted transport: the same calls, the same answers, the same errors."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Protocol

import httpx
import pytest

from quire.clients import (
    AsyncClient,
    Client,
    ConnectionFailed,
    Delta,
    NotFound,
    ProtocolError,
    RateLimited,
    StreamFailed,
    TimedOut,
    Unavailable,
    Usage,
)
from quire.clients.transport import settings

Handler = Callable[[httpx.Request], httpx.Response]
CHUNK = b'data: {"choices":[{"index":0,"delta":{"content":"%s"}}]}\n\n'
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3}}\n\n'


class Calls(Protocol):
    """What both clients are asked in these tests."""

    waits: list[float]

    def answer(self, name: str, *arguments: Any, **fields: Any) -> Any: ...
    def deltas(self, name: str, *arguments: Any, **fields: Any) -> list[Delta]: ...


class SyncCalls:
    def __init__(self, handler: Handler) -> None:
        self.waits: list[float] = []
        self.client = Client(
            "http://server", model="m", transport=httpx.MockTransport(handler), sleep=self.waits.append
        )

    def answer(self, name: str, *arguments: Any, **fields: Any) -> Any:
        with self.client as client:
            return getattr(client, name)(*arguments, **fields)

    def deltas(self, name: str, *arguments: Any, **fields: Any) -> list[Delta]:
        with self.client as client, getattr(client, name)(*arguments, stream=True, **fields) as stream:
            return list(stream)


class AsyncCalls:
    def __init__(self, handler: Handler) -> None:
        self.waits: list[float] = []

        async def sleep(seconds: float) -> None:
            self.waits.append(seconds)

        self.client = AsyncClient("http://server", model="m", transport=httpx.MockTransport(handler), sleep=sleep)

    def answer(self, name: str, *arguments: Any, **fields: Any) -> Any:
        async def call() -> Any:
            async with self.client as client:
                return await getattr(client, name)(*arguments, **fields)

        return asyncio.run(call())

    def deltas(self, name: str, *arguments: Any, **fields: Any) -> list[Delta]:
        async def call() -> list[Delta]:
            async with self.client as client, await getattr(client, name)(*arguments, stream=True, **fields) as stream:
                return [delta async for delta in stream]

        return asyncio.run(call())


@pytest.fixture(params=[SyncCalls, AsyncCalls], ids=["sync", "async"])
def connect(request: pytest.FixtureRequest) -> Callable[[Handler], Calls]:
    kind: Callable[[Handler], Calls] = request.param
    return kind


Connect = Callable[[Handler], Calls]


class Body(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A streamed body in given pieces; an exception among them is raised at its place."""

    def __init__(self, *pieces: bytes | Exception) -> None:
        self.pieces, self.closed = pieces, False

    def __iter__(self) -> Iterator[bytes]:
        for piece in self.pieces:
            if isinstance(piece, Exception):
                raise piece
            yield piece

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self:
            yield piece

    def close(self) -> None:
        self.closed = True

    async def aclose(self) -> None:
        self.closed = True


def test_chat(connect: Connect) -> None:
    def handle(request: httpx.Request) -> httpx.Response:
        assert (request.method, request.url.path) == ("POST", "/v1/chat/completions")
        assert request.headers["content-type"] == "application/json"
        assert json.loads(request.content) == {
            "model": "m",
            "messages": [{"role": "user", "content": "hi"}],
            "temperature": 0,
        }
        choice = {"index": 0, "message": {"role": "assistant", "content": "hello"}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 9, "total_tokens": 10, "prompt_tokens_details": {"cached_tokens": 8}}
        return httpx.Response(200, json={"id": "chatcmpl-1", "choices": [choice], "usage": usage, "created": 1})

    answer = connect(handle).answer("chat", "hi", temperature=0)
    assert (answer.text, answer.id, answer.tool_calls) == ("hello", "chatcmpl-1", ())
    assert (answer.usage.prompt_tokens, answer.usage.cached_tokens) == (9, 8)


def test_small_calls(connect: Connect) -> None:
    answers = {
        "/v1/completions": {"choices": [{"text": "a", "index": 0}, {"text": "b", "index": 1}]},
        "/v1/models": {"object": "list", "data": [{"id": "m", "max_model_len": 7}]},
        "/tokenize": {"tokens": [1, 2], "count": 2},
        "/detokenize": {"prompt": "text"},
        "/version": {"version": "0.1.0"},
        "/ready": {},
    }

    def handle(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json=answers[request.url.path])

    completion = connect(handle).answer("complete", ["p", "q"])
    assert [choice.text for choice in completion.choices] == ["a", "b"]
    models = connect(handle).answer("models")
    assert (models[0].id, models[0].max_model_len) == ("m", 7)
    assert connect(handle).answer("tokenize", "text") == [1, 2]
    assert connect(handle).answer("detokenize", [1, 2]) == "text"
    assert connect(handle).answer("version") == "0.1.0"
    assert connect(handle).answer("ready") is True


def test_without_a_model_the_first_one_served_is_asked_for() -> None:
    asked: list[object] = []

    def handle(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/models":
            return httpx.Response(200, json={"data": [{"id": "first"}, {"id": "second"}]})
        asked.append(json.loads(request.content)["model"])
        return httpx.Response(200, json={"choices": [{"text": ""}]})

    with Client("http://server", transport=httpx.MockTransport(handle)) as client:
        client.complete("p")
        client.complete("p", model="second")
        client.complete("p")
    assert asked == ["first", "second", "first"]


async def test_without_a_model_the_async_client_asks_for_the_first_one_too() -> None:
    def handle(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/models":
            return httpx.Response(200, json={"data": []})
        raise AssertionError("nothing else is asked")

    async with AsyncClient("http://server", transport=httpx.MockTransport(handle)) as client:
        with pytest.raises(ProtocolError, match="names no model"):
            await client.chat("hi")


def test_not_ready_is_no_error_and_is_asked_once(connect: Connect) -> None:
    calls = connect(lambda request: httpx.Response(503))
    assert calls.answer("ready") is False
    assert calls.waits == []


def test_a_stream(connect: Connect) -> None:
    body = Body(CHUNK % b"one", (CHUNK % b" two")[:9], (CHUNK % b" two")[9:] + USAGE, b"data: [DONE]\n\n")
    deltas = connect(lambda request: httpx.Response(200, stream=body)).deltas("chat", "hi")
    assert "".join(delta.text for delta in deltas) == "one two"
    assert deltas[-1].usage == Usage(1, 2, 3)
    assert body.closed


def test_a_stream_left_early_closes_the_connection() -> None:
    body = Body(CHUNK % b"one", CHUNK % b"two", b"data: [DONE]\n\n")
    handle = httpx.MockTransport(lambda request: httpx.Response(200, stream=body, headers={"x-request-id": "r1"}))
    with Client("http://server", model="m", transport=handle) as client:
        with client.complete("p", stream=True) as stream:
            assert next(stream).text == "one"
            assert stream.request_id == "r1"
        assert body.closed
        assert list(stream) == []


async def test_an_async_stream_left_early_closes_the_connection() -> None:
    body = Body(CHUNK % b"one", CHUNK % b"two", b"data: [DONE]\n\n")
    handle = httpx.MockTransport(lambda request: httpx.Response(200, stream=body))
    async with AsyncClient("http://server", model="m", transport=handle) as client:
        async with await client.complete("p", stream=True) as stream:
            assert (await anext(stream)).text == "one"
        assert body.closed


BROKEN: dict[str, tuple[list[bytes | Exception], type[Exception], str]] = {
    "error": (
        [CHUNK % b"one", b'data: {"error":{"message":"engine died"}}\n\n', b"data: [DONE]\n\n"],
        StreamFailed,
        "died",
    ),
    "cut": ([CHUNK % b"one"], ConnectionFailed, "broke off"),
    "reset": ([CHUNK % b"one", httpx.ReadError("reset")], ConnectionFailed, "reset"),
    "timeout": ([CHUNK % b"one", httpx.ReadTimeout("")], TimedOut, "timeout"),
    "garbage": ([b"data: no json\n\n"], ProtocolError, "no json"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_streams(connect: Connect, name: str) -> None:
    pieces, kind, text = BROKEN[name]
    body = Body(*pieces)
    with pytest.raises(kind, match=text):
        connect(lambda request: httpx.Response(200, stream=body)).deltas("chat", "hi")
    assert body.closed


def scripted(*answers: httpx.Response | Exception) -> Handler:
    left: Iterator[httpx.Response | Exception] = iter(answers)

    def handle(request: httpx.Request) -> httpx.Response:
        answer = next(left)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return handle


DETOKENIZED = {"prompt": "text"}


def test_retries_wait_as_the_server_says(connect: Connect) -> None:
    busy = httpx.Response(503, headers={"Retry-After": "4"}, json={"error": {"message": "full", "code": "overloaded"}})
    calls = connect(scripted(busy, httpx.ConnectError("refused"), httpx.Response(200, json=DETOKENIZED)))
    assert calls.answer("detokenize", [1]) == "text"
    assert 4.0 <= calls.waits[0] <= 5.0
    assert 0.75 <= calls.waits[1] <= 1.0


def test_retries_end(connect: Connect) -> None:
    calls = connect(scripted(*(httpx.Response(429, json={"error": {"message": "slow down"}}) for _ in range(3))))
    with pytest.raises(RateLimited, match="slow down"):
        calls.answer("detokenize", [1])
    assert len(calls.waits) == 2


def test_a_stream_is_tried_again_until_it_begins(connect: Connect) -> None:
    calls = connect(scripted(httpx.Response(503), httpx.Response(200, stream=Body(CHUNK % b"a", b"data: [DONE]\n\n"))))
    assert [delta.text for delta in calls.deltas("chat", "hi")] == ["a"]
    assert len(calls.waits) == 1


REFUSED: dict[str, tuple[Callable[[], httpx.Response | Exception], type[Exception], str]] = {
    "404": (lambda: httpx.Response(404, json={"error": {"message": "no model x"}}), NotFound, "no model x"),
    "final": (lambda: httpx.Response(503, headers={"x-should-retry": "false"}), Unavailable, "503"),
    "timeout": (lambda: httpx.ReadTimeout(""), TimedOut, "http://server"),
    "garbage": (lambda: httpx.Response(200, json={"choices": 7}), ProtocolError, "expected text"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_that_stay(connect: Connect, name: str) -> None:
    answer, kind, text = REFUSED[name]
    calls = connect(scripted(answer()))
    with pytest.raises(kind, match=text):
        calls.answer("detokenize", [1])
    assert calls.waits == []


def test_no_server_is_said_plainly(connect: Connect) -> None:
    with pytest.raises(ConnectionFailed, match=r"http://server: no server answers there .* `quire serve` starts one"):
        connect(scripted(*(httpx.ConnectError("refused") for _ in range(3)))).answer("models")


def test_a_key_is_sent_and_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUIRE_API_KEY", "sentinel-key")
    seen: list[str] = []

    def handle(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers["authorization"])
        return httpx.Response(401, json={"error": {"message": "unknown key"}})

    with Client("http://server", model="m", transport=httpx.MockTransport(handle)) as client:
        with pytest.raises(Exception, match="unknown key") as caught:
            client.models()
        assert seen == ["Bearer sentinel-key"]
        assert "sentinel" not in repr(caught.value) + repr(client)


@pytest.mark.parametrize(
    ("url", "verify", "trust_env", "sent_to"),
    [
        ("http://127.0.0.1:8000", False, False, "http://127.0.0.1:8000"),
        ("unix:/run/quire.sock", False, False, "http://localhost"),
        ("https://localhost:8000", True, False, "https://localhost:8000"),
        ("https://example.org", True, True, "https://example.org"),
        ("http://example.org", True, True, "http://example.org"),
    ],
)
def test_certificates_are_checked_wherever_there_may_be_any(
    url: str, verify: bool, trust_env: bool, sent_to: str
) -> None:
    found = settings(url, None, 600.0)
    assert (found["verify"], found["trust_env"], found["base_url"]) == (verify, trust_env, sent_to)
