"""What goes over the wire, without the wire: requests are built, answers read and retries decided by pure functions.

`Client` and `AsyncClient` differ only in how they wait; everything that they could disagree about is here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import msgspec

from quire.clients.errors import (
    ClientError,
    ConnectionFailed,
    ProtocolError,
    StatusError,
    StreamFailed,
    TimedOut,
    status_error,
)
from quire.clients.event_stream import ServerSentEvents
from quire.clients.types import Chat, Completion, Delta, Messages, Model, Prompt, ToolCall, Usage

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

DEFAULT_URL = "http://127.0.0.1:8000"
_RETRIED = frozenset({408, 409, 429, 500, 502, 503, 504})
_LONGEST_WAIT = 60.0


@dataclass(frozen=True)
class Call(Generic[T_co]):
    """One request, and how to read its answer."""

    method: str
    path: str
    read: Callable[[bytes], T_co]
    body: bytes | None = None
    headers: dict[str, str] = field(default_factory=dict)


def base_url(given: str | None, environment: Mapping[str, str]) -> str:
    """The server's address: as given, else QUIRE_BASE_URL, OPENAI_BASE_URL, else this machine's port 8000.

    A trailing /v1, as the openai package wants it, is taken off.
    """
    url = given or environment.get("QUIRE_BASE_URL") or environment.get("OPENAI_BASE_URL") or DEFAULT_URL
    if url.startswith("unix:"):
        return url
    return url.rstrip("/").removesuffix("/v1").rstrip("/")


def authorization(given: str | None, environment: Mapping[str, str]) -> dict[str, str]:
    """The header for an API key: as given, else QUIRE_API_KEY, OPENAI_API_KEY, else none."""
    key = given or environment.get("QUIRE_API_KEY") or environment.get("OPENAI_API_KEY")
    return {"Authorization": f"Bearer {key}"} if key else {}


def chat(messages: Messages, fields: Mapping[str, Any], stream: bool) -> Call[Chat]:
    """POST /v1/chat/completions."""
    turns = [{"role": "user", "content": messages}] if isinstance(messages, str) else list(messages)
    return _post("/v1/chat/completions", {"messages": turns, **_fields(fields, stream)}, _reader(Chat))


def complete(prompt: Prompt, fields: Mapping[str, Any], stream: bool) -> Call[Completion]:
    """POST /v1/completions."""
    return _post("/v1/completions", {"prompt": prompt, **_fields(fields, stream)}, _reader(Completion))


def models() -> Call[list[Model]]:
    """GET /v1/models."""
    reader = _reader(_Models)
    return Call("GET", "/v1/models", lambda body: reader(body).data)


def first_model(served: Sequence[Model]) -> str:
    """The model that a request asks for when nobody chose one. Raises ProtocolError when the server names none."""
    if not served:
        raise ProtocolError("the server names no model; GET /v1/models gave an empty list")
    return served[0].id


def tokenize(text: str, add_special_tokens: bool) -> Call[list[int]]:
    """POST /tokenize."""
    reader = _reader(_Tokens)
    body = {"prompt": text, "add_special_tokens": add_special_tokens}
    return _post("/tokenize", body, lambda answer: reader(answer).tokens)


def detokenize(tokens: Sequence[int]) -> Call[str]:
    """POST /detokenize."""
    reader = _reader(_Text)
    return _post("/detokenize", {"tokens": list(tokens)}, lambda answer: reader(answer).prompt)


def version() -> Call[str]:
    """GET /version."""
    reader = _reader(_Version)
    return Call("GET", "/version", lambda body: reader(body).version)


def ready() -> Call[None]:
    """GET /ready: an error unless requests are accepted."""
    return Call("GET", "/ready", lambda body: None)


class _Models(msgspec.Struct):
    data: list[Model]


class _Tokens(msgspec.Struct):
    tokens: list[int]


class _Text(msgspec.Struct):
    prompt: str


class _Version(msgspec.Struct):
    version: str


def _post(path: str, body: Mapping[str, Any], read: Callable[[bytes], T]) -> Call[T]:
    return Call("POST", path, read, msgspec.json.encode(body), {"Content-Type": "application/json"})


def _fields(fields: Mapping[str, Any], stream: bool) -> dict[str, Any]:
    body = {name: value for name, value in fields.items() if name != "extra"} | dict(fields.get("extra", {}))
    if stream:
        body["stream"] = True
        body.setdefault("stream_options", {"include_usage": True})
    return body


def _reader(kind: type[T]) -> Callable[[bytes], T]:
    decoder = msgspec.json.Decoder(kind)

    def read(body: bytes) -> T:
        try:
            return decoder.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ProtocolError(
                f"expected {kind.__name__.lstrip('_').lower()}, found {body[:200]!r} ({error})"
            ) from None

    return read


class _DeltaMessage(msgspec.Struct):
    content: str | None = None
    tool_calls: tuple[ToolCall, ...] | None = None


class _ChunkChoice(msgspec.Struct):
    index: int = 0
    text: str | None = None
    delta: _DeltaMessage = msgspec.field(default_factory=_DeltaMessage)
    finish_reason: str | None = None
    logprobs: Any = None


class _Chunk(msgspec.Struct):
    choices: tuple[_ChunkChoice, ...] = ()
    usage: Usage | None = None
    quire: dict[str, Any] | None = None
    error: Any = None


_read_chunk = _reader(_Chunk)


class DeltaStream:
    """Reads the bytes of a streamed answer into `Delta` values."""

    def __init__(self) -> None:
        self._events = ServerSentEvents()
        self.done = False

    def feed(self, chunk: bytes) -> list[Delta]:
        """What this chunk completes. Raises StreamFailed for an error frame, ProtocolError for what is no chunk."""
        deltas: list[Delta] = []
        for event in self._events.feed(chunk):
            if event == b"[DONE]":
                self.done = True
            if not self.done:
                deltas += _deltas(_read_chunk(event))
        return deltas

    def close(self) -> None:
        """The bytes have ended. Raises ConnectionFailed when the server had not finished."""
        if not self.done:
            raise ConnectionFailed("the stream broke off before the server finished it")


def _deltas(chunk: _Chunk) -> list[Delta]:
    if chunk.error is not None:
        message, code, _ = _envelope({"error": chunk.error})
        raise StreamFailed(message or "the server gave up without saying why", code)
    deltas = [
        Delta(
            text=choice.text or choice.delta.content or "",
            choice=choice.index,
            finish_reason=choice.finish_reason,
            tool_calls=choice.delta.tool_calls or (),
            logprobs=choice.logprobs,
        )
        for choice in chunk.choices
    ]
    if chunk.usage is not None or chunk.quire is not None:
        deltas.append(Delta(usage=chunk.usage, quire=chunk.quire))
    return deltas


def refusal(status: int, headers: Mapping[str, str], body: bytes) -> StatusError:
    """The error for an answer with a status of 400 or above. `headers` has lower-case names."""
    try:
        message, code, param = _envelope(json.loads(body))
    except ValueError:
        message, code, param = body[:500].decode(errors="replace").strip(), None, None
    wanted = headers.get("x-should-retry")
    return status_error(status)(
        message or f"the server answered {status}",
        status=status,
        code=code,
        param=param,
        request_id=headers.get("x-request-id"),
        retry_after=_seconds(headers.get("retry-after")),
        should_retry=None if wanted is None else wanted == "true",
    )


def _envelope(answer: Any) -> tuple[str | None, str | None, str | None]:
    error = answer.get("error") if isinstance(answer, dict) else None
    if isinstance(error, str):
        return error, None, None
    if not isinstance(error, dict):
        return None, None, None
    message, code, param = (error.get(name) for name in ("message", "code", "param"))
    return (None if message is None else str(message), None if code is None else str(code), param)


def _seconds(text: str | None) -> float | None:
    try:
        seconds = float(text or "")
    except ValueError:
        return None
    return seconds if 0.0 <= seconds <= _LONGEST_WAIT else None


def retry_delay(failure: ClientError, attempt: int, max_retries: int, jitter: float) -> float | None:
    """Seconds to wait before the next attempt, or None to give up.

    `attempt` counts from 0, `jitter` is uniform in [0, 1). The server's Retry-After is a floor, up to a quarter is
    added; without one the wait doubles from half a second to eight, less up to a quarter. A timeout is not retried: the
    server may still be at work on it.
    """
    if attempt >= max_retries:
        return None
    if isinstance(failure, StatusError):
        if not (failure.status in _RETRIED if failure.should_retry is None else failure.should_retry):
            return None
        if failure.retry_after is not None:
            return failure.retry_after * (1.0 + 0.25 * jitter)
    elif not isinstance(failure, ConnectionFailed) or isinstance(failure, TimedOut):
        return None
    return float(min(0.5 * 2.0**attempt, 8.0) * (1.0 - 0.25 * jitter))


class Retries:
    """The waits between the attempts at one request."""

    def __init__(self, most: int) -> None:
        self.most, self.attempt = most, 0

    def wait(self, failure: ClientError, jitter: float) -> float:
        """Seconds until the next attempt; raises the failure when there is to be none. `jitter` as in `retry_delay`."""
        delay = retry_delay(failure, self.attempt, self.most, jitter)
        if delay is None:
            raise failure
        self.attempt += 1
        return delay
