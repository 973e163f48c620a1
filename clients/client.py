"""The blocking client.

client = Client()
print(client.chat("What is 17 + 25?").text)
for delta in client.chat("Tell me a story.", stream=True):
    print(delta.text, end="", flush=True)
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Literal, Self, TypeVar, Unpack, overload

import httpx

from quire.clients import protocol
from quire.clients.errors import ClientError
from quire.clients.transport import Base, StreamBase, blocking_transport, request, settings, transport_failure
from quire.clients.types import Chat, ChatFields, Completion, CompletionFields, Delta, Messages, Model, Prompt

T = TypeVar("T")


class Client(Base):
    """Talks to one server. Safe to share between threads; a context manager that closes its connections.

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
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        super().__init__(base_url, model, max_retries)
        self._sleep = sleep
        self._http = httpx.Client(
            **settings(self.base_url, api_key, timeout), transport=transport or blocking_transport(self.base_url)
        )

    @overload
    def chat(self, messages: Messages, *, stream: Literal[False] = False, **fields: Unpack[ChatFields]) -> Chat: ...
    @overload
    def chat(self, messages: Messages, *, stream: Literal[True], **fields: Unpack[ChatFields]) -> Stream: ...
    def chat(self, messages: Messages, *, stream: bool = False, **fields: Unpack[ChatFields]) -> Chat | Stream:
        """Answer a conversation, or one user message given as text. Fields: `quire.clients.types.ChatFields`."""
        call = protocol.chat(messages, {"model": self._model(fields), **fields}, stream)
        if stream:
            return self._stream(call)
        return self._answer(call)

    @overload
    def complete(
        self, prompt: Prompt, *, stream: Literal[False] = False, **fields: Unpack[CompletionFields]
    ) -> Completion: ...
    @overload
    def complete(self, prompt: Prompt, *, stream: Literal[True], **fields: Unpack[CompletionFields]) -> Stream: ...
    def complete(
        self, prompt: Prompt, *, stream: bool = False, **fields: Unpack[CompletionFields]
    ) -> Completion | Stream:
        """Continue a prompt. Fields: `quire.clients.types.CompletionFields`."""
        call = protocol.complete(prompt, {"model": self._model(fields), **fields}, stream)
        if stream:
            return self._stream(call)
        return self._answer(call)

    def models(self) -> list[Model]:
        """The models that the server answers for."""
        return self._answer(protocol.models())

    def tokenize(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """The token ids of a text."""
        return self._answer(protocol.tokenize(text, add_special_tokens))

    def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of token ids."""
        return self._answer(protocol.detokenize(tokens))

    def version(self) -> str:
        """The server's version."""
        return self._answer(protocol.version())

    def ready(self) -> bool:
        """Whether the server accepts requests now; one attempt, no waiting."""
        try:
            self._answer(protocol.ready(), max_retries=0)
        except ClientError:
            return False
        return True

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _model(self, fields: Mapping[str, object]) -> str:
        if "model" not in fields and self.model is None:
            self.model = protocol.first_model(self.models())
        return self.model or ""

    def _answer(self, call: protocol.Call[T], max_retries: int | None = None) -> T:
        response = self._send(call, max_retries)
        try:
            return call.read(response.read())
        except httpx.HTTPError as error:
            raise transport_failure(error, self.base_url) from error
        finally:
            response.close()

    def _stream(self, call: protocol.Call[object]) -> Stream:
        return Stream(self._send(call, None), self.base_url)

    def _send(self, call: protocol.Call[T], max_retries: int | None) -> httpx.Response:
        retries = protocol.Retries(self.max_retries if max_retries is None else max_retries)
        while True:
            failure: ClientError
            try:
                response = self._http.send(request(self._http, call), stream=True)
                if response.status_code < 400:
                    return response
                failure = protocol.refusal(response.status_code, response.headers, response.read())
            except httpx.HTTPError as error:
                failure = transport_failure(error, self.base_url)
            self._sleep(retries.wait(failure, random.random()))


class Stream(StreamBase):
    """The deltas of one answer, as they come. Closing it, or leaving its `with` block, stops the generation."""

    def __init__(self, response: httpx.Response, url: str) -> None:
        super().__init__(response, url)
        self._deltas = self._read()

    def __iter__(self) -> Iterator[Delta]:
        return self._deltas

    def __next__(self) -> Delta:
        return next(self._deltas)

    def close(self) -> None:
        """Stop. The server sees the connection close and frees what the request used."""
        self._deltas.close()
        self._response.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _read(self) -> Generator[Delta, None, None]:
        deltas = protocol.DeltaStream()
        try:
            for chunk in self._response.iter_bytes():
                yield from deltas.feed(chunk)
                if deltas.done:
                    return
            deltas.close()
        except httpx.HTTPError as error:
            raise transport_failure(error, self._url) from error
        finally:
            self._response.close()
