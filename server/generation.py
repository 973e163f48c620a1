"""From checked requests to delivered answers: the one way tokens take to a client, streamed or whole."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Sequence
from typing import Any, Literal, Protocol

import msgspec

from quire.engine.messages import Answer as EngineAnswer
from quire.engine.messages import Failure, Ready, Statistics
from quire.engine.outputs import GenerateRequest, RequestFailed, TextDelta
from quire.engine.pool_watchers import PoolStream
from quire.server.errors import ApiError, from_failure, unavailable
from quire.server.exchange import Exchange, encode_json
from quire.server.explanation import Explanation
from quire.server.metrics import CallTimer
from quire.server.request_options import RequestOptions


class Deltas(Protocol):
    """The answer to one prompt, over all its choices."""

    def __aiter__(self) -> AsyncIterator[TextDelta]:
        """Iterate once."""

    def __anext__(self) -> Awaitable[TextDelta]:
        """The next delta. Raises RequestFailed."""

    def aclose(self) -> Awaitable[None]:
        """Leave; what still runs is cancelled."""


class Engine(Protocol):
    """What the routes need of `quire.engine.async_engine.AsyncEngine`."""

    @property
    def state(self) -> str:
        """loading, ready, restarting, draining or failed."""

    @property
    def facts(self) -> Ready | None:
        """Known once loaded."""

    @property
    def statistics(self) -> Statistics:
        """The latest the engine sent."""

    @property
    def restarts(self) -> int:
        """Engines that were started after the first."""

    def generate(self, request: GenerateRequest) -> Deltas:
        """The deltas of all choices of one prompt. Raises RequestFailed when it cannot be taken."""

    def registered(self) -> int:
        """Requests that are under way."""

    @property
    def hangs(self) -> int:
        """Engines killed because they stood still with work pending."""

    @property
    def quarantines(self) -> int:
        """Requests that were refused from then on, because they killed two engines."""

    @property
    def hang_limit(self) -> float:
        """Seconds after which an engine that stands still is killed."""

    def standstill(self) -> float:
        """Seconds that the engine has not moved while somebody waits for it. From any thread."""

    async def query(self, kind: Literal["statistics", "check", "flight"]) -> EngineAnswer:
        """Ask the engine outside the token stream. Raises RequestFailed."""

    def watch_pool(self) -> PoolStream:
        """Live frames of the block pool. Raises TooManyWatchers."""


class Answer(Protocol):
    """Turns deltas into chunks, and chunks into the whole answer."""

    id: str

    def push(self, prompt: int, delta: TextDelta) -> Sequence[msgspec.Struct]:
        """The chunks that one delta of one prompt makes."""

    def closing(self) -> Sequence[msgspec.Struct]:
        """Chunks after the last delta."""

    def fold(self, chunks: Sequence[msgspec.Struct]) -> msgspec.Struct:
        """All chunks as one JSON answer."""


async def deliver(
    exchange: Exchange,
    engine: Engine,
    requests: Sequence[GenerateRequest],
    answer: Answer,
    options: RequestOptions,
    timer: CallTimer,
    explanation: Explanation,
) -> None:
    """Generate for every prompt and send the answer. Raises ApiError for what fails on the way."""
    chunks: list[msgspec.Struct] = []
    try:
        async with contextlib.aclosing(generate_all(engine, requests)) as deltas:
            async for prompt, delta in deltas:
                timer.observe(prompt, delta)
                _raise_failure(engine, delta)
                new = answer.push(prompt, delta)
                explanation.take(delta, new)
                if options.stream:
                    await _send_frames(exchange, new)
                else:
                    chunks += new
    except RequestFailed as failed:
        timer.cut_off("error")
        raise from_failure(failed.failure, failed.retry_after) from None
    except BaseException:
        timer.cut_off("aborted")
        raise
    if options.stream:
        closing = answer.closing()
        explanation.close(closing)
        await _send_frames(exchange, closing)
        await exchange.end_stream()
    else:
        await exchange.respond_json(answer.fold(chunks))


async def _send_frames(exchange: Exchange, chunks: Sequence[msgspec.Struct]) -> None:
    """One write a frame: load testers lose text where two arrive glued together."""
    if chunks and not exchange.started:
        await exchange.start_stream()
    for chunk in chunks:
        await exchange.write(b"data: " + encode_json(chunk) + b"\n\n")


def _raise_failure(engine: Engine, delta: TextDelta) -> None:
    if delta.finish_reason == "error":
        failure = delta.failure or Failure("internal_error", "The engine failed without a reason.")
        raise from_failure(failure)
    if delta.finish_reason == "timeout":
        raise ApiError("request_timeout", "The deadline of this request passed before its answer was complete.")
    if delta.finish_reason == "aborted":
        if engine.state == "draining":
            raise unavailable("server_draining", "The server is shutting down; this answer was cut off.", 5)
        raise ApiError("internal_error", "The engine ended this request before its answer was complete.")


async def generate_all(
    engine: Engine, requests: Sequence[GenerateRequest]
) -> AsyncGenerator[tuple[int, TextDelta], None]:
    """Deltas of several prompts as they come, each with its prompt's number. Closing this cancels all that run.

    A slow reader holds back the pumps through the bounded queue, and so each prompt's own merging of deltas.
    """
    if len(requests) == 1:
        async with contextlib.aclosing(engine.generate(requests[0])) as deltas:
            async for delta in deltas:
                yield 0, delta
        return
    queue: asyncio.Queue[tuple[int, TextDelta | BaseException | None]] = asyncio.Queue(maxsize=len(requests))
    pumps = [asyncio.create_task(_pump(engine, number, request, queue)) for number, request in enumerate(requests)]
    try:
        remaining = len(pumps)
        while remaining:
            number, item = await queue.get()
            if item is None:
                remaining -= 1
            elif isinstance(item, BaseException):
                raise item
            else:
                yield number, item
    finally:
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)


async def _pump(engine: Engine, number: int, request: GenerateRequest, queue: asyncio.Queue[Any]) -> None:
    try:
        async with contextlib.aclosing(engine.generate(request)) as deltas:
            async for delta in deltas:
                await queue.put((number, delta))
        await queue.put((number, None))
    except Exception as error:
        await queue.put((number, error))
