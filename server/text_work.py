"""Templates and tokenizing, off the event loop: a few threads, so that one long prompt does not hold up the others."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

from quire.engine.chat_template import ChatTemplateError
from quire.engine.text_worker import EncodeChat, EncodeText, TextWorker, TextWorkTimeout
from quire.server.errors import ApiError, quoted

T = TypeVar("T")

LARGE_CHARACTERS = 64 << 10
"""Beyond, a prompt is tokenized in a process that can be killed."""


class Tokenizer(Protocol):
    """What the routes need of `quire.engine.tokenizer.Tokenizer`."""

    vocab_size: int
    max_token_bytes: int
    eos_token_ids: frozenset[int]

    @property
    def has_chat_template(self) -> bool:
        """Whether a chat can be rendered."""

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Text to ids."""

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Ids to text."""

    def token_text(self, token_id: int) -> str:
        """One token alone."""

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """Messages to ids, through the chat template."""


class TextWork:
    """Runs the tokenizer's work in threads, and what is large in `worker`. `close` when the server ends."""

    def __init__(self, tokenizer: Tokenizer, worker: TextWorker | None = None, threads: int = 2) -> None:
        self.tokenizer, self.worker = tokenizer, worker
        self._threads = ThreadPoolExecutor(threads, "quire-text")

    async def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a prompt. Raises prompt_too_slow."""
        if self.worker is not None and len(text) > LARGE_CHARACTERS:
            return await self._in_worker(EncodeText(text, add_special_tokens), "prompt")
        return await self._run(lambda: self.tokenizer.encode(text, add_special_tokens))

    async def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        """The text of token ids."""
        return await self._run(lambda: self.tokenizer.decode(ids, skip_special_tokens))

    async def encode_chat(self, messages: list[dict[str, Any]], **options: Any) -> list[int]:
        """Token ids of a chat. Raises chat_template_missing, or chat_template_error with the template's own text."""
        if not self.tokenizer.has_chat_template:
            text = "This model has no chat template; use /v1/completions, or start the server with --chat-template."
            raise ApiError("chat_template_missing", text)
        if self.worker is not None and sum(len(message["content"]) for message in messages) > LARGE_CHARACTERS:
            return await self._in_worker(EncodeChat(messages, **options), "messages")
        try:
            return await self._run(lambda: self.tokenizer.encode_chat(messages, **options))
        except ChatTemplateError as error:
            raise _template_refusal(str(error)) from None

    async def encode_words(self, words: Sequence[str]) -> tuple[tuple[int, ...], ...]:
        """Bad words as token sequences: each at the start of a text and after a space."""

        def both() -> tuple[tuple[int, ...], ...]:
            spellings = [spelling for word in words for spelling in (word, " " + word.lstrip(" "))]
            encoded = (tuple(self.tokenizer.encode(spelling, False)) for spelling in spellings)
            return tuple(dict.fromkeys(ids for ids in encoded if ids))

        return await self._run(both) if words else ()

    def close(self) -> None:
        """End the threads; work that has not begun is dropped."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _in_worker(self, call: EncodeText | EncodeChat, param: str) -> list[int]:
        worker = self.worker
        assert worker is not None
        try:
            result = await self._run(lambda: worker.call(call))
        except TextWorkTimeout:
            text = "Tokenizing this prompt takes too long; split it, or send token ids to /v1/completions."
            raise ApiError("prompt_too_slow", text, param) from None
        if result.template_error is not None:
            raise _template_refusal(result.template_error)
        return result.token_ids

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)


def _template_refusal(reason: str) -> ApiError:
    return ApiError("chat_template_error", f"The chat template refuses these messages: {quoted(reason)}", "messages")


def check_byte_bound(num_bytes: int, tokenizer: Tokenizer, max_model_len: int, param: str) -> None:
    """Refuse text that cannot fit, without tokenizing it: no token is longer than the longest one."""
    at_least = -(-num_bytes // tokenizer.max_token_bytes)
    if at_least > max_model_len:
        text = f"The prompt has at least {at_least} tokens, and the model's context is {max_model_len} tokens."
        raise ApiError("context_length_exceeded", text, param)


def resolve_max_tokens(num_prompt: int, asked: int | None, default: int, max_model_len: int, param: str) -> int:
    """How many tokens may be generated. Raises context_length_exceeded when the prompt, or what was asked for with it,
    does not fit; a default is cut to what is left."""
    left = max_model_len - num_prompt
    if left < 1:
        text = f"The prompt has {num_prompt} tokens, and the model's context is {max_model_len} tokens."
        raise ApiError("context_length_exceeded", f"{text} At least one must be left for the answer.", param)
    if asked is None:
        return min(default, left)
    if asked > left:
        text = (
            f"The model's context is {max_model_len} tokens; the prompt has {num_prompt} and max_tokens asks for "
            f"{asked} more."
        )
        raise ApiError("context_length_exceeded", text, param)
    return asked
