"""The asyncio client: `Client` with `await`.

async with AsyncClient() as client:
    print((await client.chat("What is 17 + 25?")).text)
    async for delta in await client.chat("Tell me a story.", stream=True):
        print(delta.text, end="", flush=True)
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Literal, Self, TypeVar, Unpack, overload

import httpx

from quire.clients import protocol
from quire.clients.errors import ClientError
from quire.clients.transport import Base, StreamBase, async_transport, request, settings, transport_failure
from quire.clients.types import Chat, ChatFields, Completion, CompletionFields, Delta, Messages, Model, Prompt

T = TypeVar("T")


class AsyncClient(Base):
    """Talks to one server. For one event loop; an async context manager that closes its connections.

    `model` is asked for when a call names none; without it, the first model that the server names. `timeout` is in
    seconds between two pieces of an answer. Refusals that may pass (429, 503, no connection, ...) are
    tried again `max_retries` times, no sooner than the server's Retry-After says. Errors: `quire.clients.errors`.
    """

    def __init__(
        self,
        base_url: str | None = None,
        *,
        api_key: str | None = None,
        model: str | None = None,
        timeout: float = 600.0,
        max_retries: int = 2,
        transport: httpx.AsyncBaseTransport | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        super().__init__(base_url, model, max_retries)
        self._sleep = sleep
        self._http = httpx.AsyncClient(
            **settings(self.base_url, api_key, timeout), transport=transport or async_transport(self.base_url)
        )

    @overload
    async def chat(
        self, messages: Messages, *, stream: Literal[False] = False, **fields: Unpack[ChatFields]
    ) -> Chat: ...
    @overload
    async def chat(self, messages: Messages, *, stream: Literal[True], **fields: Unpack[ChatFields]) -> AsyncStream: ...
    async def chat(
        self, messages: Messages, *, stream: bool = False, **fields: Unpack[ChatFields]
    ) -> Chat | AsyncStream:
        """Answer a conversation, or one user message given as text. Fields: `quire.clients.types.ChatFields`."""
        call = protocol.chat(messages, {"model": await self._model(fields), **fields}, stream)
        if stream:
            return await self._stream(call)
        return await self._answer(call)

    @overload
    async def complete(
        self, prompt: Prompt, *, stream: Literal[False] = False, **fields: Unpack[CompletionFields]
    ) -> Completion: ...
    @overload
    async def complete(
        self, prompt: Prompt, *, stream: Literal[True], **fields: Unpack[CompletionFields]
    ) -> AsyncStream: ...
    async def complete(
        self, prompt: Prompt, *, stream: bool = False, **fields: Unpack[CompletionFields]
    ) -> Completion | AsyncStream:
        """Continue a prompt. Fields: `quire.clients.types.CompletionFields`."""
        call = protocol.complete(prompt, {"model": await self._model(fields), **fields}, stream)
        if stream:
            return await self._stream(call)
        return await self._answer(call)

    async def models(self) -> list[Model]:
        """The models that the server answers for."""
        return await self._answer(protocol.models())

    async def tokenize(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """The token ids of a text."""
        return await self._answer(protocol.tokenize(text, add_special_tokens))

    async def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of token ids."""
        return await self._answer(protocol.detokenize(tokens))

    async def version(self) -> str:
        """The server's version."""
        return await self._answer(protocol.version())

    async def ready(self) -> bool:
        """Whether the server accepts requests now; one attempt, no waiting."""
        try:
            await self._answer(protocol.ready(), max_retries=0)
        except ClientError:
            return False
        return True

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def _model(self, fields: Mapping[str, object]) -> str:
        if "model" not in fields and self.model is None:
            self.model = protocol.first_model(await self.models())
        return self.model or ""

    async def _answer(self, call: protocol.Call[T], max_retries: int | None = None) -> T:
        response = await self._send(call, max_retries)
        try:
            return call.read(await response.aread())
        except httpx.HTTPError as error:
            raise transport_failure(error, self.base_url) from error
        finally:
            await response.aclose()

    async def _stream(self, call: protocol.Call[object]) -> AsyncStream:
        return AsyncStream(await self._send(call, None), self.base_url)

    async def _send(self, call: protocol.Call[T], max_retries: int | None) -> httpx.Response:
        retries = protocol.Retries(self.max_retries if max_retries is None else max_retries)
        while True:
            failure: ClientError
            try:
                response = await self._http.send(request(self._http, call), stream=True)
                if response.status_code < 400:
                    return response
                failure = protocol.refusal(response.status_code, response.headers, await response.aread())
            except httpx.HTTPError as error:
                failure = transport_failure(error, self.base_url)
            await self._sleep(retries.wait(failure, random.random()))


class AsyncStream(StreamBase):
    """The deltas of one answer, as they come. Closing it, or leaving its `with` block, stops the generation."""

    def __init__(self, response: httpx.Response, url: str) -> None:
        super().__init__(response, url)
        self._deltas = self._read()

    def __aiter__(self) -> AsyncIterator[Delta]:
        return self._deltas

    async def __anext__(self) -> Delta:
        return await anext(self._deltas)

    async def close(self) -> None:
        """Stop. The server sees the connection close and frees what the request used."""
        await self._deltas.aclose()
        await self._response.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def _read(self) -> AsyncGenerator[Delta, None]:
        deltas = protocol.DeltaStream()
        try:
            async for chunk in self._response.aiter_bytes():
                for delta in deltas.feed(chunk):
                    yield delta
                if deltas.done:
                    return
            deltas.close()
        except httpx.HTTPError as error:
            raise transport_failure(error, self._url) from error
        finally:
            await self._response.aclose()
