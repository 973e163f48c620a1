"""Requests to a server and back: one at a time, or many at their moments."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import aiohttp

from quire.benchmarks.backends import Backend, Piece, Request, Sampling, error_text
from quire.benchmarks.metrics import Answer

TIMEOUT_SECONDS = 6 * 3600.0
_CONNECT_SECONDS = 30.0


@dataclass(frozen=True)
class Target:
    """Where requests go, and in which words."""

    url: str
    backend: Backend
    sampling: Sampling
    headers: Mapping[str, str] = field(default_factory=dict)


def connect(address: str) -> tuple[aiohttp.ClientSession, str]:
    """A session without a limit of its own on connections, and what its URLs begin with.

    `address` is a URL, or unix:PATH for a server that listens on a Unix socket.
    """
    connector: aiohttp.BaseConnector
    if address.startswith("unix:"):
        connector, address = aiohttp.UnixConnector(address.removeprefix("unix:"), limit=0), "http://localhost"
    else:
        connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_SECONDS, sock_connect=_CONNECT_SECONDS)
    return aiohttp.ClientSession(connector=connector, timeout=timeout, read_bufsize=1 << 20), address


async def ask(
    http: aiohttp.ClientSession, target: Target, request: Request, index: int, extra: dict[str, Any] | None = None
) -> Answer:
    """Send one request and read its stream to the end. Never raises for what a server may do: see `Answer.error`.

    `extra` are further fields of the body. The clock starts before the request is written.
    """
    body = json.dumps(target.backend.body(request, index, target.sampling) | (extra or {})).encode()
    headers = {"Content-Type": "application/json", **target.headers}
    answer = Answer(index, sent=perf_counter(), input_tokens=request.input_tokens)
    try:
        async with http.post(target.url, data=body, headers=headers) as response:
            if response.status != 200:
                answer.error = f"HTTP {response.status}: {error_text(await response.read())}"
            else:
                await _read(response, target.backend, answer)
    except TimeoutError:
        answer.error = "nothing came within the timeout"
    except aiohttp.ClientError as error:
        answer.error = f"the connection broke: {error or type(error).__name__}"
    answer.ended = answer.ended or perf_counter()
    return answer


async def _read(response: aiohttp.ClientResponse, backend: Backend, answer: Answer) -> None:
    parser = backend.parser()
    ended = False
    try:
        async for data in response.content.iter_any():
            now = perf_counter()
            for payload in parser.feed(data):
                ended |= take(answer, backend.read(payload), now)
        for payload in parser.close():
            ended |= take(answer, backend.read(payload), perf_counter())
    except ValueError as error:
        answer.error = str(error)
    if answer.error is None and not ended:
        answer.error = "the stream broke off before its end"
    answer.output_tokens = answer.output_tokens or (len(answer.token_ids) or len(answer.tokens) or len(answer.moments))


def take(answer: Answer, piece: Piece, now: float) -> bool:
    """Add one payload that came at `now`; whether it says that the answer has ended.

    Pieces that arrive in one read have one moment. A chunk without text starts no clock: the role that opens a chat is
    no token. After the first text, tokens that show no text (half a character) count as well.
    """
    if piece.error is not None:
        answer.error = piece.error
    if piece.text or (answer.moments and (piece.token_ids or piece.tokens)):
        answer.moments.append(now)
    if piece.speaks:
        answer.ended = now
    answer.text += piece.text
    answer.token_ids += piece.token_ids
    answer.tokens += piece.tokens
    answer.margins += piece.margins
    answer.finish_reason = piece.finish_reason or answer.finish_reason
    answer.input_tokens = answer.input_tokens if piece.input_tokens is None else piece.input_tokens
    answer.output_tokens = answer.output_tokens if piece.output_tokens is None else piece.output_tokens
    return piece.last or piece.finish_reason is not None


async def run_load(
    http: aiohttp.ClientSession,
    target: Target,
    requests: Sequence[Request],
    times: Sequence[float],
    *,
    max_concurrency: int | None = None,
    extra: dict[str, Any] | None = None,
    on_answer: Callable[[Answer], object] = lambda answer: None,
) -> tuple[list[Answer], float]:
    """Send each request at its time (seconds from now). Returns the answers in order, and the seconds it took.

    A request that must wait for others because of `max_concurrency` is sent, and its clock started, when it may go.
    """
    gate = asyncio.Semaphore(max_concurrency) if max_concurrency else contextlib.nullcontext()
    start = perf_counter()

    async def send(index: int) -> Answer:
        await asyncio.sleep(start + times[index] - perf_counter())
        async with gate:
            answer = await ask(http, target, requests[index], index, extra)
        on_answer(answer)
        return answer

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(send(index)) for index in range(len(requests))]
    return [task.result() for task in tasks], perf_counter() - start
