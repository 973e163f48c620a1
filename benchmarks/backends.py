"""How each kind of server is asked and answers: OpenAI's completions and chat, and Ollama. Pure functions of JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec

from quire.clients.event_stream import JsonLines, ServerSentEvents

Message = Mapping[str, Any]
Prompt = str | tuple[int, ...] | tuple[Message, ...]
"""Text, token ids, or a conversation."""


@dataclass(frozen=True)
class Request:
    """What is sent once."""

    prompt: Prompt
    input_tokens: int
    """As the data set counts them; the server's own count outranks it."""
    output_tokens: int
    """The limit of the answer."""


@dataclass(frozen=True)
class Sampling:
    """What every request carries beside its prompt."""

    model: str
    temperature: float = 0.0
    seed: int = 0
    """Request i has seed + i; sent only where the temperature is above 0."""
    ignore_eos: bool = False
    extra: dict[str, Any] = field(default_factory=dict)
    """Further fields of the body, as they are."""


@dataclass
class Piece:
    """What one payload of a stream says."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    margins: list[float] = field(default_factory=list)
    finish_reason: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    error: str | None = None
    speaks: bool = False
    """Whether it is about the answer, and not only about the call."""
    last: bool = False
    """The server's word that nothing follows."""


class Backend(Protocol):
    """One kind of server."""

    path: str
    """Where requests go unless --endpoint says otherwise."""
    takes_token_ids: bool

    def parser(self) -> ServerSentEvents | JsonLines:
        """For one answer."""

    def body(self, request: Request, index: int, sampling: Sampling) -> dict[str, Any]:
        """The JSON of one request."""

    def logprob_fields(self, count: int) -> dict[str, Any]:
        """What asks for the `count` most likely tokens at each position; empty where the server has no such thing."""

    def read(self, payload: bytes) -> Piece:
        """Raises ValueError for what is no JSON object."""


def _object(payload: bytes) -> dict[str, Any]:
    try:
        found = msgspec.json.decode(payload)
    except msgspec.DecodeError as error:
        raise ValueError(f"a chunk that is no JSON: {payload[:80]!r}") from error
    if not isinstance(found, dict):
        raise ValueError(f"a chunk that is no JSON object: {payload[:80]!r}")
    return found


def error_text(body: bytes) -> str:
    """The message inside an error answer, in whichever of the usual envelopes, or its first characters."""
    try:
        found = _object(body)
    except ValueError:
        return body[:200].decode(errors="replace").strip()
    error = found.get("error", found)
    message = error.get("message", error.get("detail")) if isinstance(error, dict) else error
    return str(message if message is not None else found)[:300]


class Completions:
    """POST /v1/completions."""

    path = "/v1/completions"
    takes_token_ids = True

    def parser(self) -> ServerSentEvents | JsonLines:
        """Server-sent events."""
        return ServerSentEvents()

    def body(self, request: Request, index: int, sampling: Sampling) -> dict[str, Any]:
        """See `Backend.body`."""
        prompt = request.prompt
        if not isinstance(prompt, str) and prompt and isinstance(prompt[0], Mapping):
            raise ValueError("a conversation cannot be sent to /v1/completions; use --backend openai-chat")
        return _openai_body(sampling, index) | {"prompt": prompt, "max_tokens": request.output_tokens} | sampling.extra

    def logprob_fields(self, count: int) -> dict[str, Any]:
        """See `Backend.logprob_fields`."""
        return {"logprobs": count}

    def read(self, payload: bytes) -> Piece:
        """See `Backend.read`."""
        piece, choice = _openai_piece(payload)
        if choice is None:
            return piece
        piece.text = choice.get("text") or ""
        logprobs = choice.get("logprobs") or {}
        piece.tokens = list(logprobs.get("tokens") or ())
        piece.margins = [_margin(list((top or {}).values())) for top in logprobs.get("top_logprobs") or ()]
        return piece


class Chat:
    """POST /v1/chat/completions."""

    path = "/v1/chat/completions"
    takes_token_ids = False

    def parser(self) -> ServerSentEvents | JsonLines:
        """Server-sent events."""
        return ServerSentEvents()

    def body(self, request: Request, index: int, sampling: Sampling) -> dict[str, Any]:
        """See `Backend.body`."""
        limit = {"max_completion_tokens": request.output_tokens}
        return _openai_body(sampling, index) | {"messages": _messages(request.prompt)} | limit | sampling.extra

    def logprob_fields(self, count: int) -> dict[str, Any]:
        """See `Backend.logprob_fields`."""
        return {"logprobs": True, "top_logprobs": count}

    def read(self, payload: bytes) -> Piece:
        """See `Backend.read`. Reasoning counts as text: the user sees that something comes."""
        piece, choice = _openai_piece(payload)
        if choice is None:
            return piece
        delta = choice.get("delta") or {}
        piece.text = delta.get("content") or delta.get("reasoning_content") or delta.get("reasoning") or ""
        for entry in (choice.get("logprobs") or {}).get("content") or ():
            piece.tokens.append(entry["token"])
            piece.margins.append(_margin([top["logprob"] for top in entry.get("top_logprobs") or ()]))
        return piece


class Ollama:
    """POST /api/generate or /api/chat: one JSON object a line."""

    path = "/api/generate"
    takes_token_ids = False

    def __init__(self, endpoint: str | None = None) -> None:
        self._chats = (endpoint or self.path).rstrip("/").endswith("/chat")

    def parser(self) -> ServerSentEvents | JsonLines:
        """JSON lines."""
        return JsonLines()

    def body(self, request: Request, index: int, sampling: Sampling) -> dict[str, Any]:
        """See `Backend.body`; Ollama has no ignore_eos."""
        options = {"num_predict": request.output_tokens, "temperature": sampling.temperature}
        options["seed"] = sampling.seed + index
        prompt = {"messages": _messages(request.prompt)} if self._chats else {"prompt": request.prompt}
        if not self._chats and not isinstance(request.prompt, str):
            raise ValueError("/api/generate takes text only; use --endpoint /api/chat for conversations")
        body: dict[str, Any] = {"model": sampling.model, "stream": True, "options": options}
        return body | prompt | sampling.extra

    def logprob_fields(self, count: int) -> dict[str, Any]:
        """None."""
        return {}

    def read(self, payload: bytes) -> Piece:
        """See `Backend.read`."""
        found = _object(payload)
        if "error" in found:
            return Piece(error=error_text(payload), last=True)
        message = found.get("message") or {}
        piece = Piece(text=found.get("response") or message.get("content") or message.get("thinking") or "")
        piece.speaks = True
        if found.get("done"):
            piece.last, piece.finish_reason = True, found.get("done_reason") or "stop"
            piece.input_tokens, piece.output_tokens = found.get("prompt_eval_count"), found.get("eval_count")
        return piece


def backend(name: str, endpoint: str | None = None) -> Backend:
    """openai, openai-chat or ollama; an endpoint that ends in /chat/completions is chat whatever it is called."""
    if name == "ollama":
        return Ollama(endpoint)
    chats = name == "openai-chat" or (endpoint or "").rstrip("/").endswith("/chat/completions")
    return Chat() if chats else Completions()


NAMES = ("openai", "openai-chat", "ollama")


def _openai_body(sampling: Sampling, index: int) -> dict[str, Any]:
    body: dict[str, Any] = {"model": sampling.model, "temperature": sampling.temperature, "stream": True}
    body["stream_options"] = {"include_usage": True}
    if sampling.temperature > 0:
        body["seed"] = sampling.seed + index
    if sampling.ignore_eos:
        body["ignore_eos"] = True
    return body


def _messages(prompt: Prompt) -> list[Any]:
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    if any(not isinstance(message, Mapping) for message in prompt):
        raise ValueError("token ids cannot be sent as a chat")
    return list(prompt)


def _openai_piece(payload: bytes) -> tuple[Piece, dict[str, Any] | None]:
    """What completions and chat share, and the first choice."""
    if payload.strip() == b"[DONE]":
        return Piece(last=True), None
    found = _object(payload)
    if "error" in found:
        return Piece(error=error_text(payload)), None
    usage = found.get("usage") or {}
    piece = Piece(input_tokens=usage.get("prompt_tokens"), output_tokens=usage.get("completion_tokens"))
    choices = found.get("choices") or ()
    if not choices:
        return piece, None
    choice: dict[str, Any] = choices[0]
    piece.speaks = True
    piece.finish_reason = choice.get("finish_reason")
    piece.token_ids = list(choice.get("token_ids") or ())
    return piece, choice


def _margin(logprobs: Sequence[float | None]) -> float:
    """The best less the second; infinite where fewer than two are known."""
    best = sorted((value for value in logprobs if value is not None), reverse=True)[:2]
    return best[0] - best[1] if len(best) == 2 else math.inf
