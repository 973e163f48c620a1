"""The pure part of the client: chunks, errors, and when to try again."""

from __future__ import annotations

import json

import pytest

from quire.clients import protocol
from quire.clients.errors import (
    AuthenticationFailed,
    BadRequest,
    ClientError,
    ConnectionFailed,
    NotFound,
    PermissionDenied,
    ProtocolError,
    RateLimited,
    ServerError,
    StreamFailed,
    TimedOut,
    Unavailable,
)
from quire.clients.types import Delta, Function, ToolCall, Usage


def frames(*chunks: object) -> bytes:
    return b"".join(b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks) + b"data: [DONE]\n\n"


def test_chat_chunks_become_deltas() -> None:
    call = {"index": 0, "id": "c1", "type": "function", "function": {"name": "f", "arguments": "{"}}
    stream = protocol.DeltaStream()
    deltas = stream.feed(
        frames(
            {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]},
            {"choices": [{"index": 1, "delta": {"content": "hé"}}, {"index": 0, "delta": {"tool_calls": [call]}}]},
            {"choices": [{"index": 1, "delta": {}, "finish_reason": "stop"}]},
            {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}},
        )
    )
    assert deltas == [
        Delta(),
        Delta(text="hé", choice=1),
        Delta(tool_calls=(ToolCall(Function("f", "{"), "c1"),)),
        Delta(choice=1, finish_reason="stop"),
        Delta(usage=Usage(3, 4, 7)),
    ]
    stream.close()


def test_completion_chunks_become_deltas() -> None:
    assert protocol.DeltaStream().feed(frames({"choices": [{"text": "a", "index": 2, "finish_reason": "length"}]})) == [
        Delta(text="a", choice=2, finish_reason="length")
    ]


def test_what_an_answer_tells_of_itself_comes_with_its_last_delta() -> None:
    told = {"timings": {"total_ms": 1.5}}
    last = {"choices": [], "usage": {"prompt_tokens": 3}, "quire": told}
    assert protocol.DeltaStream().feed(frames(last)) == [Delta(usage=Usage(3), quire=told)]
    without_usage = {"choices": [{"text": "", "finish_reason": "stop"}], "quire": told}
    assert protocol.DeltaStream().feed(frames(without_usage)) == [Delta(finish_reason="stop"), Delta(quire=told)]
    body = json.dumps({"choices": [{"text": "a"}], "quire": told}).encode()
    call = protocol.complete("x", {"quire": {"timings": True}}, stream=False)
    assert json.loads(call.body or b"") == {"prompt": "x", "quire": {"timings": True}}
    assert call.read(body).quire == told


def test_an_error_frame_raises_what_the_server_said() -> None:
    with pytest.raises(StreamFailed, match="engine died") as caught:
        protocol.DeltaStream().feed(frames({"error": {"message": "engine died", "code": "engine_restarting"}}))
    assert caught.value.code == "engine_restarting"


def test_a_stream_that_breaks_off_is_a_failure() -> None:
    stream = protocol.DeltaStream()
    stream.feed(b'data: {"choices":[{"text":"a"}]}\n\n')
    with pytest.raises(ConnectionFailed, match="broke off"):
        stream.close()


def test_an_event_that_is_no_chunk_is_a_failure() -> None:
    with pytest.raises(ProtocolError, match="chunk"):
        protocol.DeltaStream().feed(b"data: <html>\n\n")


def test_requests() -> None:
    chat = protocol.chat("hi", {"max_tokens": 3, "extra": {"cache_salt": "x"}}, stream=True)
    assert json.loads(chat.body or b"") == {
        "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": 3,
        "cache_salt": "x",
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    complete = protocol.complete([1, 2], {"n": 2}, stream=False)
    assert json.loads(complete.body or b"") == {"prompt": [1, 2], "n": 2}


@pytest.mark.parametrize(
    ("given_url", "environment", "expected"),
    [
        (None, {}, "http://127.0.0.1:8000"),
        ("http://a:1/v1/", {"QUIRE_BASE_URL": "http://b"}, "http://a:1"),
        (None, {"QUIRE_BASE_URL": "http://b/", "OPENAI_BASE_URL": "http://c/v1"}, "http://b"),
        (None, {"OPENAI_BASE_URL": "http://c/llm/v1"}, "http://c/llm"),
    ],
)
def test_base_url(given_url: str | None, environment: dict[str, str], expected: str) -> None:
    assert protocol.base_url(given_url, environment) == expected


def test_authorization() -> None:
    both = {"QUIRE_API_KEY": "q", "OPENAI_API_KEY": "o"}
    assert protocol.authorization(None, {}) == {}
    assert protocol.authorization("k", both) == {"Authorization": "Bearer k"}
    assert protocol.authorization(None, both) == {"Authorization": "Bearer q"}


STATUSES = [
    (400, BadRequest),
    (413, BadRequest),
    (401, AuthenticationFailed),
    (403, PermissionDenied),
    (404, NotFound),
    (429, RateLimited),
    (500, ServerError),
    (503, Unavailable),
]


@pytest.mark.parametrize(("status", "kind"), STATUSES)
def test_every_status_has_its_error(status: int, kind: type[ClientError]) -> None:
    body = json.dumps({"error": {"message": "what and why", "code": "c", "param": "p", "type": "t"}}).encode()
    error = protocol.refusal(status, {"x-request-id": "r", "retry-after": "2"}, body)
    assert type(error) is kind
    assert str(error) == "what and why"
    assert (error.status, error.code, error.param, error.request_id, error.retry_after) == (status, "c", "p", "r", 2.0)


@pytest.mark.parametrize(
    ("body", "message"),
    [(b"<html>", "<html>"), (b"", "answered 502"), (b"[1]", "answered 502"), (b'{"error":"text"}', "text")],
)
def test_refusals_without_an_envelope(body: bytes, message: str) -> None:
    assert message in str(protocol.refusal(502, {}, body))


def failure(status: int, **headers: str) -> ClientError:
    return protocol.refusal(status, {name.replace("_", "-"): value for name, value in headers.items()}, b"")


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 504])
def test_what_may_pass_is_tried_again(status: int) -> None:
    assert protocol.retry_delay(failure(status), 0, 2, 0.0) == 0.5
    assert protocol.retry_delay(failure(status), 2, 2, 0.0) is None


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 501])
def test_what_stays_is_not_tried_again(status: int) -> None:
    assert protocol.retry_delay(failure(status), 0, 2, 0.0) is None


def test_the_server_decides() -> None:
    assert protocol.retry_delay(failure(400, x_should_retry="true"), 0, 2, 0.0) == 0.5
    assert protocol.retry_delay(failure(503, x_should_retry="false"), 0, 2, 0.0) is None
    assert protocol.retry_delay(failure(503, retry_after="3"), 0, 2, 0.0) == 3.0
    assert protocol.retry_delay(failure(503, retry_after="3"), 0, 2, 0.9) == pytest.approx(3.675)
    assert protocol.retry_delay(failure(503, retry_after="soon"), 0, 2, 0.0) == 0.5
    assert protocol.retry_delay(failure(503, retry_after="1e9"), 0, 2, 0.0) == 0.5


def test_waits_double_up_to_eight_seconds_and_jitter_shortens_them() -> None:
    waits = [protocol.retry_delay(ConnectionFailed(""), attempt, 9, 0.0) for attempt in range(6)]
    assert waits == [0.5, 1.0, 2.0, 4.0, 8.0, 8.0]
    assert protocol.retry_delay(ConnectionFailed(""), 0, 9, 0.8) == pytest.approx(0.4)


def test_a_timeout_is_not_tried_again() -> None:
    assert protocol.retry_delay(TimedOut(""), 0, 2, 0.0) is None
    assert protocol.retry_delay(ProtocolError(""), 0, 2, 0.0) is None
