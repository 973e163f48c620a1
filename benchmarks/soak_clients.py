"""Clients of a soak: good ones, those that leave, those that send nonsense, and those that do not read."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

import aiohttp

Kind = Literal["good", "leaves", "bad", "slow"]
End = Literal["finished", "refused", "failed", "left", "lost", "wrong"]
"""How a request ended for its client: `refused` 429 or 503 before anything was sent, `failed` with an error envelope or
an error frame and [DONE], `lost` without any word, `wrong` with an answer that is none."""

LONGEST_SECONDS = 120.0
"""A client that has heard nothing for so long counts as lost."""
MIX: tuple[tuple[Kind, float], ...] = (("good", 0.60), ("leaves", 0.25), ("bad", 0.10), ("slow", 0.05))
SLOW_SECONDS = 20.0
_RECEIVE_BYTES = 4096
_WORDS = (
    "the", "boat", "a", "river", "three", "numbers", "why", "does", "rain", "fall", "on", "my", "small", "garden",
    "tell", "me", "about", "old", "trees",
)  # fmt: skip
_CHAT, _COMPLETIONS = "/v1/chat/completions", "/v1/completions"

BAD: tuple[tuple[str, bytes], ...] = (
    (_COMPLETIONS, b"{"),
    (_COMPLETIONS, b"[" * 20_000),
    (_COMPLETIONS, b'{"model": "starter", "prompt": "\xff"}'),
    (_COMPLETIONS, b'{"model": "nobody", "prompt": "a"}'),
    (_COMPLETIONS, b'{"model": "starter", "prompt": [-1]}'),
    (_COMPLETIONS, b'{"model": "starter", "prompt": "a", "n": 1000000}'),
    (_COMPLETIONS, b'{"model": "starter", "prompt": "a", "temperature": "hot"}'),
    (_COMPLETIONS, b'{"model": "starter", "prompt": "a", "max_token": 3}'),
    (_CHAT, b'{"model": "starter", "messages": []}'),
    (_CHAT, b'{"model": "starter", "messages": [{"role": "wizard", "content": "a"}]}'),
    (_CHAT, b'{"model": "starter", "messages": "a", "stream": true}'),
)


@dataclass(slots=True)
class Outcome:
    """One request as its client saw it; times are monotonic seconds."""

    kind: Kind
    began: float
    end: End = "lost"
    status: int = 0
    code: str = ""
    first_at: float | None = None
    """Of the first token."""
    ended: float = 0.0
    longest_gap: float = 0.0
    """Between two pieces of a stream."""


def ask_body(rng: random.Random, *, max_tokens: int, num_words: int | None = None, **fields: Any) -> dict[str, Any]:
    """A chat request with a prompt of so many words."""
    words = rng.choices(_WORDS, k=num_words or rng.randint(4, 60))
    message = {"role": "user", "content": " ".join(words)}
    return {"model": "starter", "messages": [message], "max_tokens": max_tokens, "ignore_eos": True, **fields}


async def ask(
    http: aiohttp.ClientSession,
    url: str,
    body: dict[str, Any],
    *,
    kind: Kind = "good",
    leave_after: int | None = None,
    on_token: Callable[[float], None] | None = None,
    headers: dict[str, str] | None = None,
) -> Outcome:
    """Send a chat request and read its answer; `leave_after` closes the connection after so many pieces."""
    outcome = Outcome(kind, time.monotonic())
    try:
        async with asyncio.timeout(LONGEST_SECONDS), http.post(url + _CHAT, json=body, headers=headers) as response:
            outcome.status = response.status
            if response.status != 200:
                _take_refusal(outcome, await response.read(), response.headers)
            elif body.get("stream"):
                await _read_stream(outcome, response, leave_after, on_token)
            else:
                answer = json.loads(await response.read())
                outcome.first_at = time.monotonic()
                outcome.end = "finished" if answer["choices"][0]["finish_reason"] else "wrong"
    except (aiohttp.ClientError, TimeoutError, ConnectionError):
        outcome.end = "lost"
    except (ValueError, LookupError):
        outcome.end = "wrong"
    outcome.ended = time.monotonic()
    return outcome


def _take_refusal(outcome: Outcome, answer: bytes, headers: Any) -> None:
    error = json.loads(answer)["error"]
    outcome.code = str(error["code"])
    if outcome.status in (429, 503):
        outcome.end = "refused" if 1 <= int(headers["retry-after"]) <= 72 else "wrong"
    else:
        outcome.end = "failed"


async def _read_stream(
    outcome: Outcome,
    response: aiohttp.ClientResponse,
    leave_after: int | None,
    on_token: Callable[[float], None] | None,
) -> None:
    num_pieces, last, finished, failed = 0, 0.0, False, False
    async for line in response.content:
        payload = line.strip().removeprefix(b"data: ")
        if not payload:
            continue
        now = time.monotonic()
        if payload == b"[DONE]":
            outcome.end = "failed" if failed else "finished" if finished else "wrong"
            continue
        piece = json.loads(payload)
        if "error" in piece:
            failed, outcome.code = True, str(piece["error"]["code"])
            continue
        num_pieces += 1
        if last:
            outcome.longest_gap = max(outcome.longest_gap, now - last)
        last = now
        outcome.first_at = outcome.first_at or now
        if on_token is not None:
            on_token(now)
        finished = finished or any(choice.get("finish_reason") for choice in piece.get("choices", ()))
        if leave_after is not None and num_pieces >= leave_after:
            outcome.end = "left"
            response.close()
            return


async def send_nonsense(http: aiohttp.ClientSession, url: str, rng: random.Random) -> Outcome:
    """One bad request; it ends well when the answer is a 4xx with an envelope."""
    path, body = rng.choice(BAD)
    outcome = Outcome("bad", time.monotonic())
    headers = {"content-type": "application/json"}
    try:
        async with asyncio.timeout(LONGEST_SECONDS), http.post(url + path, data=body, headers=headers) as response:
            outcome.status = response.status
            _take_refusal(outcome, await response.read(), response.headers)
            if not (400 <= outcome.status < 500 or outcome.status == 503):
                outcome.end = "wrong"
    except (aiohttp.ClientError, TimeoutError, ConnectionError):
        outcome.end = "lost"
    except (ValueError, LookupError, TypeError):
        outcome.end = "wrong"
    outcome.ended = time.monotonic()
    return outcome


async def read_nothing(url: str, rng: random.Random, seconds: float, max_tokens: int = 1500) -> Outcome:
    """A long stream with log probabilities that nobody reads, for so long; then the connection is closed."""
    outcome = Outcome("slow", time.monotonic())
    address = urlsplit(url)
    body = json.dumps(ask_body(rng, max_tokens=max_tokens, stream=True, logprobs=True, top_logprobs=10)).encode()
    head = f"POST {_CHAT} HTTP/1.1\r\nhost: {address.netloc}\r\ncontent-type: application/json\r\n"
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BYTES)
        connection.setblocking(False)
        loop = asyncio.get_running_loop()
        with contextlib.suppress(OSError):
            await loop.sock_connect(connection, (address.hostname, address.port))
            await loop.sock_sendall(connection, f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
            await asyncio.sleep(seconds)
    outcome.end, outcome.ended = "left", time.monotonic()
    return outcome


async def mixed(http: aiohttp.ClientSession, url: str, rng: random.Random) -> Outcome:
    """One request of the mix."""
    kind = rng.choices([kind for kind, _ in MIX], [share for _, share in MIX])[0]
    if kind == "bad":
        return await send_nonsense(http, url, rng)
    if kind == "slow":
        return await read_nothing(url, rng, rng.uniform(1.0, SLOW_SECONDS))
    stream = kind == "leaves" or rng.random() < 0.7
    body = ask_body(rng, max_tokens=rng.randint(1, 48), stream=stream, n=rng.choice([1, 1, 1, 2]))
    leave_after = rng.randint(1, 20) if kind == "leaves" else None
    return await ask(http, url, body, kind=kind, leave_after=leave_after)
