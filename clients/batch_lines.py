"""The lines of a batch, as OpenAI writes them: requests in, one result for each out. Files, but no network.

{"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {...}}
{"id": "batch_req_...", "custom_id": "a", "response": {"status_code", "request_id", "body"}, "error": null}
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from quire.clients.terminal import USAGE, CommandFailed

URLS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses")
_BAD_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


@dataclass(frozen=True)
class Request:
    """One line of the input: what to send, or in `fault` why it cannot be sent. `number` counts from 1."""

    number: int
    custom_id: str | None
    url: str = ""
    body: bytes = b""
    model: str | None = None
    """What the body names; None when it names none."""
    fault: str | None = None

    def body_for(self, model: str) -> bytes:
        """The body as it was written, with a model where it named none."""
        if self.model is not None:
            return self.body
        return msgspec.json.encode({**msgspec.json.decode(self.body), "model": model})


class _Line(msgspec.Struct):
    custom_id: str
    method: str
    url: str
    body: msgspec.Raw


class _Body(msgspec.Struct):
    model: str | None = None
    stream: bool | None = None


class _Named(msgspec.Struct):
    custom_id: Any = None


def read_requests(name: str, lines: Iterable[bytes]) -> list[Request]:
    """Every line that is not blank. Raises CommandFailed when a custom_id stands on two lines."""
    requests: list[Request] = []
    numbers: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        request = _read(number, line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line)
        if request.custom_id is not None:
            if request.custom_id in numbers:
                raise CommandFailed(
                    f"{name}:{number}: custom_id {request.custom_id!r} is that of line {numbers[request.custom_id]} "
                    "too; nothing was sent; give every line its own",
                    USAGE,
                )
            numbers[request.custom_id] = number
        requests.append(request)
    return requests


def _read(number: int, line: bytes) -> Request:
    try:
        fields = msgspec.json.decode(line, type=_Line)
        body = msgspec.json.decode(fields.body, type=_Body)
    except _BAD_JSON as error:
        return Request(number, _custom_id(line), fault=f"expected a batch line: {error}")
    fault = None
    if not fields.custom_id:
        return Request(number, None, fault="custom_id: expected a text that is not empty")
    if fields.method != "POST":
        fault = f"method: expected POST, found {fields.method}"
    elif fields.url not in URLS:
        fault = f"url: expected one of {', '.join(URLS)}, found {fields.url}"
    elif body.stream:
        fault = "stream: a batch is not streamed; leave the field out"
    return Request(number, fields.custom_id, fields.url, bytes(fields.body), body.model, fault)


def _custom_id(line: bytes) -> str | None:
    """What a line that is otherwise wrong calls itself."""
    try:
        name = msgspec.json.decode(line, type=_Named).custom_id
    except _BAD_JSON:
        return None
    return name if isinstance(name, str) and name else None


class Response(msgspec.Struct):
    """What the server answered, with whatever status."""

    status_code: int
    request_id: str | None
    body: Any


class Failure(msgspec.Struct):
    """Why there is no answer. `line` is the number of the input's line, for one that has no custom_id."""

    code: str
    message: str
    line: int


class Result(msgspec.Struct):
    """One line of the output: either a response or an error."""

    id: str
    custom_id: str | None
    response: Response | None
    error: Failure | None

    @property
    def good(self) -> bool:
        """Whether the request was answered with success."""
        return self.response is not None and self.response.status_code < 400


def answered(request: Request, status: int, request_id: str | None, body: Any) -> Result:
    """The result of a request that the server answered."""
    return Result(_new_id(), request.custom_id, Response(status, request_id, body), None)


def failed(request: Request, code: str, message: str) -> Result:
    """The result of a request that has no answer."""
    return Result(_new_id(), request.custom_id, None, Failure(code, message, request.number))


def _new_id() -> str:
    return f"batch_req_{uuid.uuid4().hex}"


@dataclass
class Earlier:
    """What an output file holds from an earlier run."""

    custom_ids: set[str]
    numbers: set[int]
    """The lines of the input that have a result but no custom_id."""
    failures: int
    whole_bytes: int
    """Where the last whole line ends; what follows was cut off while it was written."""

    def has(self, request: Request) -> bool:
        """Whether the request has its result."""
        if request.custom_id is None:
            return request.number in self.numbers
        return request.custom_id in self.custom_ids


def read_earlier(path: Path, requests: list[Request]) -> Earlier:
    """The results of an earlier run. Raises CommandFailed when the file holds anything else."""
    known = {request.custom_id for request in requests}
    earlier = Earlier(set(), set(), 0, 0)
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), 1):
        if not line.endswith(b"\n"):
            break
        try:
            result = msgspec.json.decode(line, type=Result)
        except _BAD_JSON as error:
            raise CommandFailed(f"{path}:{number}: no result of a batch: {error}", USAGE) from None
        if result.custom_id is None and result.error is not None:
            earlier.numbers.add(result.error.line)
        elif result.custom_id is not None and result.custom_id in known:
            earlier.custom_ids.add(result.custom_id)
        else:
            raise CommandFailed(
                f"{path}:{number}: the input has no line with custom_id {result.custom_id!r}; is this the output of "
                "another batch?",
                USAGE,
            )
        earlier.failures += not result.good
        earlier.whole_bytes += len(line)
    return earlier
